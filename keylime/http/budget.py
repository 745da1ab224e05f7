"""Memory for the bodies of requests that are being received: bounded in sum, shared out by source. Pure.

A body is reserved for when its headers are there, or grows as its chunks come. What does not fit waits, those
from the quietest source first. While somebody waits, a held body loses its place: one that makes no progress
to anybody, one of the fullest source to a source that has less.
"""

import enum
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

_GRACE_S = 2.0  # how long any body may take to begin with
_EXPECTED_S = 8.0  # in which a body is received when somebody waits, however large it is
_LEAST_RATE = 64 << 10  # bytes/s, for which small bodies need not be faster
# The part of the whole that one prefix may have, the narrowest prefix first.
_SHARES = (4, 2)
_LEAST_SIZE = 32 << 10  # what the smallest body counts as: its connection has buffers too
_MOST_WAITING = 64
_NOTHING: Mapping[str, int] = MappingProxyType({})
_MOST_DISPLACING = 4  # of those that wait, for which room is made in one go


class State(enum.Enum):
    """Where a claim stands."""

    WAITING = enum.auto()
    HELD = enum.auto()
    ENDED = enum.auto()


@dataclass(slots=True, eq=False)
class BodyClaim:
    """One body: who sends it, how much is set aside for it, and how it gets on."""

    prefixes: tuple[str, ...]  # narrowest first
    size: int
    since: float  # of its waiting, later of its holding
    state: State = State.WAITING
    received: int = 0
    is_complete: bool = False

    def is_slow(self, now: float) -> bool:
        """Whether it would be displaced by whoever waits."""
        rate = max(_LEAST_RATE, self.size / _EXPECTED_S)
        return not self.is_complete and now - self.since > _GRACE_S + self.received / rate

    def rate(self, now: float) -> float:
        """Bytes for each second that it has had, those of the grace included."""
        return self.received / max(now - self.since, 1e-3)


@dataclass(frozen=True, slots=True)
class ClaimChanges:
    """What has come of the claims: those that got their room, and those that lost it."""

    granted: Sequence[BodyClaim] = ()
    displaced: Sequence[BodyClaim] = ()


@dataclass(slots=True)
class BodyBudget:
    """`total` bytes for all bodies together. Times are seconds of a clock that never goes back."""

    total: int
    in_use: int = 0
    most_in_use: int = 0  # since it was last empty
    _waiting: dict[BodyClaim, None] = field(default_factory=dict)
    _held: dict[BodyClaim, None] = field(default_factory=dict)
    _use: Counter[str] = field(default_factory=Counter)

    @property
    def has_waiting(self) -> bool:
        """Whether a later `settle` could grant something."""
        return bool(self._waiting)

    def claim(self, prefixes: tuple[str, ...], size: int, now: float) -> tuple[BodyClaim, ClaimChanges]:
        """Asks for `size` bytes: held at once when they are free, and nobody waits for them.

        A claim that may not even wait has ended, unless another one had to end for it.
        """
        claim = BodyClaim(prefixes, max(size, _LEAST_SIZE), now)
        if not self._waiting and self._fits(claim, claim.size):
            self._grant(claim, now)
            return claim, ClaimChanges()
        ended: tuple[BodyClaim, ...] = ()
        if len(self._waiting) >= _MOST_WAITING:
            ended = (self._least_worthy(claim),)
        self._waiting[claim] = None
        for loser in ended:
            self._end(loser)
        return claim, ClaimChanges(displaced=tuple(loser for loser in ended if loser is not claim))

    def settle(self, now: float) -> ClaimChanges:
        """Gives what has become free to those that wait, and takes from those that must yield."""
        granted: list[BodyClaim] = []
        displaced: list[BodyClaim] = []
        for number, claim in enumerate(sorted(self._waiting, key=self._precedence)):
            victims: tuple[BodyClaim, ...] = ()
            if number < _MOST_DISPLACING and not self._fits(claim, claim.size):
                victims = self._victims(claim, claim.size, now)
            for victim in victims:
                self._end(victim)
                displaced.append(victim)
            if self._fits(claim, claim.size):
                del self._waiting[claim]
                self._grant(claim, now)
                granted.append(claim)
        return ClaimChanges(granted, displaced)

    def receive(self, claim: BodyClaim, count: int, now: float) -> tuple[bool, ClaimChanges]:
        """Counts `count` more bytes of a held claim; whether there is room for them, and what that took."""
        claim.received += count
        missing = claim.received - claim.size
        if missing <= 0:
            return True, ClaimChanges()
        victims: tuple[BodyClaim, ...] = ()
        if not self._fits(claim, missing):
            victims = self._victims(claim, missing, now)
            for victim in victims:
                self._end(victim)
        if not self._fits(claim, missing):
            return False, ClaimChanges(displaced=victims)
        self._take(claim, missing)
        claim.size += missing
        return True, ClaimChanges(displaced=victims)

    def complete(self, claim: BodyClaim) -> None:
        """The body is here: it is kept until `release`, whatever others want."""
        claim.is_complete = True

    def release(self, claim: BodyClaim) -> None:
        """Gives back what a claim has; harmless when it has ended already."""
        self._end(claim)

    def exceeds_share(self, claim: BodyClaim) -> bool:
        """Whether it is the claim's own source that leaves it no room, not the others."""
        return not self._in_share(claim, claim.size)

    def _least_worthy(self, newcomer: BodyClaim) -> BodyClaim:
        """Who of the newcomer and those that wait must not: the last one of the source that waits most."""
        waiting = Counter(claim.prefixes[-1] for claim in self._waiting)
        fullest, most = waiting.most_common(1)[0]
        if waiting[newcomer.prefixes[-1]] >= most:
            return newcomer
        return next(claim for claim in reversed(self._waiting) if claim.prefixes[-1] == fullest)

    def _precedence(self, claim: BodyClaim) -> tuple[int, int]:
        """What the source has already, widest prefix first; of equals the one that has waited longest."""
        return self._use[claim.prefixes[-1]], self._use[claim.prefixes[0]]

    def _fits(self, claim: BodyClaim, size: int, freed: Mapping[str, int] = _NOTHING) -> bool:
        """Whether there are `size` bytes more for it, as soon as `freed` is free (all together under "")."""
        return self.in_use - freed.get("", 0) + size <= self.total and self._in_share(claim, size, freed)

    def _in_share(self, claim: BodyClaim, size: int, freed: Mapping[str, int] = _NOTHING) -> bool:
        """Whether the claim's source may have `size` bytes more; its only body may have any size."""
        own = claim.size if claim.state is State.HELD else 0
        for prefix, part in zip(claim.prefixes, _SHARES, strict=False):
            used = self._use[prefix] - freed.get(prefix, 0)
            if used > own and used + size > self.total // part:
                return False
        return True

    def _victims(self, claim: BodyClaim, size: int, now: float) -> tuple[BodyClaim, ...]:
        """Whose ends make room for `size` bytes; nobody when that cannot be done."""
        victims: list[BodyClaim] = []
        freed: Counter[str] = Counter()
        for victim in self._in_order_of_loss(claim, size, now):
            victims.append(victim)
            freed.update(dict.fromkeys(("", *victim.prefixes), victim.size))
            if self._fits(claim, size, freed):
                return tuple(victims)
        return ()

    def _in_order_of_loss(self, claim: BodyClaim, size: int, now: float) -> Iterator[BodyClaim]:
        others = [held for held in self._held if held is not claim and not held.is_complete]
        slow = sorted((held for held in others if held.is_slow(now)), key=lambda held: held.rate(now))
        yield from slow
        use = Counter({prefix: self._use[prefix] for prefix in {held.prefixes[-1] for held in others}})
        for held in slow:
            use[held.prefixes[-1]] -= held.size
        rest = sorted((held for held in others if held not in slow), key=lambda held: held.rate(now))
        own = self._use[claim.prefixes[-1]] + size
        while rest:
            fullest = max((held.prefixes[-1] for held in rest), key=use.__getitem__)
            if (
                use[fullest] <= own
            ):  # an equal one is left in peace: the two would displace each other for ever
                return
            victim = next(held for held in rest if held.prefixes[-1] == fullest)
            rest.remove(victim)
            use[fullest] -= victim.size
            yield victim

    def _grant(self, claim: BodyClaim, now: float) -> None:
        claim.state, claim.since = State.HELD, now
        self._held[claim] = None
        self._take(claim, claim.size)

    def _take(self, claim: BodyClaim, size: int) -> None:
        self.in_use += size
        self.most_in_use = max(self.most_in_use, self.in_use)
        self._use.update(dict.fromkeys(claim.prefixes, size))

    def _end(self, claim: BodyClaim) -> None:
        self._waiting.pop(claim, None)
        if claim in self._held:
            del self._held[claim]
            self.in_use -= claim.size
            for prefix in claim.prefixes:
                self._use[prefix] -= claim.size
                if self._use[prefix] <= 0:
                    del self._use[prefix]
        claim.state = State.ENDED
