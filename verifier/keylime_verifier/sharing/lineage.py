"""Notices that a database does not go on from where it was: a standby took over, or a backup was restored.

What was committed last may then be gone, and nobody was told. PostgreSQL begins a new timeline at every
promotion and names every cluster, servers of MariaDB have names; where nothing tells (SQLite, missing
permissions), and for copies that keep all that, there is the number of the last renewal, which each process
knows of itself. Pure: the database is asked by `lineage_query`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lineage:
    """Which cluster or server a database belongs to, and after how many promotions; None: it is not known."""

    system: int | str | None = None
    timeline: str | None = None

    def continues(self, before: "Lineage") -> bool:
        """False when something that both know is different."""
        pairs = ((self.system, before.system), (self.timeline, before.timeline))
        return all(now is None or then is None or now == then for now, then in pairs)


@dataclass(frozen=True, slots=True)
class Renewals:
    """A member's own counter as it should be found: the last one that was confirmed, or tried since then."""

    confirmed: int | None = None
    tried: int = 0

    @property
    def following(self) -> "Renewals":
        """As another renewal is tried: each has a number of its own, so that none is taken for another."""
        return Renewals(self.confirmed, self.tried + 1)

    @property
    def succeeded(self) -> "Renewals":
        """As the last one that was tried is confirmed."""
        return Renewals(self.tried, self.tried)

    def explains(self, found: int | None) -> bool:
        """Whether the counter that is `found` (None: no such member) can be what we left there."""
        if self.confirmed is None:
            return found is None or found <= self.tried
        return found is not None and self.confirmed <= found <= self.tried
