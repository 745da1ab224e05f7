"""Every request has exactly one answer, over raw sockets, whatever is refused and whatever still comes in.

Rows N7 and N8 of the attack catalogue: bodies that are held, endless, or larger than announced.
"""

import asyncio
import json
import re
import resource
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tornado.iostream import SSLIOStream

from keylime.http.connections import ConnectionPhase
from keylime.http.server import Request, Response, Role, Route, Server, ServerLimits
from tests.fakes.eventual import eventually
from tests.fakes.tls_material import Authority, client_context, server_context

REPOSITORY = Path(__file__).parents[2]
CA = Authority()
KIB = 1024
LIMITS = ServerLimits(max_body=256 * KIB, max_header=4096, linger_s=0.3, body_wait_s=0.5)
NARROW = replace(LIMITS, stranger_bodies=256 * KIB, admin_bodies=256 * KIB)
_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) ")


class Echo:
    """A handler that remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def answer(self, request: Request) -> Response:
        await self.may_answer.wait()
        self.seen.append(request.query.get("n", "?"))
        return Response(results={"n": request.query.get("n"), "size": len(request.body)})


@asynccontextmanager
async def serving(
    limits: ServerLimits = LIMITS, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Server, int, Echo]]:
    echo = Echo()
    server = Server(
        [
            Route(method, path, role, echo.answer, plain_http=True, versioned=False)
            for method in ("GET", "HEAD", "POST")
            for path, role in (("/x", Role.ANONYMOUS), ("/admin", Role.ADMIN))
        ],
        limits=limits,
    )
    try:
        yield server, server.listen("127.0.0.1", 0, tls), echo
    finally:
        await server.stop(1)


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, tls: ssl.SSLContext | None = None, source: str = "127.0.0.1") -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls, local_addr=(source, 0)))

    async def all(self) -> bytes:
        """All that the server says until it closes; a reset is no clean end."""
        try:
            return await asyncio.wait_for(self.reader.read(), 60)
        finally:
            self.writer.close()

    async def one(self) -> tuple[int, bytes, bytes]:
        """Code, head and body of the next answer."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 60)
        found = re.search(rb"Content-Length: (\d+)", head)
        body = await self.reader.readexactly(int(found[1])) if found else b""
        return int(head.split(b" ")[1]), head, body


def codes(answer: bytes) -> list[int]:
    return [int(code) for code in _STATUS_LINE.findall(answer)]


def head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def answered(*pieces: bytes, secure: bool = False, limits: ServerLimits = LIMITS) -> tuple[bytes, list[str]]:
    """What comes back for bytes that are sent piece by piece, and which requests were carried out."""

    async def act() -> tuple[bytes, list[str]]:
        tls = (server_context(CA), client_context(CA)) if secure else (None, None)
        async with serving(limits, tls[0]) as (_, port, echo):
            client = await Client.open(port, tls[1])
            for piece in pieces:
                client.writer.write(piece)
                await asyncio.sleep(0.02)
            return await client.all(), echo.seen

    return asyncio.run(act())


CHUNKED = "Transfer-Encoding: chunked"
CHUNK = b"8000\r\n" + bytes(0x8000) + b"\r\n"


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(
    ("request_head", "code"),
    [
        (head("GET", "/x?" + "y" * 5000), 414),
        (b"\r\n" + head("GET", "/x?" + "y" * 5000), 414),
        (b"A" * 9000, 414),
        (head("GET", "/x", "X: " + "y" * 5000), 431),
        (head("GET", "/x", *["X: y"] * 1000), 431),
        (head("POST", "/x", "Content-Length: 4", "X: " + "y" * 5000) + b"abcd", 431),
        (head("HEAD", "/x", "X: " + "y" * 100_000), 431),
    ],
)
def test_n7_a_head_that_is_too_long_is_told_so_once(request_head: bytes, code: int, secure: bool) -> None:
    answer, seen = answered(request_head, secure=secure)
    assert codes(answer) == [code]
    assert b"\r\nConnection: close\r\n" in answer
    body = answer.partition(b"\r\n\r\n")[2]
    assert (json.loads(body)["code"] == code) if body else request_head.startswith(b"HEAD")
    assert seen == []


@pytest.mark.parametrize("pause", [0, 1000])
def test_n7_what_follows_a_refused_head_is_no_request(pause: int) -> None:
    """Neither the rest of the head nor a request behind it is answered or carried out."""
    refused = head("GET", "/x?n=1", "X: " + "y" * 5000)
    pieces = [refused[:pause], refused[pause:] + head("GET", "/x?n=2"), head("GET", "/x?n=3")]
    answer, seen = answered(*pieces)
    assert codes(answer) == [431]
    assert seen == []


def test_n7_a_long_head_in_a_later_request_is_refused_after_the_answers_before_it() -> None:
    answer, seen = answered(head("GET", "/x?n=1") + head("GET", "/x?n=2") + head("GET", "/x?" + "y" * 5000))
    assert codes(answer) == [200, 200, 414]
    assert seen == ["1", "2"]


def test_n7_an_endless_head_costs_a_moment_and_little_memory() -> None:
    async def act() -> None:
        async with serving() as (server, port, _):
            client = await Client.open(port)
            client.writer.write(b"GET /x HTTP/1.1\r\n")
            (connection,) = await eventually(lambda: server.connections._every())
            while not client.writer.is_closing():
                client.writer.write(b"X: " + b"y" * 60_000 + b"\r\n")
                assert len(connection.stream._read_buffer) < 64 * KIB
                await asyncio.sleep(0.01)
            client.writer.transport.abort()

    asyncio.run(act())


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_n8_requests_in_one_piece_are_answered_in_their_order(method: str) -> None:
    requests = b"".join(head("GET", f"/x?n={n}") for n in (1, 2)) + head(
        method, "/x?n=3", "Connection: close"
    )
    answer, seen = answered(requests)
    assert codes(answer) == [200, 200, 200]
    assert seen == ["1", "2", "3"]


def test_n8_nothing_behind_the_last_answer_is_carried_out() -> None:
    last = head("GET", "/x?n=1", "Connection: close")
    answer, seen = answered(
        last + head("POST", "/x?n=2", "Content-Length: 2") + b"{}" + head("GET", "/x?n=3")
    )
    assert (codes(answer), seen) == ([200], ["1"])


REFUSED = [("POST", "/admin", 403), ("POST", "/nothing", 404), ("BREW", "/x", 501), ("PUT", "/x", 405)]


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(("method", "path", "code"), REFUSED)
@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Length: 200000", [bytes(100_000), bytes(100_000)]),
        ("Content-Length: 10", [bytes(10) + head("GET", "/x?n=2")]),
        (CHUNKED, [CHUNK * 3, b"this is no chunk\r\n", head("GET", "/x?n=2")]),
        (CHUNKED, [b"0\r\n\r\n" + head("GET", "/x?n=2")]),
        (CHUNKED, [b"f" * 100 + b"\r\n"]),
        (CHUNKED, [b"5\r\nabcdeXX\r\n"]),
    ],
)
def test_n8_a_refused_request_has_one_answer_whatever_its_body_is(
    method: str, path: str, code: int, header: str, body: list[bytes], secure: bool
) -> None:
    answer, seen = answered(head(method, path, header) + body[0], *body[1:], secure=secure)
    assert (codes(answer), seen) == ([code], [])


@pytest.mark.parametrize(
    ("beginning", "end"),
    [
        (CHUNK * 9, b"this is no chunk\r\n"),
        (CHUNK * 9, b"0\r\n\r\n" + head("GET", "/x?n=2")),
        (CHUNK * 7, CHUNK * 90),
        (CHUNK * 8 + b"1\r\na\r\n0\r\n\r\n" + head("GET", "/x?n=2"), b""),
    ],
)
def test_n8_a_chunked_body_over_the_limit_is_413_once(beginning: bytes, end: bytes) -> None:
    answer, seen = answered(head("POST", "/x", CHUNKED) + beginning, end)
    assert (codes(answer), seen) == ([413], [])


@pytest.mark.parametrize(
    "body",
    [
        b"f" * 100 + b"\r\n",
        b"zz\r\n",
        b"-5\r\nabcde\r\n",
        b"5\r\nabcdeXX0\r\n\r\n",
        b"5;" + b"x" * 99 + b"\r\n",
    ],
)
def test_n8_chunks_that_cannot_be_read_are_400_once(body: bytes) -> None:
    answer, seen = answered(head("POST", "/x", CHUNKED) + body, head("GET", "/x?n=2"))
    assert (codes(answer), seen) == ([400], [])


@pytest.mark.parametrize("header", ["Content-Length: 300000", CHUNKED])
@pytest.mark.parametrize("path", ["/admin", "/nothing"])
def test_n8_who_waits_for_leave_gets_the_refusal_and_nothing_else(header: str, path: str) -> None:
    answer, seen = answered(head("POST", path, header, "Expect: 100-continue"), b"5\r\nhello\r\n")
    assert codes(answer) in ([403], [404])
    assert seen == []


def test_n8_who_waits_for_leave_and_has_it_gets_one_final_answer() -> None:
    async def act() -> tuple[bytes, bytes]:
        async with serving() as (_, port, _):
            client = await Client.open(port)
            client.writer.write(head("POST", "/x", "Content-Length: 5", "Expect: 100-continue"))
            leave = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 60)
            client.writer.write(b"hello" + head("GET", "/x", "Connection: close"))
            return leave, await client.all()

    leave, answer = asyncio.run(act())
    assert codes(leave) == [100]
    assert codes(answer) == [200, 200]


@pytest.mark.parametrize(("path", "code"), [("/x", 200), ("/admin", 403), ("/nothing", 404)])
def test_n8_a_head_request_has_one_answer_without_a_body(path: str, code: int) -> None:
    answer, _ = answered(head("HEAD", path), head("HEAD", path, "Connection: close"))
    assert codes(answer) == [code, code]
    assert answer.endswith(b"\r\n\r\n")
    assert b"{" not in answer


def test_n7_a_body_waits_for_its_room_and_is_refused_with_a_time_to_come_back() -> None:
    async def act() -> None:
        async with serving(NARROW) as (server, port, echo):
            echo.may_answer.clear()
            first = await Client.open(port)
            first.writer.write(head("POST", "/x?n=1", "Content-Length: 200000") + bytes(200_000))
            await eventually(lambda: server.connections.count(ConnectionPhase.ANSWERING) == 1)
            second = await Client.open(port, source="127.1.0.1")
            second.writer.write(head("POST", "/x?n=2", "Content-Length: 100000", "Connection: close"))
            second.writer.write(bytes(100_000))
            answer = await second.all()
            assert codes(answer) == [503]
            assert b"\r\nRetry-After: " in answer
            same = await Client.open(port)
            same.writer.write(head("POST", "/x?n=3", "Content-Length: 100000") + bytes(100_000))
            code, top, _ = await same.one()
            assert code == 429
            assert b"\r\nRetry-After: " in top
            server.limits = replace(NARROW, body_wait_s=60)
            third = await Client.open(port, source="127.1.0.1")
            third.writer.write(head("POST", "/x?n=4", "Content-Length: 100000") + bytes(100_000))
            await eventually(lambda: server.stranger_bodies._budget.has_waiting)
            echo.may_answer.set()
            assert (await first.one())[0] == 200
            assert (await third.one())[0] == 200
            assert echo.seen == ["1", "4"]
            for client in (first, same, third):
                client.writer.close()
            await eventually(lambda: server.stranger_bodies.in_use == 0)

    asyncio.run(act())


@pytest.mark.parametrize("header", ["Content-Length: 200000", CHUNKED])
def test_n7_a_held_body_loses_its_room_to_one_that_comes(header: str) -> None:
    """The holder is told at once, and once; what it sends afterwards is dropped."""

    async def act() -> None:
        limits = replace(NARROW, body_wait_s=60)
        async with serving(limits) as (server, port, echo):
            holder = await Client.open(port)
            holder.writer.write(head("POST", "/x?n=1", header) + (CHUNK * 6 if header == CHUNKED else b"x"))
            await eventually(lambda: server.stranger_bodies.in_use > 100_000)
            busy = await Client.open(port, source="127.1.0.1")
            busy.writer.write(head("POST", "/x?n=2", "Content-Length: 200000") + bytes(200_000))
            assert (await busy.one())[0] == 200
            answer = await holder.all()
            assert codes(answer)[0] in (429, 503)
            assert len(codes(answer)) == 1
            assert b"\r\nRetry-After: " in answer
            assert echo.seen == ["2"]
            busy.writer.close()
            await eventually(lambda: server.stranger_bodies.in_use == 0)

    asyncio.run(act())


def test_n7_administrators_have_room_of_their_own() -> None:
    async def act() -> None:
        async with serving(NARROW, server_context(CA)) as (server, port, echo):
            echo.may_answer.clear()
            strangers = [await Client.open(port, client_context(CA)) for _ in range(3)]
            for stranger in strangers:
                stranger.writer.write(head("POST", "/x", "Content-Length: 200000") + bytes(200_000))
            await eventually(lambda: server.connections.count(ConnectionPhase.ANSWERING) == 1)
            admin = await Client.open(port, client_context(CA, CA.issue("operator")))
            admin.writer.write(head("POST", "/admin?n=admin", "Content-Length: 200000") + bytes(200_000))
            await eventually(lambda: server.connections.count(ConnectionPhase.ANSWERING) == 2)
            echo.may_answer.set()
            assert (await admin.one())[0] == 200
            for client in (*strangers, admin):
                client.writer.close()

    asyncio.run(act())


def test_n7_a_peer_that_leaves_while_it_waits_or_sends_leaves_nothing_behind() -> None:
    async def act() -> None:
        async with serving(NARROW) as (server, port, _):
            clients = [await Client.open(port, source=f"127.{n}.0.1") for n in range(20)]
            for client in clients:
                client.writer.write(head("POST", "/x", "Content-Length: 200000") + bytes(1000))
            await eventually(lambda: server.stranger_bodies._budget.has_waiting)
            for client in clients:
                client.writer.transport.abort()
            await eventually(lambda: server.stranger_bodies.in_use == 0 and not len(server.connections))
            assert not server.stranger_bodies._budget.has_waiting

    asyncio.run(act())


def test_n7_a_network_cannot_have_all_connections_and_the_longest_idle_of_the_fullest_goes() -> None:
    async def act() -> None:
        caps = ServerLimits(max_connections=12, max_connections_per_address=4, max_connections_per_network=8)
        async with serving(caps) as (server, port, _):
            crowd = [
                await Client.open(port, source=f"127.0.0.{host}") for host in (1, 2, 3) for _ in range(9)
            ]
            await eventually(lambda: len(server.connections) == 8)
            quiet = [await Client.open(port, source=f"127.{n}.0.1") for n in range(1, 7)]
            for number, client in enumerate(quiet):
                client.writer.write(head("GET", f"/x?n={number}"))
                assert (await client.one())[0] == 200
            assert len(server.connections) == 12
            for client in (*crowd, *quiet):
                client.writer.close()

    asyncio.run(act())


def test_n7_an_administrators_connection_is_not_dropped_for_strangers() -> None:
    async def act() -> None:
        caps = ServerLimits(max_connections=4, max_connections_per_address=4)
        async with serving(caps, server_context(CA)) as (server, port, _):
            admin = await Client.open(port, client_context(CA, CA.issue("operator")))
            admin.writer.write(head("GET", "/admin"))
            assert (await admin.one())[0] == 200
            strangers = [await Client.open(port, client_context(CA)) for _ in range(9)]
            await eventually(lambda: len(server.connections) == 5)
            admin.writer.write(head("GET", "/admin"))
            assert (await admin.one())[0] == 200
            for client in (admin, *strangers):
                client.writer.transport.abort()

    asyncio.run(act())


def test_n7_a_slow_peer_is_not_refused_while_there_is_room() -> None:
    async def act() -> float:
        async with serving() as (_, port, _):
            client = await Client.open(port)
            client.writer.write(head("POST", "/x", "Content-Length: 30"))
            began = time.monotonic()
            for _ in range(30):
                client.writer.write(b"x")
                await asyncio.sleep(0.1)
            assert (await client.one())[0] == 200
            client.writer.close()
            return time.monotonic() - began

    assert asyncio.run(act()) > 2.5


def test_n7_who_goes_on_sending_for_ever_after_his_answer_is_cut_off() -> None:
    async def act() -> None:
        async with serving(replace(LIMITS, linger_s=600)) as (server, port, _):
            client = await Client.open(port)
            client.writer.write(head("POST", "/admin", "Content-Length: 999999999"))
            assert (await client.one())[0] == 403
            while not client.writer.is_closing():
                client.writer.write(bytes(1 << 20))
                await asyncio.sleep(0.01)
            await eventually(lambda: not len(server.connections))

    asyncio.run(act())


def test_n7_memory_that_bodies_took_is_given_back() -> None:
    """What a rush of bodies needed is not kept for the next one.

    In a process of its own: one with a past has memory left over from it, and takes less anew.
    """
    program = "from tests.integration import test_http_one_answer as here; here.rush_of_bodies()"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, timeout=200)  # noqa: S603


def rush_of_bodies() -> None:
    """Sends bodies, and looks at the memory of this process, which is client and server."""

    async def act() -> None:
        limits = ServerLimits(max_body=64 << 20)
        async with serving(limits) as (server, port, echo):
            echo.may_answer.clear()
            before = resident()
            clients = [await Client.open(port, source=f"127.{n}.0.1") for n in range(4)]
            for client in clients:
                client.writer.write(head("POST", "/x", f"Content-Length: {12 << 20}"))
                for _ in range(12):
                    client.writer.write(bytes(1 << 20))
                    await client.writer.drain()
            await eventually(lambda: server.connections.count(ConnectionPhase.ANSWERING) == 4)
            assert resident() - before > 40 << 20
            echo.may_answer.set()
            for client in clients:
                assert (await client.one())[0] == 200
                client.writer.close()
            await eventually(lambda: resident() - before < 20 << 20)

    asyncio.run(act())


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_n6_a_rush_of_handshakes_leaves_rounds_of_the_event_loop_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many clients have their connections open and say hello in the same moment; all are served."""
    rounds: Counter[int] = Counter()
    begin = SSLIOStream._do_ssl_handshake

    async def act() -> None:
        loop, number = asyncio.get_running_loop(), 0

        def tick() -> None:
            nonlocal number
            number += 1
            loop.call_soon(tick)

        def counted(stream: SSLIOStream) -> None:
            rounds[number] += 1
            begin(stream)

        monkeypatch.setattr(SSLIOStream, "_do_ssl_handshake", counted)
        async with serving(LIMITS, server_context(CA)) as (server, port, _):
            plain = [await Client.open(port) for _ in range(40)]
            await eventually(lambda: len(server.connections) == 40)
            rounds.clear()
            tick()
            context = client_context(CA)
            await asyncio.gather(
                *(client.writer.start_tls(context, server_hostname="127.0.0.1") for client in plain)
            )
            for client in plain:
                client.writer.write(head("GET", "/x"))
            assert [(await client.one())[0] for client in plain] == [200] * 40
            for client in plain:
                client.writer.close()

    asyncio.run(act())
    assert max(rounds.values()) <= 4
    assert sum(rounds.values()) >= 40
