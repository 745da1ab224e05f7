"""Runtime policies, exclude lists and findings in files that options name."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from keylime.documents.dsse import is_envelope, open_envelope
from keylime.documents.patterns import parse_pattern
from keylime.documents.strict_json import load_document
from keylime.errors import ConfigError, PolicyError
from keylime.ima.allowlist import (
    convert_allowlist,
    is_json_allowlist,
    numbered_excludes,
    unread_members,
    upgrade_runtime_policy,
)
from keylime.ima.runtime_policy import RuntimePolicy, parse_runtime_policy
from keylime.messages.verifier import FindingSummary
from keylime_policy.files import read_text
from keylime_policy.messages import Messages
from keylime_policy.sources import blaming

_MAX_DEPTH = 40
_LISTED = re.compile(r"\\?([a-z0-9_-]+:)?[0-9A-Fa-f]{32,}\s")


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A runtime policy, the text that has it, and whether that stands in the file as it is."""

    policy: RuntimePolicy
    text: str
    is_signed: bool

    @property
    def lines(self) -> str | None:
        """The text whose lines are the file's."""
        return None if self.is_signed else self.text


def load_policy(option: str, path: str) -> LoadedPolicy:
    """The current runtime policy in a file, plain or signed (nobody checks by whom). Raises ConfigError."""
    text = read_text(option, path)
    with blaming(option, path):
        payload, is_signed = open_envelope(text), is_envelope(text)
    with blaming(option, path, None if is_signed else text):
        return LoadedPolicy(parse_runtime_policy(payload), payload, is_signed)


def load_any_policy(
    option: str, path: str, *, timestamp: str | None = None, messages: Messages | None = None
) -> str:
    """The current runtime policy, as JSON text, that a file of any form stands for. Raises ConfigError.

    A runtime policy of any version, plain or signed, or an allowlist in lines or JSON. `messages` warn of
    what is not taken.
    """
    text = read_text(option, path)
    if not text.lstrip().startswith("{"):
        with blaming(option, path):
            return _of_lines(text, timestamp)
    with blaming(option, path):
        payload, is_signed = open_envelope(text), is_envelope(text)
    with blaming(option, path, None if is_signed else text):
        document = load_document(payload, "the policy")
        if messages is not None:
            messages.warnings(f"{option} {path}: {words}" for words in unread_members(payload))
        if is_json_allowlist(document):
            return convert_allowlist(payload, timestamp=timestamp)
        return upgrade_runtime_policy(payload, timestamp=timestamp)


def _of_lines(text: str, timestamp: str | None) -> str:
    converted = convert_allowlist(text, timestamp=timestamp)
    policy = parse_runtime_policy(converted)
    if not policy.digests and not policy.keyrings:
        raise PolicyError("has no line of digest and path: is it an allowlist?")
    return converted


def is_allowlist(text: str) -> bool:
    """Whether the first line that says something begins with a digest."""
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and not line.startswith("#")), "")
    return _LISTED.match(first) is not None


def load_excludes(option: str, path: str) -> list[str]:
    """The expressions of an exclude list, one on a line. Raises ConfigError, which names the line."""
    expressions = []
    for number, expression in numbered_excludes(read_text(option, path)):
        try:
            parse_pattern(expression)
        except PolicyError as error:
            raise ConfigError(f"{option} {path} line {number}: {error}") from error
        expressions.append(expression)
    return expressions


def load_findings(option: str, path: str) -> list[FindingSummary]:
    """All findings in a JSON document, wherever they stand in it. Raises ConfigError.

    That is what `keylime-policy check --json` and `keylime_tenant --json -c cvstatus` print.
    """
    text = read_text(option, path)
    with blaming(option, path):
        document = load_document(text, "the file")
        found = list(_findings(document, 0))
    if not found:
        raise ConfigError(
            f"{option} {path}: has no findings; give the output of `keylime-policy check --json`, "
            "or of `keylime_tenant --json -c cvstatus`"
        )
    return found


def _findings(value: Any, depth: int) -> Iterator[FindingSummary]:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, dict) and {"event_id", "explanation"} <= value.keys():
        try:
            yield msgspec.convert({"severity": "", **value}, FindingSummary)
        except msgspec.ValidationError as error:
            raise PolicyError(f"a finding in it cannot be read: {error}") from error
        return
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for member in members:
        yield from _findings(member, depth + 1)
