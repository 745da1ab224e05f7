"""One HTTP request and its answer as handlers see them: parsed, frozen, with the caller already known."""

import enum
import http
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from keylime.errors import KeylimeError
from keylime.http.sources import source_prefixes
from keylime.messages.envelope import encode_envelope, parse_body

BodyT = TypeVar("BodyT")

# Bytes of an answer that are made before any of them is sent, and its length is not known; and after that.
_MOST_HELD = 4 << 20
_PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
_PART = 256 << 10


class Role(enum.Enum):
    """What a route demands of its caller, and what a caller was found to be."""

    ANONYMOUS = enum.auto()
    ADMIN = enum.auto()
    # Who shows a token, which the route's handler looks at: it is known to a database alone.
    AGENT = enum.auto()
    AGENT_OR_ADMIN = enum.auto()


class Caller(msgspec.Struct, frozen=True):
    """Who asks: `name` is an administrator's common name, `address` the peer's IP address.

    `certificate` is what a log calls an administrator: the certificate's subject and serial number.
    """

    role: Role
    name: str | None
    address: str
    certificate: str = ""

    def __str__(self) -> str:
        return self.certificate or self.name or self.address

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What a stranger is counted under, narrowest first."""
        return source_prefixes(self.address)


class Request(msgspec.Struct, frozen=True):
    """A routed, authorised request; `parameters` are the path's, percent-decoded, agent ids checked."""

    method: str
    version: str | None  # "2.5"; the newest one when the path says only /v2/; None on unversioned routes
    parameters: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    caller: Caller

    def json(self, kind: type[BodyT]) -> BodyT:
        """The body as a message of type `kind`, whatever its Content-Type says. Raises MalformedMessage."""
        return parse_body(self.body, kind, is_trusted=self.caller.role is Role.ADMIN)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. `status` defaults to "Success" for 200 and to the reason phrase for other codes."""

    code: int = 200
    results: object = field(default_factory=dict)
    status: str | None = None
    empty: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    document: object = None  # a whole body that takes the place of the envelope
    raw: bytes | None = None  # the same, encoded
    rest: AsyncGenerator[bytes, None] | None = None  # what follows `raw`, if that is only the beginning

    @classmethod
    async def of_many(cls, members: AsyncIterator[tuple[str, object]]) -> "Response":
        """A success whose results are an object with these members; of a long one only a part is held.

        What goes wrong with one of the first members is raised here; later it cuts the answer off.
        """
        parts = _encoded_in_parts(members)
        held = bytearray()
        async for part in parts:
            held += part
            if len(held) >= _MOST_HELD:
                return cls(raw=bytes(held), rest=parts)
        return cls(raw=bytes(held))

    @property
    def reason(self) -> str:
        """The phrase of the HTTP status line."""
        return reason_phrase(self.code) or "Unknown"

    def encode(self) -> bytes:
        """The body's bytes."""
        if self.empty:
            return b""
        if self.raw is not None:
            return self.raw
        if self.document is not None:
            return msgspec.json.encode(self.document)
        status = self.status if self.status is not None else "Success" if self.code == 200 else self.reason
        return encode_envelope(self.code, status, self.results)


def reason_phrase(code: int) -> str | None:
    """The phrase of a status that is known."""
    return _PHRASES.get(code)


async def _encoded_in_parts(members: AsyncIterator[tuple[str, object]]) -> AsyncGenerator[bytes, None]:
    part = bytearray(encode_envelope(200, "Success", {})[:-2])
    separator = b""
    async for name, value in members:
        part += separator + msgspec.json.encode(name) + b":" + msgspec.json.encode(value)
        separator = b","
        if len(part) >= _PART:
            yield bytes(part)
            part.clear()
    yield bytes(part) + b"}}"


class HttpError(KeylimeError):
    """What a handler raises to answer with an error: the HTTP `code` and the envelope's `status`.

    `retry_after_s`, in seconds, becomes the header Retry-After; with 429 and 503 it says when to come back.
    """

    def __init__(self, code: int, status: str | None = None, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code} {status or ''}".rstrip())
        self.code = code
        self.status = status
        self.retry_after_s = retry_after_s

    def response(self) -> "Response":
        """The answer that says so."""
        headers = {} if self.retry_after_s is None else retry_after(self.retry_after_s)
        return Response(self.code, status=self.status, headers=headers)


def retry_after(seconds: float) -> dict[str, str]:
    """The header that asks a peer to stay away for so long: whole seconds, at least one."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def refusal(code: int, detail: str) -> Response:
    """A 401 or 403 in the shape that clients expect of the authorisation layer, which is not the envelope."""
    response = Response(code)
    error = {"status": str(code), "title": response.reason, "detail": detail}
    return Response(code, document={"errors": [error]})
