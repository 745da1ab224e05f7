"""The HTTP client against servers that behave, misbehave, or are somebody else."""

import asyncio
import hashlib
import http.cookies
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import pytest

from keylime.errors import MalformedMessage, PeerRefused, PeerUnreachable
from keylime.http.client import Peer, Reply, peer_url, printable
from keylime.http.server import Limits, Request, Response, Role, Route, Server
from keylime.messages.agent import PublicKeyReply
from keylime.messages.registrar import ActivateRequest
from tests.fakes.tls_material import Authority, Issued, client_context, self_signed, server_context

CA = Authority()


@dataclass
class RawServer:
    """Answers every connection with fixed bytes and keeps what was sent to it."""

    answer: bytes
    port: int = 0
    received: bytearray = field(default_factory=bytearray)
    connections: int = 0

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


@asynccontextmanager
async def raw(
    answer: bytes, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[RawServer]:
    state = RawServer(answer)
    server = await asyncio.start_server(state.handle, host, 0, ssl=tls)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        await asyncio.sleep(0.01)


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


def ask(
    answer: bytes, act: Callable[[Peer], Awaitable[object]], *, max_body: int = 10_000, timeout_s: float = 2.0
) -> object:
    async def scenario() -> object:
        async with raw(answer) as server:
            url = peer_url("127.0.0.1", server.port, tls=False)
            async with Peer(url, tls=None, timeout_s=timeout_s, max_body=max_body) as peer:
                return await act(peer)

    return asyncio.run(scenario())


def get(peer: Peer) -> Awaitable[Reply]:
    return peer.request("GET", "/x")


def test_results_are_read_as_their_type() -> None:
    reply = ask(envelope({"pubkey": "pem"}), lambda peer: peer.fetch(PublicKeyReply, "GET", "/keys/pubkey"))
    assert reply == PublicKeyReply("pem")


def test_a_success_without_a_body_has_no_results() -> None:
    reply = ask(b"HTTP/1.1 204 No Content\r\n\r\n", get)
    assert isinstance(reply, Reply)
    assert (reply.code, bytes(reply.results)) == (204, b"{}")
    with pytest.raises(MalformedMessage):
        ask(
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            lambda peer: peer.fetch(PublicKeyReply, "GET", "/"),
        )


def test_results_of_another_type_are_malformed() -> None:
    with pytest.raises(MalformedMessage, match="pubkey"):
        ask(envelope({"pubkey": 1}), lambda peer: peer.fetch(PublicKeyReply, "GET", "/keys/pubkey"))


def test_null_results_count_as_none() -> None:
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
def test_a_refusal_carries_code_and_a_printable_text(answer: bytes, code: int, status: str) -> None:
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
def test_an_answer_that_cannot_be_used_counts_as_no_answer(answer: bytes) -> None:
    with pytest.raises(PeerUnreachable):
        ask(answer, get)


def test_a_redirect_is_not_followed() -> None:
    async def scenario() -> int:
        async with raw(envelope({})) as target:
            location = f"http://127.0.0.1:{target.port}/".encode()
            redirect = b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"
            async with (
                raw(redirect) as server,
                Peer(f"http://127.0.0.1:{server.port}", tls=None, timeout_s=2) as peer,
            ):
                with pytest.raises(PeerUnreachable, match="redirect"):
                    await peer.request("GET", "/")
            return target.connections

    assert asyncio.run(scenario()) == 0


def test_silence_ends_with_the_time_out_that_is_named() -> None:
    async def scenario() -> None:
        async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.5)
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            async with Peer(peer_url("127.0.0.1", port, tls=False), tls=None, timeout_s=0.2) as peer:
                await peer.request("GET", "/")
        finally:
            server.close()
            await asyncio.sleep(0.5)

    with pytest.raises(PeerUnreachable, match=r"no answer within 0\.2 s"):
        asyncio.run(scenario())


def test_nobody_listening_is_unreachable() -> None:
    async def scenario() -> None:
        async with raw(b"") as server:
            port = server.port
        async with Peer(f"http://127.0.0.1:{port}", tls=None, timeout_s=2) as peer:
            await peer.request("GET", "/")

    with pytest.raises(PeerUnreachable):
        asyncio.run(scenario())


def test_with_a_wrong_pin_no_byte_of_the_request_is_sent() -> None:
    async def scenario() -> bytes:
        identity, other = self_signed("agent"), self_signed("agent")
        async with raw(envelope({}), with_certificate(identity)) as server:
            url = peer_url("127.0.0.1", server.port, tls=True)
            pin = hashlib.sha256(other.der).digest()
            async with Peer(url, tls=unverifying(), pin=pin, timeout_s=2) as peer:
                with pytest.raises(PeerUnreachable, match="not the pinned one"):
                    await peer.request("POST", "/secret", body=ActivateRequest("canary"))
            await asyncio.sleep(0.05)
            assert server.connections == 1
            return bytes(server.received)

    assert asyncio.run(scenario()) == b""


def test_the_pinned_certificate_is_enough() -> None:
    async def scenario() -> int:
        identity = self_signed("agent")
        async with raw(envelope({}), with_certificate(identity)) as server:
            url = peer_url("127.0.0.1", server.port, tls=True)
            pin = hashlib.sha256(identity.der).digest()
            async with Peer(url, tls=unverifying(), pin=pin, timeout_s=2) as peer:
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


def test_connections_are_kept_and_many_peers_share_one_context() -> None:
    """Ten calls of each of three peers with their own pins: three connections, three handshakes."""

    async def scenario() -> tuple[int, int]:
        server = Server([Route("GET", "/x", Role.ANONYMOUS, _answer)])
        identities = [self_signed("agent") for _ in range(3)]
        contexts = [with_certificate(identity) for identity in identities]
        ports = [server.listen("127.0.0.1", 0, context) for context in contexts]
        shared = unverifying()
        peers = [
            Peer(
                peer_url("127.0.0.1", port, tls=True),
                tls=shared,
                pin=hashlib.sha256(identity.der).digest(),
                timeout_s=5,
            )
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

    async def scenario() -> dict[str, dict[str, str]]:
        server = Server([Route("POST", "/x", Role.ANONYMOUS, _answer, plain_http=True)])
        port = server.listen("127.0.0.1", 0)
        async with Peer(peer_url("127.0.0.1", port, tls=False), tls=None, timeout_s=5) as peer:
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
        pin = hashlib.sha256(identity.der).digest()
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


def test_a_large_body_is_sent() -> None:
    async def scenario() -> int:
        server = Server(
            [Route("POST", "/x", Role.ANONYMOUS, _answer, plain_http=True)], limits=Limits(max_body=5_000_000)
        )
        port = server.listen("127.0.0.1", 0)
        async with Peer(peer_url("127.0.0.1", port, tls=False), tls=None, timeout_s=5) as peer:
            reply = await peer.request("POST", "/v2/x", body=ActivateRequest("t" * 3_000_000))
        await server.stop(1)
        return reply.code

    assert asyncio.run(scenario()) == 200


def test_cookies_are_not_kept() -> None:
    async def scenario() -> dict[str, str]:
        async def set_cookie(request: Request) -> Response:
            cookie = http.cookies.SimpleCookie({"a": "b"})["a"].OutputString()
            return Response(results=dict(request.headers), headers={"Set-Cookie": cookie})

        server = Server([Route("GET", "/x", Role.ANONYMOUS, set_cookie, plain_http=True)])
        port = server.listen("127.0.0.1", 0)
        async with Peer(peer_url("127.0.0.1", port, tls=False), tls=None, timeout_s=5) as peer:
            await peer.request("GET", "/v2/x")
            headers = await peer.fetch(dict, "GET", "/v2/x")
        await server.stop(1)
        return headers

    assert "Cookie" not in asyncio.run(scenario())


def test_ipv6_hosts_are_bracketed_and_reached() -> None:
    assert peer_url("::1", 8881, tls=True) == "https://[::1]:8881"
    assert peer_url("[::1]", 8881, tls=False) == "http://[::1]:8881"

    async def scenario() -> int:
        async with (
            raw(envelope({}), host="::1") as server,
            Peer(peer_url("::1", server.port, tls=False), tls=None, timeout_s=2) as peer,
        ):
            return (await peer.request("GET", "/")).code

    assert asyncio.run(scenario()) == 200


def test_a_peers_text_cannot_forge_a_log_line_or_control_a_terminal() -> None:
    assert printable("a\nb\x1b[1m\x85\u2028") == "a\\x0ab\\x1b[1m\\x85\\x2028"
    assert len(printable("x" * 100_000)) < 1100
