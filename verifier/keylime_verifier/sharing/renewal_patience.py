"""How long a renewal of the lease may wait for the database: longer after two in vain. Decisions only."""

from dataclasses import dataclass, replace
from typing import Self

from keylime.patience import OWN_WORK_S

_FIRST = 0.6  # of a lease
_LEAST_S = 2.0
_MOST = 2.0  # leases
_GROWTH = 1.5


@dataclass(frozen=True, slots=True)
class RenewalPatience:
    """The limit for each wait of the next renewal.

    One that hangs on a dead connection is given up and another one has succeeded before two leases are over.
    Where two in a row were given up, it may be that the machine or the database is just that slow: then the
    same limit would cut off every renewal for ever. When the lease ends does not depend on it: a lease is
    counted from the beginning of the renewal that succeeded.
    """

    lease_s: float
    failures: int = 0

    @property
    def limit_s(self) -> float:
        """Seconds."""
        first_s = max(_LEAST_S, _FIRST * self.lease_s)
        most_s = max(first_s, min(_MOST * self.lease_s, OWN_WORK_S))
        return float(min(first_s * _GROWTH ** min(max(self.failures - 1, 0), 16), most_s))

    def after(self, *, success: bool) -> Self:
        """What the renewal after this one is granted."""
        return replace(self, failures=0 if success else self.failures + 1)
