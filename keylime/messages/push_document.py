"""Documents of the push model, API 3.0: the part of JSON:API 1.1 that it uses, its times and binary values.

What is in a document's attributes is described by `push_session` and `push_attestation`.
"""

import base64
import binascii
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from keylime.errors import MalformedMessage
from keylime.messages.envelope import parse_body

CONTENT_TYPE = "application/vnd.api+json"
API_VERSION = "3.0"

AttributesT = TypeVar("AttributesT")

_MEMBER = re.compile(r"(?:@|[a-zA-Z0-9]+:)?[a-zA-Z0-9](?:[a-zA-Z0-9_-]*[a-zA-Z0-9])?")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_NULL = b"null"


class Links(msgspec.Struct, frozen=True):
    """Where a resource or document is: the path, beginning with `/v3.0/`."""

    self: str


class JsonApi(msgspec.Struct, frozen=True):
    """Which JSON:API a document is of."""

    version: str = "1.1"


class ErrorSource(msgspec.Struct, frozen=True):
    """What of a request an error is about, as a JSON pointer."""

    pointer: str


class DocumentError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One error of a document; `status` is the HTTP status as a text.

    Those of attestations have a `code`, and a `source` with 422; those of sessions and rights a `title`.
    """

    status: str
    title: str | None = None
    code: str | None = None
    detail: str | None = None
    source: ErrorSource | None = None


class ErrorDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a refusal that has one."""

    errors: list[DocumentError]
    links: Links | None = None
    jsonapi: JsonApi | None = None


class Resource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The resource of a document that is sent."""

    type: str
    id: str | None = None
    attributes: Any = None
    links: Links | None = None


class Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A document that is sent, with one resource or a list of them."""

    data: Resource | list[Resource]
    meta: Any = None
    links: Links | None = None
    jsonapi: JsonApi | None = None


class VersionMeta(msgspec.Struct, frozen=True):
    """Which version a server has."""

    version: str


class VersionDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What the root of a version says, which has no resource."""

    meta: VersionMeta
    jsonapi: JsonApi


class ReceivedResource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The resource of a request; of its attributes only the names have been looked at."""

    type: str
    id: str | None = None
    attributes: dict[str, msgspec.Raw] = {}
    links: msgspec.Raw = msgspec.Raw(b"{}")
    meta: msgspec.Raw = msgspec.Raw(b"{}")


class _ReceivedDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    data: ReceivedResource
    meta: msgspec.Raw = msgspec.Raw(b"{}")
    links: msgspec.Raw = msgspec.Raw(b"{}")
    jsonapi: msgspec.Raw = msgspec.Raw(b"{}")


def parse_request(body: bytes) -> ReceivedResource:
    """The resource in the body of a request. Raises MalformedMessage for what is no such document.

    An attribute that is null, and `attributes` without any, are no document either.
    """
    resource = parse_body(body, _ReceivedDocument).data
    attributes = resource.attributes
    if not attributes:
        raise MalformedMessage("a resource without attributes - at `$.data.attributes`")
    for name, value in attributes.items():
        if not _MEMBER.fullmatch(name):
            raise MalformedMessage("the name of an attribute is not one of JSON:API - at `$.data.attributes`")
        if bytes(memoryview(value)) == _NULL:
            raise MalformedMessage(f"null is no value - at `$.data.attributes.{name}`")
    return resource


class _Answer(msgspec.Struct, frozen=True):
    """What others may have put beside these members is not looked at."""

    data: "_AnsweredResource"
    meta: msgspec.Raw = msgspec.Raw(b"{}")


class _AnsweredResource(msgspec.Struct, frozen=True):
    type: str
    attributes: msgspec.Raw
    id: str | None = None


def parse_answer(body: bytes, kind: type[AttributesT]) -> tuple[str | None, AttributesT, msgspec.Raw]:
    """A server's answer: the resource's id, its attributes as `kind`, and `meta`. Raises MalformedMessage."""
    answer = parse_body(body, _Answer)
    return answer.data.id, parse_body(answer.data.attributes, kind), answer.meta


def parse_errors(body: bytes) -> list[DocumentError]:
    """The errors in a server's refusal; none for a body that says nothing."""
    try:
        return parse_body(body, ErrorDocument).errors
    except MalformedMessage:
        return []


def encode_document(document: Document | ErrorDocument | VersionDocument) -> bytes:
    """The body of a request or answer."""
    return msgspec.json.encode(document)


def error_document(
    status: int, code: str, detail: str, path: str, *pointers: tuple[str, str]
) -> ErrorDocument:
    """A refusal of what is about attestations; an error for each of `pointers`, with a detail of its own."""
    errors = [
        DocumentError(status=str(status), code=code, detail=text, source=ErrorSource(pointer))
        for pointer, text in pointers
    ]
    alone = DocumentError(status=str(status), code=code, detail=detail)
    return ErrorDocument(errors=errors or [alone], links=Links(path), jsonapi=JsonApi())


def format_time(moment: datetime) -> str:
    """`moment` in UTC, as it is in answers: with microseconds and an offset."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def parse_time(value: str | int | float) -> datetime:
    """A time in ISO 8601, in UTC unless it says otherwise, or in epoch seconds. Raises MalformedMessage."""
    try:
        if isinstance(value, str) and not _NUMBER.fullmatch(value):
            moment = datetime.fromisoformat(value)
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        seconds = float(value)
        if not math.isfinite(seconds):
            raise ValueError("not finite")
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise MalformedMessage("must be a valid ISO8601 datetime or Unix timestamp") from error


def encode_binary(data: bytes) -> str:
    """`data` as it is in documents: base64 with its padding."""
    return base64.b64encode(data).decode()


def decode_binary(text: str) -> bytes:
    """`text` in base64, or else in hex, where 0x may stand before it. Raises MalformedMessage."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise MalformedMessage("must be Base64 or hex encoded") from None


def attributes_as(
    attributes: Mapping[str, msgspec.Raw], name: str, kind: type[AttributesT]
) -> AttributesT | None:
    """One attribute of a request, None when it is not there. Raises MalformedMessage."""
    value = attributes.get(name)
    return None if value is None else parse_body(value, kind)
