"""How many polls may be under way, so that an overload stretches the period and nothing else.

What costs this process time is a poll that has just begun, or whose answer is here; one that waits for its
machine costs nothing. So those that began a moment ago are counted, and few of them may be under way: no turn
of the event loop holds hundreds of appraisals, and requests, leases and verdicts get their time.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

FEWEST = 32
MOST = 64
LONGEST_TURN_S = 0.01
"""After so many seconds a turn of the loop begins no further poll and no further appraisal."""
SHORT_TURN_S = 0.002
"""The same while somebody waits for the answer to a request, which takes several turns."""
MOMENT_S = 0.1
"""A poll that is not over after so many seconds waits for its machine: a hardware TPM takes longer."""
_LAG_HALVES_S = 5.0
_SHOWN_LAG_S = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """Polls that began in the last `MOMENT_S` or are judged; how long the loop's turn has run, and may."""

    fresh: int
    turn_s: float
    most_s: float = LONGEST_TURN_S


def may_start(load: Load, limit: int) -> int:
    """How many polls may start now, where `limit` fresh ones are allowed."""
    return 0 if load.turn_s >= load.most_s else max(limit - load.fresh, 0)


def next_limit(limit: int, turn_s: float) -> int:
    """How many fresh polls are allowed after a turn of the loop has taken `turn_s`."""
    if turn_s > 2 * LONGEST_TURN_S:
        return max(FEWEST, limit - limit // 4)
    return min(MOST, limit + 1) if turn_s < LONGEST_TURN_S else limit


def lag_remark(lag_s: float, interval_s: float) -> str | None:
    """What operators are told of polls that begin `lag_s` after they are due, if anything."""
    if lag_s < max(_SHOWN_LAG_S, interval_s / 2):
        return None
    return (
        f"agents are asked {_rounded(lag_s)} later than quote_interval says ({interval_s:g} s): there are "
        "more of them than this machine can attest so often; raise quote_interval, or num_workers where CPUs "
        "are idle, or add a verifier"
    )


def _rounded(lag_s: float) -> str:
    """Such that it does not change with each look."""
    return next((text for limit_s, text in _BOUNDS if lag_s >= limit_s), "more than a second")


_BOUNDS = (
    (600.0, "more than 10 minutes"),
    (60.0, "more than a minute"),
    (10.0, "more than 10 seconds"),
    (3.0, "more than 3 seconds"),
)


class Pace:
    """The polls of one process, as far as their number is concerned, and the turns of its loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit = MOST
        self._began: deque[tuple[float, object]] = deque()
        self._fresh: set[object] = set()
        self._is_waited_for = False
        self._turn_began: float | None = None
        self._most_s = LONGEST_TURN_S
        self.others_wait: Callable[[], bool] = lambda: False
        self._lag_s = 0.0
        self._lag_at = 0.0

    def may_start(self) -> int:
        """How many polls may start now."""
        self._forget_slow()
        return may_start(Load(len(self._fresh), self._turn_s(), self._most_s), self._limit)

    def begin(self, poll: object, lag_s: float) -> None:
        """A poll begins, `lag_s` after it was due."""
        self._note_turn()
        now = self._clock()
        self._began.append((now, poll))
        self._fresh.add(poll)
        if lag_s >= self.lag_s:
            self._lag_s, self._lag_at = lag_s, now

    def end(self, poll: object) -> bool:
        """It is over, or has nothing left to do but to wait. Whether others may have waited for that."""
        self._fresh.discard(poll)
        is_waited_for, self._is_waited_for = self._is_waited_for, False
        return is_waited_for

    @property
    def lag_s(self) -> float:
        """How much later than they were due the last polls began; what was long ago counts for less."""
        return self._lag_s * math.pow(0.5, (self._clock() - self._lag_at) / _LAG_HALVES_S)

    def look_again_s(self) -> float:
        """After how many seconds polls may start that may not now, if none ends before: `end` tells of it."""
        self._forget_slow()
        self._is_waited_for = True
        if len(self._fresh) < self._limit:
            return 0.0
        oldest = self._began[0][0] if self._began else self._clock()
        return max(oldest + MOMENT_S - self._clock(), 0.0)

    async def room(self, poll: object) -> None:
        """Returns in a turn of the loop that has time for an appraisal: the answer of the poll is here."""
        self._fresh.add(poll)
        while self._turn_s() >= self._most_s:  # noqa: ASYNC110 - the end of a turn is no event
            await asyncio.sleep(0)
        self._note_turn()

    def _forget_slow(self) -> None:
        oldest = self._clock() - MOMENT_S
        while self._began and (self._began[0][0] <= oldest or self._began[0][1] not in self._fresh):
            self._fresh.discard(self._began.popleft()[1])

    def _turn_s(self) -> float:
        return 0.0 if self._turn_began is None else self._clock() - self._turn_began

    def _note_turn(self) -> None:
        if self._turn_began is None:
            self._turn_began = self._clock()
            self._most_s = SHORT_TURN_S if self.others_wait() else LONGEST_TURN_S
            asyncio.get_running_loop().call_soon(self._end_turn)

    def _end_turn(self) -> None:
        """Called in the turn after."""
        if self._turn_began is not None:
            self._limit = next_limit(self._limit, self._clock() - self._turn_began)
            self._turn_began = None
