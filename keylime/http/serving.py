"""One request on a server's connection, from its first line to the last byte of its answer."""

import asyncio
import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)

from keylime.errors import MalformedMessage, PolicyError, ServiceUnavailable
from keylime.http.connections import Connection, Phase
from keylime.http.exchange import HttpError, Response
from keylime.http.routing import Admission, Router

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 5.0
_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_LENGTH = re.compile(r"[0-9]{1,18}")
_NOT_WORD = re.compile(r"\W", re.ASCII)


@dataclass(frozen=True, slots=True)
class Limits:
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
    max_connections: int = 4096
    max_connections_per_address: int = 512


class Host(Protocol):
    """What an exchange needs of its server."""

    limits: Limits
    router: Router
    draining: bool
    exchanges: "set[Exchange]"


async def respond(admission: Admission, headers: Mapping[str, str], body: bytes) -> tuple[Response, bytes]:
    """The answer of the route's handler, whatever it raises, and its encoded body."""
    route = admission.route
    try:
        response = await route.handler(admission.request(headers, body))
        return response, response.encode()
    except HttpError as error:
        response = error.response()
    except ServiceUnavailable as error:
        log.error("%s %s: %s", route.method, route.path, error)
        response = HttpError(503, error.public, retry_after_s=_RETRY_AFTER_S).response()
    except (MalformedMessage, PolicyError) as error:
        response = Response(400, status=str(error))
    except Exception:
        # Our defect: the peer learns that much and no more.
        log.exception("%s %s failed", route.method, route.path)
        response = Response(500)
    return response, response.encode()


class Exchange(HTTPMessageDelegate):
    """One request and its answer: refused as early as its headers allow, else collected and handled."""

    def __init__(self, host: Host, conn: HTTP1Connection, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        self.task: asyncio.Task[None] | None = None
        self.over: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._host = host
        self._conn = conn
        self._connection = connection
        self._head = RequestStartLine("", "", "")
        self._headers = HTTPHeaders()
        self._verdict: Admission | Response = Response(400, empty=True)
        self._max_body = 0
        self._body = bytearray()
        self._cut_short: asyncio.Future[None] | None = None  # done when the answer to half a request is out
        self._linger: asyncio.TimerHandle | None = None

    # What tornado calls, in this order.

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> None:
        """Decides about the request before any of its body is read."""
        self._connection.phase = Phase.RECEIVING
        self._connection.params.header_timeout = self._host.limits.idle_timeout_s
        self._host.exchanges.add(self)
        body_follows = _check_framing(headers)
        if not isinstance(start_line, RequestStartLine):
            raise HTTPInputError("not a request")
        self._head, self._headers = start_line, headers
        self._verdict = self._judge()
        if isinstance(self._verdict, Response) and body_follows:
            self._answer_early(self._verdict)

    def data_received(self, chunk: bytes) -> None:
        """Collects a piece of the body, or drops it when the answer is already known."""
        if self._cut_short is not None:
            return
        if len(self._body) + len(chunk) > self._max_body:
            self._body.clear()
            self._answer_early(Response(413))
            return
        self._body += chunk

    def finish(self) -> None:
        """The request is complete."""
        if self._cut_short is not None:
            self._hang_up()
        elif isinstance(self._verdict, Response):
            self._send(self._verdict, self._verdict.encode())
        else:
            self._connection.phase = Phase.ANSWERING
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
        return Response(413) if int(self._headers.get("Content-Length", "0")) > self._max_body else verdict

    async def _serve(self, admission: Admission) -> None:
        response, body = await respond(admission, self._headers, bytes(self._body))
        self._body.clear()
        self._send(response, body)

    def _served(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():  # the server stops and waited long enough
            self._connection.close()
            self._end()
        elif (error := task.exception()) is not None:
            log.error("%s could not be answered", self._head.method, exc_info=error)
            self._connection.close()
            self._end()

    def _answer_early(self, response: Response) -> None:
        written = self._write(response, response.encode(), close=True)
        self._cut_short = written
        if written is None:
            self._end()
        elif "Expect" in self._headers:  # the peer waits for leave to send its body
            self._hang_up()
        else:
            self._linger = self._loop.call_later(self._host.limits.linger_s, self._hang_up)

    def _hang_up(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
        if self._cut_short is not None:
            self._conn.finish()
            self._cut_short.add_done_callback(lambda _: self._connection.close())
        self._end()

    def _send(self, response: Response, body: bytes) -> None:
        is_last = self._host.draining or self._connection.is_retired
        written = self._write(response, body, close=is_last)
        if written is None:
            self._end()
            return
        self._conn.finish()
        written.add_done_callback(functools.partial(self._sent, is_last=is_last))

    def _sent(self, _written: "asyncio.Future[None]", *, is_last: bool) -> None:
        if is_last:
            self._connection.close()
        self._end()

    def _write(self, response: Response, body: bytes, *, close: bool) -> "asyncio.Future[None] | None":
        _log_access(self._head, response, self._connection.address)
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
        headers = HTTPHeaders({"Content-Length": str(len(body))})
        if body:
            headers["Content-Type"] = "application/json"  # without a charset, as clients of the field expect
        request_id = _NOT_WORD.sub("", self._headers.get("X-Request-Id", ""))[:36]
        if request_id:
            headers["X-Request-Id"] = request_id
        for name, value in response.headers.items():
            headers[name] = value
        return headers

    def _end(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self._host.exchanges.discard(self)
        self._connection.phase = Phase.IDLE
        self._connection.idle()
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


def _cancel(timer: asyncio.TimerHandle, _done: "asyncio.Future[None]") -> None:
    timer.cancel()


def _log_access(head: RequestStartLine, response: Response, address: str) -> None:
    # Never the query: it holds nonces and challenges. ascii(): a path cannot forge a log line.
    level = logging.DEBUG if head.method == "GET" and response.code < 400 else logging.INFO
    path = ascii(head.path.partition("?")[0][:200])[1:-1]
    log.log(level, "%s %s from %s returned %d", ascii(head.method)[1:-1], path, address, response.code)
