"""The column that names the runtime policies of an agent that has several. Pure: text and records."""

from collections.abc import Sequence

import msgspec

from keylime_verifier.agents.records import PolicyPart


def encode_parts(parts: Sequence[PolicyPart]) -> str | None:
    """The column of an agent's runtime policies, None where there is no more than one."""
    return msgspec.json.encode(parts).decode() if parts else None


def decode_parts(text: str | None) -> tuple[PolicyPart, ...]:
    """What `encode_parts` has made. Raises msgspec.DecodeError."""
    return msgspec.json.decode(text, type=tuple[PolicyPart, ...]) if text else ()
