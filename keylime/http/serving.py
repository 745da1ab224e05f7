"""One request on a server's connection, from its first line to the last byte of its answer."""

import asyncio
import contextlib
import functools
import io
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Protocol

from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
    format_timestamp,
)
from tornado.iostream import StreamClosedError

from keylime import patience, request_id
from keylime.errors import MalformedMessage, PolicyError, ServiceUnavailable
from keylime.http.bodies import Bodies, NoRoom, Reservation
from keylime.http.connections import Connection, ConnectionPhase
from keylime.http.exchange import HttpError, Request, Response, Role, retry_after
from keylime.http.routing import Admission, Route, Router

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 5.0
_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_LENGTH = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one peer may cost. Sizes in bytes, times in seconds; a deadline covers all of what it names."""

    max_body: int = 1 << 20
    max_header: int = 32 << 10
    handshake_timeout_s: float = 10.0
    header_timeout_s: float = 10.0  # from the connection or its handshake to the first request's headers
    idle_timeout_s: float = 120.0  # from an answer to the next request's headers
    body_timeout_s: float = 30.0
    write_timeout_s: float = 30.0
    linger_s: float = (
        1.0  # how long a refused body is read and dropped, so that no reset overtakes the answer
    )
    max_connections: int = 4096  # of strangers
    max_connections_per_address: int = 512
    max_connections_per_network: int = 1024
    max_admin_connections: int = 512
    stranger_bodies: int = 64 << 20  # of all strangers together, while they are received and answered
    admin_bodies: int = 512 << 20
    body_wait_s: float = 5.0  # how long a request waits until there is room for its body


class ExchangeHost(Protocol):
    """What an exchange needs of its server."""

    limits: ServerLimits
    router: Router
    draining: bool
    stranger_bodies: Bodies
    admin_bodies: Bodies
    exchanges: "set[Exchange]"
    answering: int


async def respond(route: Route, request: Request) -> tuple[Response, bytes]:
    """The answer of the route's handler, whatever it raises, and its encoded body."""
    try:
        with patience.for_a_caller():
            handling = route.handler(request)
            del request  # the handler decides how long the body is kept
            response = await handling
        return response, response.encode()
    except HttpError as error:
        response = error.response()
    except ServiceUnavailable as error:
        log.error("%s %s: %s", route.method, route.path, error)
        results = {} if error.outcome is None else {"outcome": error.outcome}
        response = Response(503, results, error.public, headers=retry_after(_RETRY_AFTER_S))
    except (MalformedMessage, PolicyError) as error:
        response = Response(400, status=str(error))
    except Exception:
        # Our defect: the peer learns that much and no more.
        log.exception("%s %s failed", route.method, route.path)
        response = Response(500)
    return response, response.encode()


class Exchange(HTTPMessageDelegate):
    """One request and its answer: refused as early as its headers allow, else collected and handled."""

    def __init__(self, host: ExchangeHost, conn: HTTP1Connection, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        self.task: asyncio.Task[None] | None = None
        self.over: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._host = host
        self._conn = conn
        self._connection = connection
        self._head = RequestStartLine("", "", "")
        self._headers = HTTPHeaders()
        self._request_id = ""
        self._verdict: Admission | Response = Response(400, empty=True)
        self._max_body = 0
        self._body = io.BytesIO()
        self._reservation: Reservation | None = None
        self._cut_short: asyncio.Future[None] | None = None  # done when the answer to half a request is out
        self._linger: asyncio.TimerHandle | None = None
        self._body_limit: asyncio.TimerHandle | None = None

    # What tornado calls, in this order.

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """Decides about the request before any of its body is read; the body waits for its room."""
        self._connection.phase = ConnectionPhase.RECEIVING
        self._connection.stream.is_in_body = True
        self._connection.head_is_there()
        self._host.exchanges.add(self)
        body_follows = _check_framing(headers)
        if not isinstance(start_line, RequestStartLine):
            raise HTTPInputError("not a request")
        self._head, self._headers = start_line, headers
        self._request_id = request_id.accept(headers.get(request_id.HEADER, ""))
        self._verdict = self._judge()
        if isinstance(self._verdict, Response):
            if body_follows:
                self._answer_early(self._verdict)
            return None
        return self._make_room(self._verdict) if body_follows else None

    def data_received(self, chunk: bytes) -> None:
        """Collects a piece of the body, or drops it when the answer is already known."""
        if self._cut_short is not None:
            return
        if self._body.tell() + len(chunk) > self._max_body:
            self._answer_early(Response(413))
            return
        try:
            if self._reservation is not None:
                self._reservation.receive(len(chunk))
        except NoRoom as error:
            self._answer_early(error.response())
            return
        self._body.write(chunk)

    def finish(self) -> None:
        """The request is complete."""
        self._body_is_there()
        if self._cut_short is not None:
            self._hang_up()
        elif isinstance(self._verdict, Response):
            self._send(self._verdict, self._verdict.encode())
        else:
            if self._reservation is not None:
                self._reservation.complete()
            self._connection.phase = ConnectionPhase.ANSWERING
            self.task = self._loop.create_task(self._serve(self._verdict))
            self.task.add_done_callback(self._served)

    def on_connection_close(self) -> None:
        """The peer left, or was dropped, before its request was complete."""
        if self.task is None:
            self._end()

    def _judge(self) -> Admission | Response:
        if self._head.method not in _KNOWN_METHODS:
            return Response(501, empty=True)
        verdict = self._host.router.admit(
            self._head.method,
            self._head.path,
            self._headers.get("Authorization"),
            secure=self._connection.secure,
            identify=self._connection.caller,
        )
        if isinstance(verdict, Response):
            return verdict
        if self._headers.get("Content-Encoding", "identity").lower() != "identity":
            return Response(415)
        limit, own_limit = self._host.limits.max_body, verdict.route.max_body
        self._max_body = limit if own_limit is None else min(limit, own_limit)
        if int(self._headers.get("Content-Length", "0")) > self._max_body:
            return Response(413)
        if verdict.route.admit is not None:
            try:
                verdict.route.admit(verdict.caller)
            except HttpError as error:
                return error.response()
        return verdict

    def _make_room(self, admission: Admission) -> Awaitable[None] | None:
        """Sets room aside for the body: at once, or when what this returns is done."""
        is_admins = admission.caller.role is Role.ADMIN
        bodies = self._host.admin_bodies if is_admins else self._host.stranger_bodies
        size = int(self._headers.get("Content-Length", "0"))
        reservation = bodies.reserve(self._connection.prefixes, size, self._lose_room)
        self._reservation = reservation
        if not reservation.is_held:
            return self._wait_for_room(reservation)
        self._limit_body()
        return None

    async def _wait_for_room(self, reservation: Reservation) -> None:
        try:
            await reservation.wait(self._host.limits.body_wait_s)
        except NoRoom as error:
            self._answer_early(error.response())
        else:
            self._limit_body()

    def _limit_body(self) -> None:
        """From now on the body has its time, if it is not there already."""
        length = self._headers.get("Content-Length")
        if length is None or not self._connection.stream.has_arrived(int(length)):
            limit_s = self._host.limits.body_timeout_s
            self._body_limit = self._loop.call_later(limit_s, self._connection.close)

    def _body_is_there(self) -> None:
        if self._body_limit is not None:
            self._body_limit.cancel()
            self._body_limit = None

    def _lose_room(self, error: NoRoom) -> None:
        """Another one needs the room more than this body, which comes slowly or has many beside it."""
        if self._cut_short is None and self.task is None:
            self._answer_early(error.response())

    async def _serve(self, admission: Admission) -> None:
        request_id.handle(self._request_id)
        # Not kept here: the handler may be done with it long before its answer is there.
        body, self._body = self._body.getvalue(), io.BytesIO()
        request = admission.request(self._headers, body)
        del body
        responding = respond(admission.route, request)
        del request
        self._host.answering += 1
        try:
            response, written = await responding
        finally:
            self._host.answering -= 1
        if response.rest is None:
            self._send(response, written)
        else:
            async with contextlib.aclosing(response.rest) as rest:
                await self._send_in_parts(response, written, rest)

    def _served(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():  # the server stops and waited long enough
            self._connection.close()
            self._end()
        elif (error := task.exception()) is not None:
            extra = {"request_id": self._request_id}
            log.error("%s could not be answered", self._head.method, exc_info=error, extra=extra)
            self._connection.close()
            self._end()

    def _answer_early(self, response: Response) -> None:
        written = self._write(response, response.encode(), close=True)
        self._cut_short = written
        self._let_body_go()
        if written is None:
            self._end()
            return
        # One request, one answer: whatever is still being sent changes nothing.
        self._connection.stream.end_with_this_answer()
        if "Expect" in self._headers:  # the peer waits for leave to send its body
            self._hang_up()
        else:
            self._linger = self._loop.call_later(self._host.limits.linger_s, self._hang_up)

    def _let_body_go(self) -> None:
        self._body = io.BytesIO()
        if self._reservation is not None:
            self._reservation.release()

    def _hang_up(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
        if self._cut_short is not None:
            self._conn.finish()
            self._cut_short.add_done_callback(lambda _: self._connection.close())
        self._end()

    def _send(self, response: Response, body: bytes) -> None:
        is_last = (
            self._host.draining or self._connection.is_retired or _wants_close(self._head, self._headers)
        )
        written = self._write(response, body, close=is_last)
        if written is None:
            self._end()
            return
        if is_last:  # what came in behind the request is not carried out: nobody would be told
            self._connection.stream.end_with_this_answer()
        self._conn.finish()
        written.add_done_callback(functools.partial(self._sent, is_last=is_last))

    async def _send_in_parts(self, response: Response, first: bytes, rest: AsyncIterator[bytes]) -> None:
        """Sends a body whose length is not known yet, no faster than the peer reads it."""
        # Without chunks the end of the connection is that of the body.
        is_last = self._host.draining or self._connection.is_retired or self._head.version != "HTTP/1.1"
        written = self._write(response, first, close=is_last)
        is_sent = written is not None and await self._is_sent(written)
        if is_sent and self._head.method != "HEAD":
            async for part in rest:
                is_sent = await self._is_sent(self._conn.write(part))
                if not is_sent:
                    break
        if is_sent:
            self._conn.finish()
            is_sent = not is_last or await self._is_sent(self._all_written())
        if is_last or not is_sent:
            self._connection.close()
        self._end()  # in the same step as finish() when another request may follow

    async def _is_sent(self, written: Awaitable[None]) -> bool:
        """Waits for the peer to read what was written; False when it is gone, or takes too long."""
        try:
            async with asyncio.timeout(self._host.limits.write_timeout_s):
                await written
        except (TimeoutError, StreamClosedError):
            return False
        return True

    async def _all_written(self) -> None:
        await self._connection.stream.write(b"")

    def _sent(self, _written: "asyncio.Future[None]", *, is_last: bool) -> None:
        if is_last:
            self._connection.close()
        self._end()

    def _write(self, response: Response, body: bytes, *, close: bool) -> "asyncio.Future[None] | None":
        is_routine = isinstance(self._verdict, Admission) and self._verdict.route.is_routine
        is_quiet = response.code < 400 and (is_routine or self._head.method == "GET")
        level = logging.DEBUG if is_quiet else logging.INFO
        if log.isEnabledFor(level):
            _log_access(level, self._head, response, self._connection.address, self._request_id)
        if self._connection.stream.closed():
            return None
        headers = self._answer_headers(response, body)
        if close:
            headers["Connection"] = "close"
        line = ResponseStartLine("HTTP/1.1", response.code, response.reason)
        written = self._conn.write_headers(line, headers, None if self._head.method == "HEAD" else body)
        deadline = self._loop.call_later(self._host.limits.write_timeout_s, self._connection.close)
        written.add_done_callback(functools.partial(_cancel, deadline))
        return written

    def _answer_headers(self, response: Response, body: bytes) -> HTTPHeaders:
        headers = HTTPHeaders({"Content-Length": str(len(body))} if response.rest is None else {})
        if body:
            headers["Content-Type"] = "application/json"  # without a charset, as clients of the field expect
        headers["Date"] = format_timestamp(time.time())  # RFC 9110, 6.6.1
        headers[request_id.HEADER] = self._request_id
        for name, value in response.headers.items():
            headers[name] = value
        return headers

    def _end(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self._body_is_there()
        self._let_body_go()
        self._host.exchanges.discard(self)
        self._connection.phase = ConnectionPhase.IDLE
        self._connection.stream.is_in_body = False
        self._connection.idle(self._host.limits.idle_timeout_s)
        if not self.over.done():
            self.over.set_result(None)


def _check_framing(headers: HTTPHeaders) -> bool:
    """Whether a body follows. Raises HTTPInputError, which tornado answers with 400 and a closed connection.

    A length that two readers could understand in two ways is how requests are smuggled past a proxy.
    """
    length = headers.get("Content-Length")
    coding = headers.get("Transfer-Encoding")
    if length is not None and (coding is not None or not _LENGTH.fullmatch(length)):
        raise HTTPInputError("ambiguous body length")
    if coding is not None and coding.lower() != "chunked":
        raise HTTPInputError("unknown transfer encoding")
    return coding is not None or int(length or "0") > 0


def _wants_close(head: RequestStartLine, headers: HTTPHeaders) -> bool:
    """Whether this is the last request of its connection."""
    wishes = {wish.strip() for wish in headers.get("Connection", "").lower().split(",")}
    return "close" in wishes or (head.version == "HTTP/1.0" and "keep-alive" not in wishes)


def _cancel(timer: asyncio.TimerHandle, _done: "asyncio.Future[None]") -> None:
    timer.cancel()


def _log_access(level: int, head: RequestStartLine, response: Response, address: str, about: str) -> None:
    # Never the query: it holds nonces and challenges. ascii(): a path cannot forge a log line.
    path = ascii(head.path.partition("?")[0][:200])[1:-1]
    method, extra = ascii(head.method)[1:-1], {"request_id": about}
    log.log(level, "%s %s from %s returned %d", method, path, address, response.code, extra=extra)
