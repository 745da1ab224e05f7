"""The JSON envelope around every answer: `{"code": 200, "status": "Success", "results": {...}}`."""

from typing import Any, TypeVar

import msgspec

from keylime.errors import MalformedMessage
from keylime.nesting import MAX_DEPTH, MOST_BRACKETS, has_too_many, is_too_deep

BodyT = TypeVar("BodyT")


class Envelope(msgspec.Struct, frozen=True):
    """An answer whose results are not looked at yet; peers may send null, or none, when empty."""

    code: int
    status: str = ""
    results: msgspec.Raw = msgspec.Raw(b"{}")


MAX_STATUS = 64 << 10  # bytes


class _RawEnvelope(msgspec.Struct, frozen=True):
    code: msgspec.Raw
    status: msgspec.Raw = msgspec.Raw(b'""')
    results: msgspec.Raw = msgspec.Raw(b"{}")


def parse_envelope(body: bytes | bytearray, *, is_trusted: bool = False) -> Envelope:
    """The envelope in `body`, whose results may be as long as they are. Raises MalformedMessage."""
    if len(body) <= MAX_STATUS:  # and so is each of its fields
        return parse_body(body, Envelope, is_trusted=is_trusted)
    raw = parse_body(body, _RawEnvelope, is_trusted=is_trusted)
    for name in ("code", "status"):
        size = len(memoryview(getattr(raw, name)))
        if size > MAX_STATUS:
            raise MalformedMessage(f"a field of {size} bytes, at most {MAX_STATUS} are read - at `$.{name}`")
    head = parse_body(b'{"code":%s,"status":%s}' % (bytes(raw.code), bytes(raw.status)), Envelope)
    return Envelope(head.code, head.status, raw.results)


def parse_body(
    body: bytes | bytearray | msgspec.Raw, kind: type[BodyT], *, is_trusted: bool = False
) -> BodyT:
    """`body` as a message of type `kind`. Raises MalformedMessage, whose text names the field.

    Those who are trusted, administrators and services, may send what costs much to look at.
    """
    # What is Raw was a part of a body that was looked at.
    if not isinstance(body, msgspec.Raw):
        if not is_trusted and has_too_many(body):
            raise MalformedMessage(f"more than {MOST_BRACKETS} brackets")
        if is_too_deep(body):
            raise MalformedMessage(f"more than {MAX_DEPTH} arrays and objects within each other")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(str(error)) from error


def encode_envelope(code: int, status: str, results: Any) -> bytes:
    """An answer's body; `results` is anything msgspec encodes (a message, a dictionary, None)."""
    return msgspec.json.encode({"code": code, "status": status, "results": results})
