"""Reads one HTTP/1.1 answer as its bytes come in, bounded in everything: head, body, and what is neither.

llhttp does the reading, in its strict mode. Nothing is kept but the body, whose length is asked for before it
is read.
"""

import httptools

from keylime.errors import AnswerPutOff, UnusableAnswer
from keylime.http.replies import Admit

# Bytes in a row that bring the body no further: a head, trailers, or the framing of chunks.
LONGEST_HEAD = 32 << 10
_NO_BODY = frozenset({204, 304})


class AnswerParser:
    """One answer to one request, which was not a HEAD.

    `status` is 0 until the head is there. Any exception means that the connection is of no further use.
    """

    def __init__(self, most: int, admit: Admit | None = None) -> None:
        """A body may have `most` bytes; whether it may be so long now is asked of `admit` before it is."""
        self.status = 0
        self.is_complete = False
        self._most = most
        self._admit = admit
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._size = 0  # of what is there of the body
        self._admitted = 0
        self._announced: int | None = None
        self._is_chunked = False
        self._is_compressed = False
        self._without_body = 0  # bytes since the last that belong to the body
        self._keeps_alive = False
        self._has_surplus = False
        self._refusal: Exception | None = None

    @property
    def has_begun(self) -> bool:
        """Whether anything has come."""
        return bool(self.status or self._without_body)

    @property
    def body(self) -> bytearray:
        """What there is of the body; all of it once the answer is complete."""
        del self._body[self._size :]
        return self._body

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection may be used for another request; known once the answer is complete."""
        return self._keeps_alive and not self._has_surplus

    def release(self) -> None:
        """Lets go of the parser, which holds on to this object as this one to it: for the end."""
        self._parser = None

    def feed(self, data: bytes) -> bool:
        """Takes in what has come; whether the answer is complete.

        Raises UnusableAnswer for what is no HTTP, or too much of it, and AnswerPutOff.
        """
        before = self._size
        parser = self._parser
        if parser is None:
            raise UnusableAnswer("there is more after the answer")
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            raise UnusableAnswer("answered with another protocol") from error
        except httptools.HttpParserError as error:
            if self._refusal is not None:
                raise self._refusal from None
            if not self.is_complete:  # else it is what came after the answer
                raise UnusableAnswer(_complaint(error, self.status)) from error
            self._has_surplus = True
        self._without_body = 0 if self._size > before else self._without_body + len(data)
        if not self.is_complete and self._without_body > LONGEST_HEAD:
            what = "the headers are" if not self.status else "what surrounds the body is"
            raise UnusableAnswer(f"{what} longer than {LONGEST_HEAD} bytes")
        return self.is_complete

    def end(self) -> bool:
        """Takes note that the peer has closed the connection; whether the answer is complete.

        Servers that speak HTTP/1.0 end bodies in this way. Raises UnusableAnswer for half an answer.
        """
        if self.status and not self._is_chunked and self._announced is None:
            self._has_surplus = self.is_complete = True
        if not self.is_complete and self.has_begun:
            raise UnusableAnswer("the connection was closed in the middle of the answer")
        return self.is_complete

    # What llhttp calls. An exception ends the reading; the parser has another one in its place.

    def on_message_begin(self) -> None:
        """Another answer, which nobody has asked for, is left alone."""
        self._has_surplus = self.is_complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or trailer."""
        if self.status or self.is_complete:
            return
        name = name.lower()
        if name == b"content-length":
            self._announced = int(value)
        elif name == b"transfer-encoding":
            self._is_chunked = True
        elif name == b"content-encoding":
            self._is_compressed = value.strip().lower() != b"identity"

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self.is_complete:
            return
        self.status = self._parser.get_status_code() if self._parser is not None else 0
        if not 200 <= self.status < 300 and self.status < 400:
            kind = "a redirect" if self.status >= 300 else "what is no final answer"
            self._refuse(UnusableAnswer(f"answered with {kind} ({self.status})"))
        if self._is_compressed:
            self._refuse(UnusableAnswer("answered with a compressed body"))
        if self.status in _NO_BODY:
            self._announced = 0
        # Where it is known how much will come, nothing is moved about while it does.
        announced = self._announced or 0
        self._permit(announced)
        self._body = bytearray(announced)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self.is_complete:
            return
        end = self._size + len(data)
        if end > self._admitted:  # it did not say how much there is; small steps would ask for ever
            self._permit(max(end, min(2 * self._admitted, self._most)))
        self._body[self._size : end] = data
        self._size = end

    def on_message_complete(self) -> None:
        """The body is there."""
        if not self.is_complete and self._parser is not None:
            self._keeps_alive = self._parser.should_keep_alive()
        self.is_complete = True

    def _permit(self, size: int) -> None:
        if size > self._most:
            self._refuse(UnusableAnswer(f"the answer is larger than {self._most} bytes"))
        if self._admit is not None and not self._admit(size):
            self._refuse(AnswerPutOff(size))
        self._admitted = size

    def _refuse(self, error: Exception) -> None:
        self._refusal = error
        raise error


def _complaint(error: httptools.HttpParserError, status: int) -> str:
    if isinstance(error, httptools.HttpParserInvalidStatusError) or not status:
        return f"Bad status line or headers: {error}"
    return f"the answer is no HTTP: {error}"
