"""What is peculiar to the verifier's connections to agents: one exchange at a time over a bare socket.

What they have in common with other clients is in test_http_client.py.
"""

import asyncio
import http.server
import json
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from keylime.errors import AnswerPutOff, PeerUnreachable, UnusableAnswer, WrongPeerKey
from keylime.http.agent_connection import AgentConnection
from keylime.messages.registrar import ActivateRequest
from keylime.service.event_loop import new_event_loop
from tests.fakes.eventual import eventually
from tests.fakes.loopback import served_by
from tests.fakes.tls_material import Issued, self_signed

IDENTITY = self_signed("agent")


def envelope(results: object) -> bytes:
    body = json.dumps({"code": 200, "status": "Success", "results": results}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@dataclass
class Agent:
    """Answers requests as `answer` says: with bytes, or None to close the connection without a word."""

    answer: Callable[[int], bytes | None]  # by the number of the request
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    open_now: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_now += 1
        self.writers.append(writer)
        try:
            while True:
                self.requests.append(await _request(reader))
                answer = self.answer(len(self.requests))
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.open_now -= 1
            writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return head + await reader.readexactly(int(length or 0))


def server_side(identity: Issued = IDENTITY) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    identity.load_into(context)
    return context


def client_side() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def served(
    answer: Callable[[int], bytes | None], tls: ssl.SSLContext | None = None
) -> AsyncIterator[Agent]:
    agent = Agent(answer)
    async with served_by(agent.serve, tls=tls) as port:
        agent.port = port.number
        yield agent
        await eventually(lambda: not agent.open_now)


def calling(
    agent: Agent, *, secure: bool = True, keeps_alive: bool = True, timeout_s: float = 60.0
) -> AgentConnection:
    return AgentConnection(
        "127.0.0.1",
        agent.port,
        tls=client_side() if secure else None,
        pin=IDENTITY.key_pin if secure else None,
        timeout_s=timeout_s,
        keeps_alive=keeps_alive,
    )


def play(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("secure", [False, True])
def test_an_agent_that_closes_what_is_idle_is_asked_again_at_once(secure: bool) -> None:
    async def scenario() -> None:
        async with (
            served(
                lambda number: None if number == 2 else envelope(number), server_side() if secure else None
            ) as agent,
            calling(agent, secure=secure) as connection,
        ):
            assert (await connection.request("GET", "/x")).is_success
            # It reads the second request, and closes the connection instead of an answer.
            assert bytes((await connection.request("GET", "/x")).results) == b"3"
            assert agent.connections == 2
            # A connection that was closed meanwhile is known to be, and not used.
            agent.writers[-1].close()
            await eventually(lambda: not agent.open_now)
            assert bytes((await connection.request("POST", "/x", body=ActivateRequest("t"))).results) == b"4"

    play(scenario)


def test_what_changes_something_is_not_sent_twice() -> None:
    async def scenario() -> None:
        async with (
            served(lambda number: envelope(number) if number == 1 else None) as agent,
            calling(agent, secure=False) as connection,
        ):
            assert (await connection.request("GET", "/x")).is_success
            with pytest.raises(PeerUnreachable, match="closed the connection"):
                await connection.request("POST", "/x", body=ActivateRequest("t"))
            assert len(agent.requests) == 2

    play(scenario)


def test_half_an_answer_is_not_asked_for_again() -> None:
    async def scenario() -> None:
        def answer(number: int) -> bytes:
            if number == 2:
                asyncio.get_running_loop().call_soon(agent.writers[-1].close)
                return envelope("x" * 100)[:-10]
            return envelope(number)

        async with served(answer, server_side()) as agent, calling(agent) as connection:
            await connection.request("GET", "/x")
            with pytest.raises(UnusableAnswer, match="in the middle of the answer"):
                await connection.request("GET", "/x")
            assert len(agent.requests) == 2

    play(scenario)


class _OldAgent(http.server.BaseHTTPRequestHandler):
    """HTTP/1.0 without lengths; over TLS, it closes the connection without a farewell."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(envelope("done").partition(b"\r\n\r\n")[2])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("secure", [False, True])
def test_a_server_of_http_1_0_ends_its_answer_by_closing(secure: bool) -> None:
    async def scenario() -> None:
        agent = Agent(lambda _number: None, port=server.server_port)
        async with calling(agent, secure=secure) as connection:
            for _ in range(2):
                assert bytes((await connection.request("GET", "/x")).results) == b'"done"'
                assert not connection.is_connected

    with http.server.HTTPServer(("127.0.0.1", 0), _OldAgent) as server:
        if secure:
            server.socket = server_side().wrap_socket(server.socket, server_side=True)
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            play(scenario)
        finally:
            server.shutdown()
            serving.join()


def test_an_answer_that_nobody_asked_for_is_never_taken_for_one() -> None:
    async def scenario() -> None:
        async with (
            served(lambda number: envelope(number) * (2 if number == 1 else 1), server_side()) as agent,
            calling(agent) as connection,
        ):
            assert bytes((await connection.request("GET", "/x")).results) == b"1"
            assert bytes((await connection.request("GET", "/x")).results) == b"2"
            assert agent.connections == 2
            agent.writers[-1].write(envelope("late"))  # while nobody waits
            await agent.writers[-1].drain()
            await eventually(lambda: not connection.is_connected)
            assert bytes((await connection.request("GET", "/x")).results) == b"3"
            assert agent.connections == 3

    play(scenario)


def test_a_second_call_waits_for_its_turn() -> None:
    async def scenario() -> None:
        async with (
            served(lambda number: envelope(number), server_side()) as agent,
            calling(agent) as connection,
        ):
            replies = await asyncio.gather(*(connection.request("GET", f"/{n}") for n in range(20)))
            assert [bytes(one.results) for one in replies] == [b"%d" % n for n in range(1, 21)]
            assert [one.split()[1] for one in agent.requests] == [b"/%d" % n for n in range(20)]
            assert agent.connections == 1

    play(scenario)


def test_a_call_that_is_given_up_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        async with served(lambda _number: b"", server_side()) as agent, calling(agent) as connection:
            call = asyncio.create_task(connection.request("GET", "/x"))
            await eventually(lambda: len(agent.requests) == 1)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
            await eventually(lambda: not agent.open_now)
            assert not connection.is_connected

    play(scenario)


def test_a_long_answer_and_a_long_request_go_through_and_the_connection_is_kept() -> None:
    long = "x" * 5_000_000

    async def scenario() -> None:
        async with (
            served(lambda number: envelope(long if number < 3 else "y"), server_side()) as agent,
            calling(agent) as connection,
        ):
            assert len((await connection.request("GET", "/x")).results) == len(long) + 2
            assert (await connection.request("POST", "/x", body=ActivateRequest(long))).is_success
            assert len(agent.requests[1]) > len(long)
            assert (await connection.request("GET", "/x")).is_success
            assert agent.connections == 1
            with pytest.raises(AnswerPutOff):
                await connection.request("GET", "/x", admit=lambda _size: False)

    play(scenario)


def test_an_agent_that_does_not_read_is_given_up_in_time() -> None:
    async def scenario() -> None:
        async def deaf(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await given_up.wait()
            writer.close()

        given_up = asyncio.Event()
        async with served_by(deaf, limit=1000) as port:
            connection = AgentConnection("127.0.0.1", port.number, tls=None, pin=None, timeout_s=1)
            with pytest.raises(PeerUnreachable, match="no answer within 1 s"):
                await connection.request("POST", "/x", body=ActivateRequest("x" * 50_000_000))
            given_up.set()

    play(scenario)


def test_an_answer_that_comes_before_all_was_asked_is_heard() -> None:
    async def scenario() -> None:
        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            await heard.wait()
            writer.close()

        heard = asyncio.Event()
        async with served_by(refuse, tls=server_side()) as port:
            async with calling(Agent(lambda _number: None, port=port.number)) as connection:
                reply = await connection.request("POST", "/x", body=ActivateRequest("x" * 50_000_000))
                assert reply.code == 413
                assert not connection.is_connected
            heard.set()

    play(scenario)


def test_a_connection_that_is_closed_under_a_call_ends_it() -> None:
    async def scenario() -> None:
        async with served(lambda _number: b"", server_side()) as agent, calling(agent) as connection:
            call = asyncio.create_task(connection.request("POST", "/x", body=ActivateRequest("t")))
            await eventually(lambda: len(agent.requests) == 1)
            await connection.close()
            with pytest.raises(PeerUnreachable, match="the connection was closed"):
                await call

    play(scenario)


def test_connections_that_are_not_kept_shake_hands_in_short() -> None:
    async def scenario() -> None:
        context = server_side()
        async with (
            served(lambda number: envelope(number), context) as agent,
            calling(agent, keeps_alive=False) as connection,
        ):
            for number in range(1, 5):
                assert bytes((await connection.request("GET", "/x")).results) == b"%d" % number
                await eventually(lambda: not agent.open_now)
            assert agent.connections == 4
            assert context.session_stats()["hits"] == 3
            await connection.close()
            await connection.request("GET", "/x")  # nothing is left of what went before
            assert context.session_stats()["hits"] == 3

    play(scenario)


def test_a_connection_that_retires_is_resumed() -> None:
    async def scenario() -> None:
        context = server_side()
        async with served(lambda number: envelope(number), context) as agent, calling(agent) as connection:
            await connection.request("GET", "/x")
            await connection.retire(1000.0)
            assert connection.is_connected
            await connection.retire(0.0)
            await connection.request("GET", "/x")
            assert (agent.connections, context.session_stats()["hits"]) == (2, 1)

    play(scenario)


def test_n1_whoever_takes_the_agents_place_is_not_believed_for_a_resumed_session() -> None:
    async def scenario() -> None:
        async with served(lambda number: envelope(number), server_side()) as agent:
            connection = calling(agent, keeps_alive=False)
            await connection.request("GET", "/x")
            port = agent.port
        other = Agent(lambda number: envelope(number))
        async with served_by(other.serve, port=port, tls=server_side(self_signed("agent"))):
            with pytest.raises(WrongPeerKey):
                await connection.request("GET", "/secret")
            await eventually(lambda: not other.open_now)
            assert other.requests == []
        await connection.close()

    play(scenario)


def test_plain_bytes_instead_of_tls_are_no_connection() -> None:
    async def scenario() -> None:
        async with served(lambda _number: b"") as agent:
            agent.answer = lambda _number: envelope("x")
            connection = calling(agent, timeout_s=60)
            agent_talks_first = asyncio.create_task(_greet(agent))
            with pytest.raises(PeerUnreachable, match="cannot connect: "):
                await connection.request("GET", "/x")
            await agent_talks_first
            assert not connection.is_connected

    play(scenario)


async def _greet(agent: Agent) -> None:
    await eventually(lambda: agent.open_now == 1)
    agent.writers[0].write(b"220 smtp.example ESMTP\r\n")


def test_a_pin_without_tls_or_tls_without_a_pin_is_no_connection() -> None:
    for tls, pin in ((None, bytes(32)), (client_side(), None)):
        with pytest.raises(ValueError, match="or with neither"):
            AgentConnection("127.0.0.1", 1, tls=tls, pin=pin, timeout_s=1)
