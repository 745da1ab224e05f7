"""What an appraisal found wrong: one value for each fact, with the id that peers and policies know it by."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"

MAX_SHOWN = 4200  # characters: as long as a kernel's paths can be


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason not to accept the evidence.

    `event_id` and `context` go on the wire and into severity rules (docs/failures.md);
    the other fields are for people: what was measured, where, what was expected, by which `rule` of which
    version of a `policy` (both None when no policy can allow it), and what to do (`hint`).
    """

    event_id: str
    context: Mapping[str, JsonValue]
    recoverable: bool
    explanation: str
    path: str | None = None
    log_index: int | None = None
    observed: str | None = None
    expected: tuple[str, ...] = field(default=())
    rule: str | None = None
    policy: str | None = None
    hint: str | None = None

    @property
    def context_json(self) -> str:
        """`context` as the JSON text that revocation messages and the evidence API carry."""
        return json.dumps(self.context)


def printable(text: str) -> str:
    """`text` from the evidence, fit for a line of a log or a terminal: what is not printable is escaped.

    Of one that is longer than any path there is only the beginning.
    """
    text = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
    return text if text.isprintable() else ascii(text)[1:-1]


def policy_version(kind: str, content_hash: str) -> str:
    """How people are told which version of a policy judged: its kind, and its hash."""
    return f"{kind} {content_hash}"
