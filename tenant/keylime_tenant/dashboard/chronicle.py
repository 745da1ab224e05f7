"""How many machines stood how at which time, told from the events of the history. Pure: time comes in.

It begins with what the history still has and is set right by each look at the fleet, so that what was
forgotten there is wrong for the past alone.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence

from keylime.messages.history import HistoryEvent
from keylime.messages.verifier import OperationalState
from keylime_tenant.standing import Standing

SPAN_S = 48 * 3600
SHOWN = (Standing.FAILED, Standing.UNREACHABLE, Standing.ATTESTED)
"""What is told of the past. Who is overdue counts as unreachable, and who is not judged as attested."""

_STEP_S = 60  # what happens within a minute is one change of the line
_AS = {Standing.OVERDUE: Standing.UNREACHABLE, Standing.UNJUDGED: Standing.ATTESTED}
_AFTER_ACTS = {
    "enrolled": Standing.PENDING,
    "reactivated": Standing.PENDING,
    "stopped": Standing.STOPPED,
    "deleted": None,
}
_STATES = {
    OperationalState.GET_QUOTE.text: Standing.ATTESTED,
    OperationalState.PROVIDE_V.text: Standing.ATTESTED,
    OperationalState.INVALID_QUOTE.text: Standing.FAILED,
    OperationalState.FAILED.text: Standing.UNREACHABLE,
    OperationalState.TENANT_FAILED.text: Standing.STOPPED,
}


class Chronicle:
    """How machines stand now, and how many stood so before."""

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}
        self._counts: Counter[Standing] = Counter()
        self._changes: list[tuple[int, tuple[int, ...]]] = []  # epoch second, counts of `SHOWN` from then on

    def take(self, event: HistoryEvent) -> None:
        """One event, in the order of their ids."""
        if event.agent_id is None:
            return
        if event.kind == "state":
            has_findings = bool(event.details.get("findings"))
            standing = Standing.FAILED if has_findings else _STATES.get(str(event.details.get("to")))
            if standing is None:
                return
        elif event.kind in _AFTER_ACTS:
            standing = _AFTER_ACTS[event.kind]
        else:
            return
        before = self._standings.get(event.agent_id)
        if standing is before:
            return
        if before is not None:
            self._counts[before] -= 1
        if standing is None:
            self._standings.pop(event.agent_id, None)
        else:
            self._standings[event.agent_id] = standing
            self._counts[standing] += 1
        self._note(event.at)

    def set_right(self, standings: Mapping[str, Standing], now: float) -> None:
        """What the verifier says now."""
        self._standings = {agent: _AS.get(one, one) for agent, one in standings.items()}
        counts = Counter(self._standings.values())
        if counts != self._counts or not self._changes:
            self._counts = counts
            self._note(int(now))

    def series(self, now: float, count: int = 48) -> Mapping[Standing, Sequence[int]]:
        """How many stood how at the end of each of `count` equal parts of the span until `now`."""
        found: dict[Standing, list[int]] = {standing: [] for standing in SHOWN}
        for number in range(1, count + 1):
            place = bisect_right(self._changes, now - SPAN_S + number * SPAN_S / count, key=_time)
            counts = self._changes[place - 1][1] if place else (0,) * len(SHOWN)
            for standing, value in zip(SHOWN, counts, strict=True):
                found[standing].append(value)
        return found

    def _note(self, at: int) -> None:
        changes, counts = self._changes, tuple(self._counts[standing] for standing in SHOWN)
        at = max(at, changes[-1][0]) if changes else at  # clocks of verifiers differ
        if changes and changes[-1][0] // _STEP_S == at // _STEP_S:
            changes[-1] = (changes[-1][0], counts)
        else:
            changes.append((at, counts))
        # The last change before the span says how it began.
        first = bisect_right(changes, at - SPAN_S, key=_time)
        if first > 1:
            del changes[: first - 1]


def _time(change: tuple[int, tuple[int, ...]]) -> int:
    return change[0]
