"""Whose turn it is: costly work done one piece at a time, shared out by the sources that ask for it. Pure.

The queue is bounded. A full one makes room for a source that has less in it than the fullest one, or has cost
less of late. The next turn goes to the source that has cost least: whoever keeps the workers busy waits for
the others.
"""

from collections import Counter
from dataclasses import dataclass, field

_HALF_LIFE_S = 60.0  # after which half of what a source has cost is forgotten
_MOST_SOURCES = 1024  # that are remembered
_NEGLIGIBLE_S = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One piece of work that is asked for; `prefixes` stand narrowest first."""

    prefixes: tuple[str, ...]
    goes_first: bool = False  # an administrator's


@dataclass(slots=True)
class Turns:
    """At most `room` turns that wait, a quarter of them of one narrow prefix, half of them of a wide one."""

    room: int
    _waiting: dict[Turn, None] = field(default_factory=dict)
    _costs: dict[str, tuple[float, float]] = field(default_factory=dict)  # seconds, and when that was so

    def __len__(self) -> int:
        return len(self._waiting)

    def has_room(self, turn: Turn, now: float) -> bool:
        """Whether `join` would take it in."""
        return self._loser(turn, now) is not turn

    def join(self, turn: Turn, now: float) -> Turn | None:
        """Takes `turn` in; the turn that must not wait any longer, which can be `turn` itself."""
        loser = self._loser(turn, now)
        if loser is not turn:
            self._waiting[turn] = None
            if loser is not None:
                del self._waiting[loser]
        return loser

    def leave(self, turn: Turn) -> None:
        """Forgets a turn; harmless when it is not waiting."""
        self._waiting.pop(turn, None)

    def next(self, now: float) -> Turn | None:
        """The turn that comes now, which waits no longer; of equals the one that has waited longest."""
        if not self._waiting:
            return None
        turn = min(self._waiting, key=lambda turn: (not turn.goes_first, self._cost_of(turn, now)))
        del self._waiting[turn]
        return turn

    def charge(self, turn: Turn, cost_s: float, now: float) -> None:
        """Adds the seconds that a turn took to what its source has cost."""
        for prefix in turn.prefixes:
            self._costs[prefix] = (self._cost(prefix, now) + cost_s, now)
        if len(self._costs) > _MOST_SOURCES:
            self._forget(now)

    def _loser(self, turn: Turn, now: float) -> Turn | None:
        if turn.goes_first:
            # As many of these may wait as of the others together.
            return turn if sum(other.goes_first for other in self._waiting) >= self.room else None
        waiting = [other for other in self._waiting if not other.goes_first]
        for prefix, part in zip(turn.prefixes, (4, 2), strict=False):
            if sum(prefix in other.prefixes for other in waiting) >= max(1, self.room // part):
                return turn
        if len(waiting) < self.room:
            return None
        by_source = Counter(other.prefixes[-1] for other in waiting)
        fullest, most = by_source.most_common(1)[0]
        if by_source[turn.prefixes[-1]] + 1 < most:
            return next(other for other in reversed(waiting) if other.prefixes[-1] == fullest)
        costliest = max(reversed(waiting), key=lambda other: self._cost_of(other, now))
        difference_s = self._cost_of(costliest, now) - self._cost_of(turn, now)
        return costliest if difference_s > _NEGLIGIBLE_S else turn

    def _cost_of(self, turn: Turn, now: float) -> float:
        return max(self._cost(prefix, now) for prefix in turn.prefixes)

    def _cost(self, prefix: str, now: float) -> float:
        cost_s, at = self._costs.get(prefix, (0.0, now))
        return float(cost_s * 0.5 ** ((now - at) / _HALF_LIFE_S))

    def _forget(self, now: float) -> None:
        """Forgets those that have cost least."""
        costs = sorted(((self._cost(prefix, now), prefix) for prefix in self._costs), reverse=True)
        kept = costs[: _MOST_SOURCES // 2]
        self._costs = {prefix: (cost, now) for cost, prefix in kept if cost > _NEGLIGIBLE_S}
