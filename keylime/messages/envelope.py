"""The JSON envelope around every answer: `{"code": 200, "status": "Success", "results": {...}}`."""

from typing import Any, TypeVar

import msgspec

from keylime.errors import MalformedMessage

BodyT = TypeVar("BodyT")


class Envelope(msgspec.Struct, frozen=True):
    """An answer whose results are not looked at yet; peers may send null, or none, when empty."""

    code: int
    status: str = ""
    results: msgspec.Raw = msgspec.Raw(b"{}")


def parse_envelope(body: bytes) -> Envelope:
    """The envelope in `body`. Raises MalformedMessage."""
    return parse_body(body, Envelope)


def parse_body(body: bytes | msgspec.Raw, kind: type[BodyT]) -> BodyT:
    """`body` as a message of type `kind`. Raises MalformedMessage, whose text names the field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(str(error)) from error


def parse_results(body: bytes, kind: type[BodyT]) -> BodyT:
    """The `results` of an answer as `kind`. Raises MalformedMessage."""
    return parse_body(parse_envelope(body).results, kind)


def encode_envelope(code: int, status: str, results: Any) -> bytes:
    """An answer's body; `results` is anything msgspec encodes (a message, a dictionary, None)."""
    return msgspec.json.encode({"code": code, "status": status, "results": results})
