"""What the checks of a process came to, and who can be asked for it. Pure: `health` has the checks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What is wrong, by the name of the check; empty when all is well. Remarks are about what will be."""

    problems: Mapping[str, str]
    remarks: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether no check failed."""
        return not self.problems


class Checks(Protocol):
    """The checks of one process."""

    async def alive(self) -> HealthReport:
        """Those alone that only a new start helps."""
        ...

    async def ready(self) -> HealthReport:
        """All of them."""
        ...
