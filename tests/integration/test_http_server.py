"""The HTTP server on real sockets: limits, deadlines, odd framing, clean stop."""

import asyncio
import json
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
import pytest

from keylime.errors import ConfigError, PolicyError, ServiceUnavailable
from keylime.http.connections import ConnectionPhase
from keylime.http.server import HttpError, Request, Response, Role, Route, Server, ServerLimits
from keylime.log_lines import LineFormatter
from tests.fakes.client_session import client_session
from tests.fakes.eventual import eventually
from tests.fakes.own_time import OwnTime
from tests.fakes.tls_material import Authority, client_context, server_context

CA = Authority()
LIMITS = ServerLimits(
    max_body=1000,
    max_header=4096,
    handshake_timeout_s=0.4,
    header_timeout_s=0.4,
    idle_timeout_s=0.4,
    body_timeout_s=0.4,
    write_timeout_s=0.4,
    linger_s=0.2,
)


async def echo(request: Request) -> Response:
    return Response(results={"body": request.body.decode(), "caller": request.caller.name})


async def fail(_request: Request) -> Response:
    raise RuntimeError("the secret is 42")


async def refuse(_request: Request) -> Response:
    raise HttpError(409, "it is there already")


async def dislike(_request: Request) -> Response:
    raise PolicyError("line 3 is wrong")


async def slow(_request: Request) -> Response:
    await asyncio.sleep(0.3)
    return Response(status="done")


async def large(_request: Request) -> Response:
    return Response(results={"text": "x" * 20_000_000})


async def members(count: int, *, fails: bool = False) -> AsyncIterator[tuple[str, object]]:
    for number in range(count):
        yield f"{number}", {"text": "x" * 1000}
    if fails:
        raise ServiceUnavailable("database is locked")


async def many(request: Request) -> Response:
    count = int(request.query["count"])
    return await Response.of_many(members(count, fails="fails" in request.query))


async def away(_request: Request) -> Response:
    raise ServiceUnavailable("database is locked")


async def busy(_request: Request) -> Response:
    raise HttpError(429, "too many", retry_after_s=1.2)


def open_route(method: str, path: str, handler: object) -> Route:
    return Route(method, path, Role.ANONYMOUS, handler, plain_http=True, versioned=False)  # type: ignore[arg-type]


ROUTES = (
    open_route("POST", "/echo", echo),
    open_route("GET", "/echo", echo),
    open_route("GET", "/fail", fail),
    open_route("GET", "/refuse", refuse),
    open_route("GET", "/dislike", dislike),
    open_route("GET", "/slow", slow),
    open_route("GET", "/away", away),
    open_route("GET", "/busy", busy),
    open_route("GET", "/large", large),
    open_route("GET", "/many", many),
    Route("POST", "/admin", Role.ADMIN, echo, plain_http=True, versioned=False),
    Route(
        "POST", "/often", Role.ANONYMOUS, echo, plain_http=True, versioned=False, is_routine=True, max_body=9
    ),
    Route("POST", "/tiny", Role.ANONYMOUS, echo, plain_http=True, versioned=False, max_body=10),
)


@asynccontextmanager
async def serving(
    tls: ssl.SSLContext | None = None, limits: ServerLimits = LIMITS
) -> AsyncIterator[tuple[Server, int]]:
    server = Server(ROUTES, limits=limits)
    port = server.listen("127.0.0.1", 0, tls)
    try:
        yield server, port
    finally:
        await server.stop(1)


async def exchange(port: int, request: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """All bytes that the server sends before it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


def ask(*requests: bytes, limits: ServerLimits = LIMITS) -> list[bytes]:
    """The raw answers to requests, each on a connection of its own."""

    async def scenario() -> list[bytes]:
        async with serving(limits=limits) as (_, port):
            return [await exchange(port, request) for request in requests]

    return asyncio.run(scenario())


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    length = f"Content-Length: {len(body)}"
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", length, *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def code_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def test_an_answer_is_json_without_charset_and_repeats_the_code() -> None:
    (answer,) = ask(post("/echo", b"hello"))
    assert b"\r\nContent-Type: application/json\r\n" in answer
    assert json.loads(body_of(answer)) == {
        "code": 200,
        "status": "Success",
        "results": {"body": "hello", "caller": None},
    }


def test_what_handlers_raise_becomes_an_answer_without_details_of_defects() -> None:
    answers = ask(get("/refuse"), get("/dislike"), get("/fail"))
    assert [json.loads(body_of(answer)) for answer in answers] == [
        {"code": 409, "status": "it is there already", "results": {}},
        {"code": 400, "status": "line 3 is wrong", "results": {}},
        {"code": 500, "status": "Internal Server Error", "results": {}},
    ]


def test_a_request_id_comes_back_cleaned_and_cut() -> None:
    assert b"\r\nX-Request-Id: abc_12\r\n" in ask(get("/echo", "X-Request-ID: a-b c<_>12"))[0]
    assert b"\r\nX-Request-Id: " + b"y" * 36 + b"\r\n" in ask(get("/echo", "X-Request-ID: " + "y" * 99))[0]


def test_who_sends_no_usable_request_id_is_given_one() -> None:
    for headers in ((), ("X-Request-Id: --- ()",), ("X-Request-Id:",)):
        first, second = (ask(get("/echo", *headers))[0] for _ in range(2))
        made = [re.search(rb"\r\nX-Request-Id: (\w{16})\r\n", answer) for answer in (first, second)]
        assert made[0] is not None
        assert made[1] is not None
        assert made[0][1] != made[1][1]


def test_the_log_names_the_request_and_lets_nothing_else_in(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    caplog.handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
    ask(get("/fail", "X-Request-Id: told (reqid=other) - evil"))
    ask(get("/nothing", "X-Request-Id: early"))
    lines = caplog.text.splitlines()
    assert "ERROR GET /fail failed (reqid=toldreqidotherevil)" in lines
    assert "INFO GET /fail from 127.0.0.1 returned 500 (reqid=toldreqidotherevil)" in lines
    assert "INFO GET /nothing from 127.0.0.1 returned 404 (reqid=early)" in lines


def test_what_comes_all_the_time_is_logged_when_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    caplog.handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
    for path, body in (("/often", b"{}"), ("/often", b'{"long": 1}'), ("/echo", b"{}")):
        ask(post(path, body))
    told = [line.partition(" (")[0] for line in caplog.text.splitlines() if " returned " in line]
    assert told == [
        "DEBUG POST /often from 127.0.0.1 returned 200",
        "INFO POST /often from 127.0.0.1 returned 413",
        "INFO POST /echo from 127.0.0.1 returned 200",
    ]


def test_unknown_methods_and_paths_have_codes_of_their_own_and_no_body() -> None:
    answers = ask(
        get("/nothing"),
        get("/echo").replace(b"GET", b"DELETE"),
        get("/echo").replace(b"GET", b"BREW"),
        get("/echo").replace(b"/echo", b"http://x/echo"),
    )
    assert [(code_of(answer), body_of(answer)) for answer in answers] == [
        (404, b""),
        (405, b""),
        (501, b""),
        (400, b""),
    ]


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    fits, declared, tiny = ask(
        post("/echo", b"x" * 1000), post("/echo", b"x" * 1001), post("/tiny", b"x" * 11)
    )
    assert [code_of(answer) for answer in (fits, declared, tiny)] == [200, 413, 413]
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n"
    assert code_of(ask(head)[0]) == 413


def test_a_peer_that_waits_for_leave_gets_the_refusal_instead() -> None:
    (answer,) = ask(
        b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999\r\n\r\n"
    )
    assert code_of(answer) == 413
    assert b"100" not in answer.partition(b"\r\n")[0]


def test_a_chunked_body_is_counted_while_it_comes() -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    fits, endless = ask(
        head + b"5\r\nhello\r\n0\r\n\r\n", head + b"100\r\n" + (b"x" * 256 + b"\r\n100\r\n") * 50
    )
    assert json.loads(body_of(fits))["results"]["body"] == "hello"
    assert code_of(endless) == 413


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: +5",
        "Content-Length: -1",
        "Content-Length: 0x5",
        "Content-Length: " + "9" * 30,
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity",
        "Bad Header: x",
    ],
)
def test_framing_that_two_readers_could_understand_in_two_ways_is_refused(headers: str) -> None:
    (answer,) = ask(f"POST /echo HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\nhello".encode())
    assert code_of(answer) == 400


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "identity, gzip"])
def test_a_compressed_body_is_refused(coding: str) -> None:
    assert code_of(ask(post("/echo", b"x", f"Content-Encoding: {coding}"))[0]) == 415


def test_a_request_line_over_the_limit_is_414_and_headers_over_it_are_431() -> None:
    line, headers = ask(get("/echo?" + "y" * 5000), get("/echo", "X: " + "y" * 5000))
    assert (code_of(line), code_of(headers)) == (414, 431)


def test_a_refusal_arrives_although_the_body_is_still_being_sent() -> None:
    async def scenario() -> bytes:
        async with serving() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /admin HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n")
            for _ in range(9):
                writer.write(b"x" * 100)
                await asyncio.sleep(0.005)
            answer = await asyncio.wait_for(reader.read(), 5)
            writer.close()
            return answer

    assert code_of(asyncio.run(scenario())) == 403


def test_a_connection_serves_many_requests() -> None:
    async def scenario() -> list[int]:
        async with serving() as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            counts = []
            for _ in range(3):
                writer.write(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0]))
                counts.append(len(server.connections))
            writer.close()
            return counts

    assert asyncio.run(scenario()) == [1, 1, 1]


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"GET /echo HTT",
        b"GET /echo HTTP/1.1\r\nHost: x\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: 9\r\n\r\nab",
    ],
)
def test_a_peer_that_stops_half_way_is_dropped(start: bytes) -> None:
    begin, own = time.monotonic(), OwnTime()
    assert ask(start) == [b""]
    assert time.monotonic() - begin > 0.2
    assert own.passed_s() < 3


@pytest.mark.parametrize("start", [b"", b"POST /echo HTTP/1.1\r\nContent-Length: 900\r\n\r\n"])
def test_a_peer_that_drips_its_headers_or_body_is_dropped_all_the_same(start: bytes) -> None:
    async def scenario() -> float:
        async with serving() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            begin = time.monotonic()
            closed = asyncio.create_task(reader.read())
            writer.write(start)
            while not closed.done():
                writer.write(b"G")
                await asyncio.sleep(0.05)
            writer.close()
            return time.monotonic() - begin

    assert asyncio.run(scenario()) < 3


def test_each_request_has_its_own_time_and_silence_after_the_last_one_ends_the_connection() -> None:
    async def scenario() -> float:
        async with serving(limits=ServerLimits(idle_timeout_s=2.0, header_timeout_s=2.0)) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            begin = time.monotonic()
            for _ in range(6):
                writer.write(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0]))
                await asyncio.sleep(0.4)
            answered = time.monotonic()
            assert await reader.read() == b""
            await eventually(lambda: len(server.connections) == 0)
            writer.close()
            return answered - begin

    assert asyncio.run(scenario()) > 2.0, "longer than a connection may be silent"


def test_a_peer_that_never_reads_its_answer_is_dropped() -> None:
    async def scenario() -> None:
        async with serving() as (server, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write(get("/large"))
            await eventually(lambda: len(server.connections) == 1)
            await eventually(lambda: len(server.connections) == 0)
            writer.transport.abort()

    asyncio.run(scenario())


@pytest.mark.parametrize("use_tls", [True, False])
def test_many_silent_connections_disturb_nobody(use_tls: bool) -> None:
    """Neither the handshake nor a request comes on 300 connections; another client is served at once."""

    async def scenario() -> None:
        tls = server_context(CA) if use_tls else None
        client = client_context(CA) if use_tls else None
        async with serving(tls, ServerLimits(handshake_timeout_s=1.5, header_timeout_s=1.5)) as (
            server,
            port,
        ):
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(300)]
            own = OwnTime()
            assert code_of(await exchange(port, get("/echo"), client)) == 200
            assert own.passed_s() < 1
            await eventually(lambda: len(server.connections) == 0)
            for _, writer in silent:
                writer.close()

    asyncio.run(scenario())


def test_at_the_cap_silent_connections_make_room_for_new_ones() -> None:
    async def scenario() -> tuple[int, int]:
        async with serving(limits=ServerLimits(max_connections_per_address=5)) as (server, port):
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
            code = code_of(await exchange(port, get("/echo")))
            most = len(server.connections)
            for _, writer in silent:
                writer.close()
            return code, most

    code, most = asyncio.run(scenario())
    assert code == 200
    assert most <= 5


def test_at_the_cap_connections_that_are_being_served_are_not_dropped() -> None:
    async def scenario() -> tuple[list[int], bytes]:
        async with serving(limits=ServerLimits(max_connections_per_address=2)) as (server, port):
            busy = [asyncio.create_task(exchange(port, get("/slow"))) for _ in range(2)]
            await eventually(lambda: len(server.exchanges) == 2)
            try:
                refused = await exchange(port, get("/echo"))
            except ConnectionError:
                refused = b""
            return [code_of(await task) for task in busy], refused

    assert asyncio.run(scenario()) == ([200, 200], b"")


def test_renewing_cuts_off_no_request_and_ends_open_connections_with_their_next_answer() -> None:
    other = Authority("other")

    async def scenario() -> tuple[bytes, bytes]:
        async with serving(server_context(CA)) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context(CA))
            writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel")
            await eventually(lambda: server.connections.count(ConnectionPhase.RECEIVING) == 1)
            server.renew(tls=server_context(other), max_body=3)
            writer.write(b"lo")
            under_way = await asyncio.wait_for(reader.read(), 5)
            writer.close()
            return under_way, await exchange(port, post("/echo", b"long"), client_context(other))

    under_way, later = asyncio.run(scenario())
    assert (code_of(under_way), json.loads(body_of(under_way))["results"]["body"]) == (200, "hello")
    assert b"Connection: close" in under_way
    assert code_of(later) == 413


def test_a_servers_limit_is_never_exceeded_by_a_routes_own() -> None:
    async def scenario() -> tuple[bytes, bytes]:
        async with serving() as (server, port):
            before = await exchange(port, post("/tiny", b"x" * 10))
            server.renew(tls=None, max_body=5)
            return before, await exchange(port, post("/tiny", b"x" * 10))

    before, after = asyncio.run(scenario())
    assert (code_of(before), code_of(after)) == (200, 413)


def test_a_service_that_is_away_is_503_and_says_when_to_come_back(caplog: pytest.LogCaptureFixture) -> None:
    answers = ask(get("/away"), get("/busy"))
    assert [code_of(answer) for answer in answers] == [503, 429]
    assert b"\r\nRetry-After: 5\r\n" in answers[0]
    assert b"\r\nRetry-After: 2\r\n" in answers[1]
    assert b"locked" not in answers[0]
    assert "GET /away: database is locked" in caplog.text


@pytest.mark.parametrize(("count", "is_chunked"), [(0, False), (1, False), (3000, False), (20_000, True)])
def test_an_object_with_many_members_is_the_same_answer_whatever_its_length(
    count: int, is_chunked: bool
) -> None:
    async def play() -> None:
        async with serving(limits=ServerLimits()) as (_, port), client_session() as session:
            url = f"http://127.0.0.1:{port}/many?count={count}"
            texts = {f"{number}": {"text": "x" * 1000} for number in range(count)}
            expected = {"code": 200, "status": "Success", "results": texts}
            for _ in range(2):  # over one connection
                async with session.get(url) as response:
                    assert response.status == 200
                    assert response.headers["Content-Type"] == "application/json"
                    told = parsedate_to_datetime(response.headers["Date"])
                    assert abs((datetime.now(UTC) - told).total_seconds()) < 100
                    assert ("Content-Length" in response.headers) is not is_chunked
                    assert await response.json() == expected
            async with session.head(url) as response:
                assert await response.read() == b""
            old = await exchange(port, f"GET /many?count={count} HTTP/1.0\r\n\r\n".encode())
            assert json.loads(body_of(old)) == expected

    asyncio.run(play())


def test_what_fails_early_is_an_error_and_what_fails_late_is_no_whole_answer() -> None:
    async def play() -> None:
        async with serving(limits=ServerLimits()) as (_, port), client_session() as session:
            async with session.get(f"http://127.0.0.1:{port}/many?count=10&fails") as response:
                assert response.status == 503
            async with session.get(f"http://127.0.0.1:{port}/many?count=20000&fails") as response:
                assert response.status == 200
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()

    asyncio.run(play())


def test_no_more_is_made_than_a_peer_reads() -> None:
    made: list[str] = []

    async def endless(_request: Request) -> Response:
        async def counted() -> AsyncIterator[tuple[str, object]]:
            try:
                while True:
                    async for member in members(1):
                        made.append(member[0])
                        yield member
            finally:
                made.append("closed")

        return await Response.of_many(counted())

    async def play() -> None:
        server = Server([open_route("GET", "/endless", endless)], limits=LIMITS)
        port = server.listen("127.0.0.1", 0)
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
            await eventually(lambda: made[-1:] == ["closed"], limit_s=60)
            assert len(made) < 60_000, "and not more than buffers take"
            await eventually(lambda: not server.exchanges)
            writer.close()
        finally:
            await server.stop(1)

    asyncio.run(play())


def test_stopping_lets_requests_finish_and_refuses_new_connections() -> None:
    async def scenario() -> tuple[bytes, float]:
        server = Server(ROUTES, limits=LIMITS)
        port = server.listen("127.0.0.1", 0)
        _, idle = await asyncio.open_connection("127.0.0.1", port)
        request = asyncio.create_task(exchange(port, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"))
        await eventually(lambda: server.exchanges)
        own = OwnTime()
        await server.stop(2)
        taken = own.passed_s()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        idle.close()
        return await request, taken

    answer, taken = asyncio.run(scenario())
    assert code_of(answer) == 200
    assert b"Connection: close" in answer
    assert taken < 1


def test_stopping_does_not_wait_longer_than_told() -> None:
    async def scenario() -> float:
        server = Server(ROUTES, limits=LIMITS)
        port = server.listen("127.0.0.1", 0)
        request = asyncio.create_task(exchange(port, get("/slow")))
        await eventually(lambda: server.exchanges)
        own = OwnTime()
        await server.stop(0.05)
        taken = own.passed_s()
        assert await request == b""
        return taken

    assert asyncio.run(scenario()) < 0.2


def test_a_port_in_use_is_one_clear_error() -> None:
    async def scenario() -> None:
        async with serving() as (_, port):
            with pytest.raises(
                ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"
            ):
                Server(ROUTES).listen("127.0.0.1", port)

    asyncio.run(scenario())


def test_a_name_that_leads_nowhere_is_told_in_words() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on no-such\.invalid:0: [^\[]*; give an address"):
        Server(ROUTES).listen("no-such.invalid", 0)


def test_the_name_of_the_client_certificate_is_the_callers_and_plain_http_has_none() -> None:
    async def scenario() -> tuple[bytes, bytes]:
        context = client_context(CA, CA.issue("operator"))
        async with serving(server_context(CA)) as (server, port):
            plain_port = server.listen("127.0.0.1", 0)
            return await exchange(port, post("/admin", b""), context), await exchange(
                plain_port, post("/admin", b"")
            )

    secure, plain = asyncio.run(scenario())
    assert json.loads(body_of(secure))["results"]["caller"] == "operator"
    assert code_of(plain) == 403


def test_no_body_query_or_header_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    ask(
        post("/echo?nonce=canary1", b"canary2", "X-Canary: canary3", "Authorization: Bearer canary4"),
        post("/fail?canary1", b"canary2"),
        post("/a%0Ab\x1b[1m", b"canary2"),
    )
    assert "POST /echo from 127.0.0.1 returned 200" in caplog.text
    assert "canary" not in caplog.text
    assert "\x1b" not in caplog.text
