"""Which members have died, as one process sees them on its own clock, and what they leave behind. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from keylime_verifier.agents.shards import MemberId
from keylime_verifier.sharing.ownership import fair_share

_FORGET_AFTER_S = 3600.0
# For members of other groups, whose leases are not known; but all share the counters of changes.
_OTHERS_S = 600.0


@dataclass(frozen=True, slots=True)
class Sign:
    """What a member shows of itself, None when its row is gone, and for how long it was seen so."""

    mark: float | None
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SignsOfLife:
    """The members as one process has seen them; each look makes the next one. Times are of its own clock."""

    signs: Mapping[MemberId, Sign] = field(default_factory=dict)
    looked_at: float | None = None

    def after(self, shown: Mapping[MemberId, float], now: float, most_s: float) -> "SignsOfLife":
        """With what is `shown` now.

        From one look to the next no more than `most_s` counts: while nobody could look, nobody could renew.
        """
        passed_s = 0.0 if self.looked_at is None else min(now - self.looked_at, most_s)
        signs = {}
        for member in self.signs.keys() | shown.keys():
            before, mark = self.signs.get(member), shown.get(member)
            is_same = before is not None and before.mark == mark
            sign = Sign(mark, before.silent_s + passed_s) if before is not None and is_same else Sign(mark)
            if sign.mark is not None or sign.silent_s < _FORGET_AFTER_S:
                signs[member] = sign
        return SignsOfLife(signs, now)

    def silent(self, limit_s: float) -> frozenset[MemberId]:
        """Those that have shown no sign of life for `limit_s`."""
        return frozenset(member for member, sign in self.signs.items() if sign.silent_s >= limit_s)


def missing_shards(
    me: MemberId,
    silent: Collection[MemberId],
    known: Collection[MemberId],
    owned: Mapping[MemberId | None, int],
) -> int:
    """How many more shards `me` should have: they belong to nobody, or to members that are silent."""
    living = set(known) - set(silent)
    free = sum(count for owner, count in owned.items() if owner not in living and owner != me)
    return max(0, min(fair_share(me, living) - owned.get(me, 0), free))


def taken_for_dead(
    ours: SignsOfLife, others: SignsOfLife, me: MemberId, *, lease_s: float, within_s: float
) -> frozenset[MemberId]:
    """Who of our group, and of `others`, is taken for dead, or will be in `within_s` seconds; never `me`."""
    silent = ours.silent(2 * lease_s - within_s) - {me}
    return silent | others.silent(max(_OTHERS_S, 2 * lease_s) - within_s)


def lease_problem(signs: SignsOfLife, me: MemberId, now: float, limit_s: float) -> str | None:
    """What is wrong with the lease of `me`, which has to move within `limit_s`."""
    if signs.looked_at is None or now - signs.looked_at >= limit_s:
        return "not reached for a lease, others may look after the agents: see to the database"
    sign = signs.signs.get(me)
    if sign is None or sign.mark is None or sign.silent_s >= limit_s:
        return "the lease has ended, others look after the agents: see to the database"
    return None


@dataclass(frozen=True, slots=True)
class ShardGap:
    """How many shards that nobody looks after `me` should have, and since when there are any."""

    shards: int = 0
    since: float | None = None

    def after(self, shards: int, now: float) -> "ShardGap":
        """With how many are missing now."""
        if not shards:
            return ShardGap()
        return ShardGap(shards, now if self.since is None else self.since)

    def is_long(self, now: float, lease_s: float) -> bool:
        """Whether they could have been taken over long ago."""
        return self.since is not None and now - self.since >= 2 * lease_s
