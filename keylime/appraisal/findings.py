"""What an appraisal found wrong: one value for each fact, with the id that peers and policies know it by."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason not to accept the evidence.

    `event_id` and `context` go on the wire and into severity rules (Keylime's failure-event catalogue);
    the other fields are for people: what was measured, where, what was expected, and what to do.
    """

    event_id: str
    context: Mapping[str, JsonValue]
    recoverable: bool
    explanation: str
    path: str | None = None
    log_index: int | None = None
    observed: str | None = None
    expected: tuple[str, ...] = field(default=())

    @property
    def context_json(self) -> str:
        """`context` as the JSON text that revocation messages and the evidence API carry."""
        return json.dumps(self.context)
