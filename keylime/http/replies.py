"""What HTTP clients make of answers: the envelope read, hostile texts made printable, one line in the log."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from keylime.errors import MalformedMessage, UnusableAnswer
from keylime.http.exchange import reason_phrase
from keylime.http.peer_text import printable
from keylime.messages.envelope import parse_body, parse_envelope

Admit: TypeAlias = Callable[[int], bool]
"""Whether an answer of so many bytes may be read now."""

DEFAULT_MAX_BODY = 16 << 20  # bytes
HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}
_LONGEST_ERROR = 64 << 10  # bytes; longer ones are not searched for a reason
_EMPTY = msgspec.Raw(b"{}")


def peer_url(host: str, port: int, *, tls: bool) -> str:
    """The base URL of a peer; an IPv6 address is bracketed."""
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{'https' if tls else 'http'}://{name}:{port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A peer's answer as it came: HTTP status, headers (whose names are found in any case), body."""

    code: int
    headers: Mapping[str, str]
    content: bytes | bytearray


@dataclass(frozen=True, slots=True)
class Reply:
    """A peer's answer: HTTP status, the envelope's text (fit for a log), and its results, still JSON."""

    code: int
    status: str
    results: msgspec.Raw

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.code < 300


def log_call(log: logging.Logger, method: str, target: str, code: int, about: str, *, is_news: bool) -> None:
    """One line for each side. Never the query: it holds nonces."""
    level = logging.INFO if is_news else logging.DEBUG
    if log.isEnabledFor(level):
        log.log(level, "%s %s returned %d", method, target, code, extra={"request_id": about})


def read_reply(code: int, data: bytes | bytearray, url: str, *, is_trusted: bool) -> Reply:
    """What a server answered with a status and a body; `is_trusted` as in `parse_body`.

    Raises UnusableAnswer for a success that is not an envelope.
    """
    phrase = reason_phrase(code) or str(code)
    if 200 <= code < 300 and not data:
        # Verifiers answer deleted policies (204) without a body.
        return Reply(code, phrase, _EMPTY)
    try:
        envelope = parse_envelope(data, is_trusted=is_trusted)
    except MalformedMessage as error:
        if 200 <= code < 300:
            raise UnusableAnswer(f"{url}: the answer is not an envelope: {error}") from error
        # Errors often come without an envelope: empty, or from the layer that checks rights.
        return Reply(code, printable(_first_detail(data) or phrase), _EMPTY)
    # Agents of the Rust line send null where there are no results.
    beginning = bytes(memoryview(envelope.results)[:8])  # no copy of the whole, which may be long
    results = _EMPTY if beginning.strip() == b"null" else envelope.results
    return Reply(code, printable(envelope.status or phrase), results)


class _ErrorDetail(msgspec.Struct, frozen=True):
    detail: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: list[_ErrorDetail]


def _first_detail(data: bytes | bytearray) -> str:
    if len(data) > _LONGEST_ERROR:
        return ""
    try:
        errors = parse_body(data, _Errors).errors
    except MalformedMessage:
        return ""
    return errors[0].detail if errors else ""
