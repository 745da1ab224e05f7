"""What an appraisal may conclude. A machine that cannot be reached, and our own defects, are not verdicts."""

from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from keylime.appraisal.checkpoint import Checkpoint
from keylime.findings.finding import Finding


class AcceptedQuote(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of an accepted quote that an agent's status shows."""

    hash_alg: str
    encryption_alg: str
    signing_alg: str
    ima_entries: int = 0
    ima_violations: int = 0
    ima_excluded: int = 0


class Accepted(msgspec.Struct, frozen=True):
    """Every check passed; `checkpoint` is what is proven now, `notes` are for the log."""

    checkpoint: Checkpoint
    quote: AcceptedQuote
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """The machine is not what its owner approved, or its evidence does not hold; why is in `findings`.

    Of very many findings the first ones are kept; `omitted` is how many more there were.
    """

    findings: tuple[Finding, ...]
    checkpoint: Checkpoint
    omitted: int = 0

    @property
    def recoverable(self) -> bool:
        """Whether later evidence could still be accepted without an operator's act."""
        return all(finding.recoverable for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Incomplete:
    """The evidence is genuine but does not suffice: ask again at once, for the key and the whole list."""

    reason: str
    checkpoint: Checkpoint


Verdict: TypeAlias = Accepted | Rejected | Incomplete
