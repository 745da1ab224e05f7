"""Who is alive: a member is as long as its counter of renewals moves, by the clock of whoever watches it.

No clock is compared with another one, so none can be wrong. Decisions only; `membership` looks and acts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from keylime_verifier.agents.shards import MemberId

_LOOKED_OFTEN_ENOUGH = 1 / 2  # of a lease: others have renewed theirs once in it, if they could
_COUNTED_ELSE = 1 / 4


@dataclass(frozen=True, slots=True)
class Pulse:
    """What moves with every renewal of a member, and how long others wait for it to move."""

    renewals: int
    lease_s: float
    expires_at: float | None = None  # moved in place of the counter by the release before


@dataclass(frozen=True, slots=True)
class _Seen:
    pulse: Pulse
    silent_s: float
    is_at_work: bool


@dataclass(frozen=True, slots=True)
class Watch:
    """For how long each member's pulse has stood still while one watcher looked.

    A time during which the watcher could not look is nobody's silence: most likely the others could not renew
    either. After one in which it lost its own lease, and at the beginning, everybody has a whole lease.
    """

    looked_at: float | None = None
    _seen: Mapping[MemberId, _Seen] = field(default_factory=dict)

    def look(self, pulses: Mapping[MemberId, Pulse], *, at: float, lease_s: float) -> Self:
        """The watch after `pulses` were read at `at`, by the watcher's clock; `lease_s` is its own lease."""
        gap_s = None if self.looked_at is None else at - self.looked_at
        is_unbroken = gap_s is not None and 0 <= gap_s < lease_s
        seen = {}
        for member, pulse in pulses.items():
            known = self._seen.get(member) if is_unbroken else None
            if gap_s is None or known is None or known.pulse != pulse:
                # A row that appears, like one that moves, was written just now; others may be old.
                seen[member] = _Seen(pulse, 0.0, is_unbroken)
            else:
                counted_s = gap_s if gap_s <= _LOOKED_OFTEN_ENOUGH * lease_s else _COUNTED_ELSE * lease_s
                seen[member] = replace(known, silent_s=known.silent_s + counted_s)
        return type(self)(at, seen)

    def silent_s(self, member: MemberId) -> float:
        """For how long a member has not renewed its lease, up to the last look."""
        seen = self._seen.get(member)
        return 0.0 if seen is None else seen.silent_s

    def at_work(self) -> frozenset[MemberId]:
        """The members that were seen to renew their leases or to join."""
        return frozenset(member for member, seen in self._seen.items() if seen.is_at_work) - self.silent()

    def silent(self) -> frozenset[MemberId]:
        """The members whose leases have ended."""
        return frozenset(member for member, seen in self._seen.items() if seen.silent_s >= seen.pulse.lease_s)
