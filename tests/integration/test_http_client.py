"""The HTTP client against servers that behave, misbehave, or are somebody else."""

import asyncio
import http.cookies
import inspect
import ipaddress
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import pytest
from cryptography import x509

from keylime import request_id
from keylime.errors import (
    AnswerPutOff,
    MalformedMessage,
    PeerRefused,
    PeerUnreachable,
    UnusableAnswer,
    WrongPeerKey,
)
from keylime.http.agent_connection import AgentConnection
from keylime.http.client import Peer
from keylime.http.peer_text import printable
from keylime.http.replies import Reply, peer_url
from keylime.http.server import Request, Response, Role, Route, Server, ServerLimits
from keylime.log_lines import LineFormatter
from keylime.messages.agent import PublicKeyReply
from keylime.messages.registrar import ActivateRequest
from keylime.nesting import MOST_BRACKETS
from keylime.pki.roles import NODE
from keylime.pki.server_names import NameCheck
from tests.fakes.eventual import eventually
from tests.fakes.loopback import served_by
from tests.fakes.tls_material import (
    CLIENT_AUTH,
    SERVER_AUTH,
    Authority,
    Issued,
    client_context,
    plain_leaf,
    self_signed,
    server_context,
    unmarked_node,
)

AGENT = "d432fbb3-d2f1-4a97-9ef7-75bd81c0aaaa"
CA = Authority()


@dataclass
class RawServer:
    """Answers every connection with fixed bytes and keeps what was sent to it."""

    answer: bytes
    port: int = 0
    received: bytearray = field(default_factory=bytearray)
    connections: int = 0
    ended: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while b"\r\n\r\n" not in self.received and (data := await reader.read(4096)):
                self.received += data
            writer.write(self.answer)
            await writer.drain()
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()
            self.ended += 1


@asynccontextmanager
async def raw(
    answer: bytes, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[RawServer]:
    state = RawServer(answer)
    async with served_by(state.handle, host=host, tls=tls) as port:
        state.port = port.number
        yield state
        await eventually(lambda: state.ended == state.connections)


def with_certificate(identity: Issued) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    identity.load_into(context)
    return context


def unverifying() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def envelope(results: object, code: int = 200) -> bytes:
    body = json.dumps({"code": code, "status": "Success", "results": results}).encode()
    return b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n%b" % (code, len(body), body)


Client = Peer | AgentConnection


class Make(Protocol):
    """A client of a port of this machine."""

    def __call__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        pin: bytes | None = None,
        timeout_s: float = 20.0,
        max_body: int = 10_000_000,
    ) -> Client: ...


def make_peer(
    port: int,
    *,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    pin: bytes | None = None,
    timeout_s: float = 20.0,
    max_body: int = 10_000_000,
) -> Peer:
    url = peer_url(host, port, tls=tls is not None)
    return Peer(url, tls=tls, pin=pin, timeout_s=timeout_s, max_body=max_body)


def make_agent_connection(
    port: int,
    *,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    pin: bytes | None = None,
    timeout_s: float = 20.0,
    max_body: int = 10_000_000,
) -> AgentConnection:
    return AgentConnection(host, port, tls=tls, pin=pin, timeout_s=timeout_s, max_body=max_body)


@pytest.fixture(params=[make_peer, make_agent_connection], ids=["peer", "agent-connection"])
def make(request: pytest.FixtureRequest) -> Make:
    """Both clients keep the same promises, as far as agents are called."""
    made: Make = request.param
    return made


class Ask(Protocol):
    """What comes of something that is done with a client of a server that answers so."""

    def __call__(
        self,
        answer: bytes,
        act: Callable[[Client], Awaitable[object]],
        *,
        max_body: int = 10_000,
        timeout_s: float = 2.0,
    ) -> object: ...


@pytest.fixture
def ask(make: Make) -> Ask:
    def ask_with(
        answer: bytes,
        act: Callable[[Client], Awaitable[object]],
        *,
        max_body: int = 10_000,
        timeout_s: float = 2.0,
    ) -> object:
        async def scenario() -> object:
            async with (
                raw(answer) as server,
                make(server.port, timeout_s=timeout_s, max_body=max_body) as client,
            ):
                return await act(client)

        return asyncio.run(scenario())

    return ask_with


def get(client: Client) -> Awaitable[Reply]:
    return client.request("GET", "/x")


def test_results_are_read_as_their_type(ask: Ask) -> None:
    reply = ask(envelope({"pubkey": "pem"}), lambda peer: peer.fetch(PublicKeyReply, "GET", "/keys/pubkey"))
    assert reply == PublicKeyReply("pem")


def test_a_success_without_a_body_has_no_results(ask: Ask) -> None:
    reply = ask(b"HTTP/1.1 204 No Content\r\n\r\n", get)
    assert isinstance(reply, Reply)
    assert (reply.code, bytes(reply.results)) == (204, b"{}")
    with pytest.raises(MalformedMessage):
        ask(
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            lambda peer: peer.fetch(PublicKeyReply, "GET", "/"),
        )


def test_results_of_another_type_are_malformed(ask: Ask) -> None:
    with pytest.raises(MalformedMessage, match="pubkey"):
        ask(envelope({"pubkey": 1}), lambda peer: peer.fetch(PublicKeyReply, "GET", "/keys/pubkey"))


def test_null_results_count_as_none(ask: Ask) -> None:
    reply = ask(envelope(None), get)
    assert isinstance(reply, Reply)
    assert bytes(reply.results) == b"{}"


@pytest.mark.parametrize(
    ("answer", "code", "status"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 404, "Not Found"),
        (
            b'HTTP/1.1 403 F\r\nContent-Length: 34\r\n\r\n{"errors": [{"detail": "mTLS no"}]}'[:-1] + b"}",
            403,
            "mTLS no",
        ),
        (
            b"HTTP/1.1 400 B\r\nContent-Length: 31\r\n\r\n" + b'{"code":400,"status":"a\\nb\\u001b"',
            400,
            "Bad Request",
        ),
        (
            b"HTTP/1.1 409 C\r\nContent-Length: 32\r\n\r\n" + b'{"code":409,"status":"a\\u000ab"}'[:32],
            409,
            "a\\x0ab",
        ),
    ],
)
def test_a_refusal_carries_code_and_a_printable_text(ask: Ask, answer: bytes, code: int, status: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    start = head.split(b"\r\n")[0]
    answer = start + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with pytest.raises(PeerRefused) as caught:
        ask(answer, lambda peer: peer.fetch(PublicKeyReply, "GET", "/x"))
    assert (caught.value.code, caught.value.status) == (code, status)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 307 T\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 100,
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(10_000)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000,
    ],
)
def test_an_answer_that_cannot_be_used_counts_as_no_answer(ask: Ask, answer: bytes) -> None:
    with pytest.raises(PeerUnreachable):
        ask(answer, get)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"garbage\r\n\r\n", "Bad status line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "not an envelope"),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "redirect"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "compressed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10001\r\n\r\n", "larger than 10000 bytes"),
        (b"HTTP/1.1 500 E\r\nContent-Length: 10001\r\n\r\n", "larger than 10000 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 3,
            "larger than 10000 bytes",
        ),
        (b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(10_000)) + b"\r\n", "headers"),
    ],
)
def test_n12_a_peer_that_answers_is_told_apart_from_one_that_does_not(
    ask: Ask, answer: bytes, reason: str
) -> None:
    with pytest.raises(UnusableAnswer, match=reason):
        ask(answer, get, timeout_s=1)


def test_n12_a_body_that_does_not_end_in_time_is_an_answer_all_the_same(make: Make) -> None:
    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        with suppress(ConnectionError):
            while await reader.read(1000):
                pass

    async def stuck() -> None:
        async with served_by(begin) as port, make(port.number, timeout_s=2) as peer:
            await get(peer)

    with pytest.raises(UnusableAnswer, match=r"not complete within 2 s"):
        asyncio.run(stuck())


def chunked(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = (body[at : at + 1000] for at in range(0, len(body), 1000))
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("form", ["length", "chunked"])
def test_n12_whether_an_answer_may_be_read_now_is_asked_before_it_is(ask: Ask, form: str) -> None:
    whole = envelope("x" * 5000)
    answer = whole if form == "length" else chunked(whole.partition(b"\r\n\r\n")[2])
    asked: list[int] = []

    def admit(size: int) -> bool:
        asked.append(size)
        return size <= most

    most = 10_000
    assert ask(answer, lambda peer: peer.request("GET", "/x", admit=admit))
    assert asked[-1] >= 5000
    assert len(asked) < 15
    most = 4000
    with pytest.raises(AnswerPutOff) as caught:
        ask(answer, lambda peer: peer.request("GET", "/x", admit=admit))
    assert 4000 < caught.value.size <= 10_000


def test_n12_the_limit_of_one_answer_may_differ_from_the_peers(ask: Ask) -> None:
    assert ask(envelope("x" * 5000), lambda peer: peer.request("GET", "/x", max_body=10_000), max_body=100)
    with pytest.raises(UnusableAnswer, match="larger than 100 bytes"):
        ask(envelope("x" * 5000), get, max_body=100)


def test_a_redirect_is_not_followed(make: Make) -> None:
    async def scenario() -> int:
        async with raw(envelope({})) as target:
            location = f"http://127.0.0.1:{target.port}/".encode()
            redirect = b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"
            async with (
                raw(redirect) as server,
                make(server.port, timeout_s=2) as peer,
            ):
                with pytest.raises(PeerUnreachable, match="redirect"):
                    await peer.request("GET", "/")
            return target.connections

    assert asyncio.run(scenario()) == 0


def test_each_call_has_an_id_that_is_logged_and_an_errand_has_one(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "keylime.http.client")
    caplog.set_level("DEBUG", "keylime.http.agent_connection")
    caplog.handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
    sent: list[str] = []

    async def echo(request: Request) -> Response:
        sent.append(request.headers[request_id.HEADER])
        return Response(400 if "fail" in request.query else 200)

    async def scenario() -> None:
        routes = [
            Route(method, "/x", Role.ANONYMOUS, echo, plain_http=True, versioned=False)
            for method in ("GET", "PUT")
        ]
        server = Server(routes)
        port = server.listen("127.0.0.1", 0)
        async with make(port, timeout_s=9) as peer:
            await peer.request("GET", "/x")
            await peer.request("GET", "/x", query={"fail": "canary"})
            request_id.begin_errand()
            await peer.request("PUT", "/x")
            await peer.request("PUT", "/x")
            request_id.handle("of_another_peer")
            await peer.request("PUT", "/x")
            await peer.request("PUT", "/x", is_routine=True)
        await server.stop()

    asyncio.run(scenario())
    assert len(set(sent[:4])) == 3
    assert sent[2] == sent[3]
    assert sent[4] == "of_another_peer"
    levels = ("DEBUG GET /x 200", "INFO GET /x 400", *["INFO PUT /x 200"] * 3, "DEBUG PUT /x 200")
    told = [re.sub(r"http://[^/]*|returned ", "", line) for line in caplog.text.splitlines()]
    assert told == [f"{line} (reqid={one})" for line, one in zip(levels, sent, strict=True)]


def test_silence_ends_with_the_time_out_that_is_named(make: Make) -> None:
    async def scenario() -> None:
        async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await reader.read()  # until who asked hangs up

        async with served_by(silent) as port, make(port.number, timeout_s=0.2) as peer:
            await peer.request("GET", "/")

    with pytest.raises(PeerUnreachable, match=r"no answer within 0\.2 s"):
        asyncio.run(scenario())


def test_nobody_listening_is_unreachable(make: Make) -> None:
    async def scenario() -> None:
        async with raw(b"") as server:
            port = server.port
        async with make(port, timeout_s=2) as peer:
            await peer.request("GET", "/")

    with pytest.raises(PeerUnreachable):
        asyncio.run(scenario())


def test_with_a_wrong_pin_no_byte_of_the_request_is_sent(make: Make) -> None:
    async def scenario() -> bytes:
        identity, other = self_signed("agent"), self_signed("agent")
        async with raw(envelope({}), with_certificate(identity)) as server:
            async with make(server.port, tls=unverifying(), pin=other.key_pin, timeout_s=2) as peer:
                with pytest.raises(WrongPeerKey, match=r"another key .* than the pinned one"):
                    await peer.request("POST", "/secret", body=ActivateRequest("canary"))
            await eventually(lambda: server.ended == 1)
            assert server.connections == 1
            return bytes(server.received)

    assert asyncio.run(scenario()) == b""


def test_the_pinned_certificate_is_enough(make: Make) -> None:
    async def scenario() -> int:
        identity = self_signed("agent")
        async with (
            raw(envelope({}), with_certificate(identity)) as server,
            make(server.port, tls=unverifying(), pin=identity.key_pin, timeout_s=2) as peer,
        ):
            return (await peer.request("GET", "/")).code

    assert asyncio.run(scenario()) == 200


def test_a_server_of_another_ca_is_refused() -> None:
    async def scenario() -> bytes:
        async with raw(envelope({}), server_context(Authority("other"))) as server:
            url = peer_url("127.0.0.1", server.port, tls=True)
            async with Peer(url, tls=client_context(CA), timeout_s=2) as peer:
                with pytest.raises(PeerUnreachable):
                    await peer.request("GET", "/")
            return bytes(server.received)

    assert asyncio.run(scenario()) == b""


BRACKETS = envelope([[]] * (MOST_BRACKETS // 2))


def test_n12_a_body_of_brackets_alone_is_refused(ask: Ask) -> None:
    with pytest.raises(UnusableAnswer, match=f"more than {MOST_BRACKETS} brackets"):
        ask(BRACKETS, get, max_body=len(BRACKETS), timeout_s=60)


@pytest.mark.parametrize("kind", ["peer", "agent-connection"])
def test_what_a_service_answers_may_have_as_many_brackets_as_it_has(kind: str) -> None:
    async def scenario() -> bytes:
        async with raw(BRACKETS, with_certificate(named(RIGHT))) as server:
            url, tls = peer_url("127.0.0.1", server.port, tls=True), client_context(CA)
            service: Client = (
                Peer(url, tls=tls, timeout_s=60)
                if kind == "peer"
                else AgentConnection("127.0.0.1", server.port, tls=tls, names=NameCheck.STRICT, timeout_s=60)
            )
            async with service:
                return bytes((await service.request("GET", "/x")).results)

    assert asyncio.run(scenario()).startswith(b"[[], []")


@dataclass
class Met:
    """What came of calls to a server that presents a certificate."""

    codes: list[int]
    error: str
    received: bytes
    warnings: list[str]


def meet(
    leaf: Issued, check: NameCheck, caplog: pytest.LogCaptureFixture, host: str = "127.0.0.1", calls: int = 3
) -> Met:
    """Calls it again and again, each time over a new connection."""

    async def scenario() -> Met:
        codes, error = [], ""
        async with raw(envelope({}), with_certificate(leaf)) as server:
            url = peer_url(host, server.port, tls=True)
            async with Peer(url, tls=client_context(CA), names=check, timeout_s=20) as peer:
                for _ in range(calls):
                    try:
                        reply = await peer.request("POST", "/x", body=ActivateRequest("canary"))
                        codes.append(reply.code)
                    except PeerUnreachable as caught:
                        error = str(caught)
                    await peer.close()
            warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
            return Met(codes, error, bytes(server.received), warnings)

    return asyncio.run(scenario())


def named(*names: x509.GeneralName) -> Issued:
    return CA.issue("127.0.0.1", usages=(SERVER_AUTH,), names=names)


RIGHT = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
WRONG = x509.DNSName("registrar.example.com")


def test_n4_strict_refuses_another_name_before_a_byte_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    met = meet(named(WRONG), NameCheck.STRICT, caplog)
    assert (met.codes, met.received) == ([], b"")
    assert "its certificate is for registrar.example.com and not for 127.0.0.1; call it by" in met.error


def test_n4_strict_refuses_a_certificate_without_names_and_says_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    met = meet(named(), NameCheck.STRICT, caplog)
    assert (met.codes, met.received) == ([], b"")
    assert "no subject alternative names" in met.error
    assert "give it a certificate with its names" in met.error


def test_n4_warn_says_it_once_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    met = meet(named(WRONG), NameCheck.WARN, caplog)
    assert met.codes == [200] * 3
    (warning,) = met.warnings
    assert warning.startswith("the server at 127.0.0.1:")
    assert "registrar.example.com and not for 127.0.0.1" in warning


def test_n4_warn_is_the_default_and_off_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    assert meet(named(WRONG), NameCheck.OFF, caplog).warnings == []
    assert inspect.signature(Peer).parameters["names"].default is NameCheck.WARN


@pytest.mark.parametrize("check", NameCheck)
def test_n4_the_right_name_is_no_news(check: NameCheck, caplog: pytest.LogCaptureFixture) -> None:
    met = meet(named(WRONG, RIGHT), check, caplog)
    assert (met.codes, met.warnings) == ([200] * 3, [])


def test_n4_a_wildcard_and_a_host_name(caplog: pytest.LogCaptureFixture) -> None:
    met = meet(named(x509.DNSName("localhost")), NameCheck.STRICT, caplog, host="localhost")
    assert met.codes == [200] * 3
    assert meet(named(x509.DNSName("*")), NameCheck.STRICT, caplog, host="localhost").codes == []


def test_n4_where_there_are_no_names_warn_has_nothing_to_compare(caplog: pytest.LogCaptureFixture) -> None:
    met = meet(named(), NameCheck.WARN, caplog)
    assert (met.codes, met.warnings) == ([200] * 3, [])


@pytest.mark.parametrize("check", NameCheck)
def test_n3_a_machines_certificate_is_no_servers_before_a_byte_is_sent(
    check: NameCheck, caplog: pytest.LogCaptureFixture
) -> None:
    marked = CA.issue("127.0.0.1", usages=(SERVER_AUTH, CLIENT_AUTH, NODE))
    for machine in (marked, unmarked_node(CA, "127.0.0.1"), plain_leaf(CA, AGENT)):
        met = meet(machine, check, caplog, calls=1)
        assert (met.codes, met.received) == ([], b"")
        assert "made for a machine" in met.error


def test_a_peer_that_could_not_be_checked_is_not_made() -> None:
    with pytest.raises(ValueError, match="neither a pin nor a CA"):
        Peer("https://127.0.0.1:1", tls=unverifying(), timeout_s=1)
    with pytest.raises(ValueError, match="do not fit"):
        Peer("https://127.0.0.1:1", tls=None, timeout_s=1)
    with pytest.raises(ValueError, match="do not fit"):
        Peer("http://127.0.0.1:1", tls=None, pin=bytes(32), timeout_s=1)


async def _answer(request: Request) -> Response:
    return Response(
        results={
            "query": dict(request.query),
            "body": request.body.decode(),
            "headers": dict(request.headers),
        }
    )


def test_connections_are_kept_and_many_peers_share_one_context(make: Make) -> None:
    """Ten calls of each of three peers with their own pins: three connections, three handshakes."""

    async def scenario() -> tuple[int, int]:
        server = Server([Route("GET", "/x", Role.ANONYMOUS, _answer)])
        identities = [self_signed("agent") for _ in range(3)]
        contexts = [with_certificate(identity) for identity in identities]
        ports = [server.listen("127.0.0.1", 0, context) for context in contexts]
        shared = unverifying()
        peers = [
            make(port, tls=shared, pin=identity.key_pin, timeout_s=5)
            for port, identity in zip(ports, identities, strict=True)
        ]
        for _ in range(10):
            for peer in peers:
                assert (await peer.request("GET", "/v2.5/x")).is_success
        kept = len(server.connections)
        accepted = sum(context.session_stats()["accept_good"] for context in contexts)
        for peer in peers:
            await peer.close()
        await server.stop(1)
        return kept, accepted

    assert asyncio.run(scenario()) == (3, 3)


def test_query_and_body_arrive_as_given_and_nothing_comes_from_the_environment(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

    async def scenario() -> dict[str, dict[str, str]]:
        server = Server([Route("POST", "/x", Role.ANONYMOUS, _answer, plain_http=True)])
        port = server.listen("127.0.0.1", 0)
        async with make(port, timeout_s=5) as peer:
            reply = await peer.request(
                "POST", "/v2/x", query={"nonce": "a b&c=/", "mask": 1}, body=ActivateRequest("t")
            )
        await server.stop(1)
        results: dict[str, dict[str, str]] = msgspec.json.decode(reply.results)
        return results

    results = asyncio.run(scenario())
    assert results["query"] == {"nonce": "a b&c=/", "mask": "1"}
    assert json.loads(str(results["body"])) == {"auth_tag": "t"}
    headers = {name.lower(): value for name, value in results["headers"].items()}
    assert headers["content-type"] == "application/json"
    assert headers["accept-encoding"] == "identity"


async def _answer_at_length(request: Request) -> Response:
    return Response(results={"text": "x" * int(request.query.get("size", "0"))})


def test_a_connection_that_carried_a_large_answer_is_not_kept_for_its_buffers() -> None:
    async def scenario() -> list[int]:
        server = Server([Route("GET", "/x", Role.ANONYMOUS, _answer_at_length)])
        identity = self_signed("agent")
        context = with_certificate(identity)
        port = server.listen("127.0.0.1", 0, context)
        pin = identity.key_pin
        handshakes = []
        url = peer_url("127.0.0.1", port, tls=True)
        async with Peer(url, tls=unverifying(), pin=pin, timeout_s=5) as peer:
            for size in (10, 10, 100_000, 10, 10):
                reply = await peer.request("GET", "/v2.5/x", query={"size": size})
                assert len(reply.results) > size
                handshakes.append(context.session_stats()["accept_good"])
            # An answer under way is not cut off by the end of a large one beside it.
            both = [peer.request("GET", "/v2.5/x", query={"size": size}) for size in (200_000, 10)]
            assert all(reply.is_success for reply in await asyncio.gather(*both))
        await server.stop(1)
        return handshakes

    assert asyncio.run(scenario()) == [1, 1, 1, 2, 2]


def test_a_large_body_is_sent(make: Make) -> None:
    async def scenario() -> int:
        server = Server(
            [Route("POST", "/x", Role.ANONYMOUS, _answer, plain_http=True)],
            limits=ServerLimits(max_body=5_000_000),
        )
        port = server.listen("127.0.0.1", 0)
        async with make(port, timeout_s=5) as peer:
            reply = await peer.request("POST", "/v2/x", body=ActivateRequest("t" * 3_000_000))
        await server.stop(1)
        return reply.code

    assert asyncio.run(scenario()) == 200


def test_cookies_are_not_kept(make: Make) -> None:
    async def scenario() -> dict[str, str]:
        async def set_cookie(request: Request) -> Response:
            cookie = http.cookies.SimpleCookie({"a": "b"})["a"].OutputString()
            return Response(results=dict(request.headers), headers={"Set-Cookie": cookie})

        server = Server([Route("GET", "/x", Role.ANONYMOUS, set_cookie, plain_http=True)])
        port = server.listen("127.0.0.1", 0)
        async with make(port, timeout_s=5) as peer:
            await peer.request("GET", "/v2/x")
            headers = await peer.fetch(dict, "GET", "/v2/x")
        await server.stop(1)
        return headers

    assert "Cookie" not in asyncio.run(scenario())


def test_ipv6_hosts_are_bracketed_and_reached(make: Make) -> None:
    assert peer_url("::1", 8881, tls=True) == "https://[::1]:8881"
    assert peer_url("[::1]", 8881, tls=False) == "http://[::1]:8881"

    async def scenario() -> int:
        async with (
            raw(envelope({}), host="::1") as server,
            make(server.port, host="::1", timeout_s=2) as peer,
        ):
            return (await peer.request("GET", "/")).code

    assert asyncio.run(scenario()) == 200


def test_a_peers_text_cannot_forge_a_log_line_or_control_a_terminal() -> None:
    assert printable("a\nb\x1b[1m\x85\u2028") == "a\\x0ab\\x1b[1m\\x85\\x2028"
    assert len(printable("x" * 100_000)) < 1100
