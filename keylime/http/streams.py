"""Tornado's streams, of which one that gets too long a request head can still answer.

Tornado closes a connection whose head is over the limit, without a word. Here the peer is told which part is
too long: the request line (414) or the header fields (431). Nothing is written after the last answer.
"""

import asyncio
from types import TracebackType
from typing import TypeAlias

from tornado.concurrent import Future
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError, UnsatisfiableReadError

from keylime.http.exchange import Response

_ErrorTriple: TypeAlias = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
_CloseReason: TypeAlias = bool | BaseException | _ErrorTriple | None


_DROPPED_AT_ONCE = 16  # pieces, before others have their turn
_MOST_DROPPED = 4 << 20  # bytes: who goes on sending after that does not want the answer


class AnsweringStream(IOStream):
    """A plain connection."""

    max_head = 32 << 10  # bytes
    linger_s = 1.0  # how long what follows a refused head is read and dropped
    is_in_body = False  # the head of the request that is being read is there
    _is_over = False
    _dropped = 0

    def has_arrived(self, size: int) -> bool:
        """Whether so many bytes can be read without waiting."""
        return self._read_buffer_size >= size

    def end_with_this_answer(self) -> None:
        """Drops what else comes in and what else would be written; whoever calls this closes soon.

        Reading goes on, because a connection that is closed with something unread is reset, and a reset
        overtakes the answer.
        """
        self._is_over = True
        self._read_buffer = bytearray()
        self._read_buffer_size = 0
        if not self.closed():
            self._add_io_state(self.io_loop.READ)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """As every stream does it; what comes after the last answer is not passed on."""
        count = super().read_from_fd(buf)
        for _ in range(_DROPPED_AT_ONCE):
            if not (self._is_over and count):
                break
            self._dropped += count
            count = super().read_from_fd(buf)
        if self._dropped > _MOST_DROPPED:
            return 0  # as if the peer had closed
        return None if self._is_over and count else count

    def write(self, data: bytes | memoryview) -> "Future[None]":
        """As every stream does it; what comes after the last answer is dropped."""
        if not self._is_over or self.closed():
            return super().write(data)
        dropped: Future[None] = Future()
        dropped.set_result(None)
        return dropped

    def close(self, exc_info: _CloseReason = False) -> None:
        """As every stream does it, but with an answer for a peer whose head, or line of a chunk, is long."""
        if isinstance(exc_info, UnsatisfiableReadError) and not self.closed():
            self._refuse()
        else:
            super().close(exc_info)

    def _refuse(self) -> None:
        code = 400
        head = self._read_buffer.lstrip(b"\r\n")  # line ends before the request line are tolerated
        if not self.is_in_body:
            code = 431 if 0 <= head.find(b"\n") < self.max_head else 414
        response = Response(code)
        body = b"" if head.startswith(b"HEAD ") else response.encode()
        lines = (
            f"HTTP/1.1 {response.code} {response.reason}",
            f"Content-Length: {len(body)}",
            "Content-Type: application/json",
            "Connection: close",
            "",
            "",
        )
        try:
            self.write("\r\n".join(lines).encode() + body)
        except StreamClosedError:
            return
        self.end_with_this_answer()
        asyncio.get_running_loop().call_later(self.linger_s, self.close)


class HandshakePace:
    """Lets a few handshakes go on in each round of the event loop: a rush of them stops nothing else."""

    def __init__(self, in_a_round: int = 2) -> None:
        self._in_a_round = in_a_round
        self._done = 0

    def may_go_on(self) -> bool:
        """Whether one more may take a step now; the others are asked again in the next round."""
        if not self._done:
            asyncio.get_running_loop().call_soon(self._begin_round)
        self._done += 1
        return self._done <= self._in_a_round

    def _begin_round(self) -> None:
        self._done = 0


class AnsweringTlsStream(AnsweringStream, SSLIOStream):
    """A TLS connection."""

    pace: HandshakePace | None = None

    def _do_ssl_handshake(self) -> None:
        # What is not done now stays readable, and so comes again.
        if self.pace is None or self.pace.may_go_on():
            super()._do_ssl_handshake()
