"""How many machines failed at which time, told from the events of the history. Pure: time comes in.

It begins with what the history still has and is set right by each look at the fleet, so that what was
forgotten there is wrong for the past alone.
"""

from bisect import bisect_right
from collections.abc import Collection, Sequence

from keylime.messages.history import HistoryEvent

SPAN_S = 48 * 3600
_STEP_S = 60  # what happens within a minute is one change of the line
_FAILED_WORDS = frozenset({"Failed", "Invalid Quote"})


class Chronicle:
    """The machines that fail now, and how many did before."""

    def __init__(self) -> None:
        self._failing: set[str] = set()
        self._changes: list[tuple[int, int]] = []  # epoch second, how many fail from then on

    def take(self, event: HistoryEvent) -> None:
        """One event, in the order of their ids."""
        if event.agent_id is None:
            return
        if event.kind == "state":
            has_failed = bool(event.details.get("findings")) or event.details.get("to") in _FAILED_WORDS
        elif event.kind in ("deleted", "enrolled", "reactivated", "stopped"):
            has_failed = False
        else:
            return
        if has_failed != (event.agent_id in self._failing):
            (self._failing.add if has_failed else self._failing.discard)(event.agent_id)
            self._note(event.at)

    def set_right(self, failing: Collection[str], now: float) -> None:
        """What the verifier says that fails now."""
        if self._failing != set(failing) or not self._changes:
            self._failing = set(failing)
            self._note(int(now))

    def series(self, now: float, count: int = 48) -> Sequence[int]:
        """How many failed at the end of each of `count` equal parts of the span until `now`."""
        found = []
        for number in range(1, count + 1):
            place = bisect_right(self._changes, now - SPAN_S + number * SPAN_S / count, key=_time)
            found.append(self._changes[place - 1][1] if place else 0)
        return found

    def _note(self, at: int) -> None:
        changes = self._changes
        at = max(at, changes[-1][0]) if changes else at  # clocks of verifiers differ
        if changes and changes[-1][0] // _STEP_S == at // _STEP_S:
            changes[-1] = (changes[-1][0], len(self._failing))
        else:
            changes.append((at, len(self._failing)))
        # The last change before the span says how it began.
        first = bisect_right(changes, at - SPAN_S, key=_time)
        if first > 1:
            del changes[: first - 1]


def _time(change: tuple[int, int]) -> int:
    return change[0]
