"""How much of agents' answers the verifier holds at once, whoever sends how much.

Every agent may send an ordinary answer at any time. A long one, a first measurement list or the answer of an
agent that wants to do harm, needs a place for as long as it is read and judged; without one it is put off,
and its agent waits until it is its turn. Those who had fewer long answers so far go first, so that an agent
which sends one each time waits for the others and not they for it.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Self

ORDINARY_ANSWER = 256 << 10  # bytes: some 1500 lines
# Beside the ordinary ones of all rounds under way, which are at most as much again. The longest fits in.
LONG_ANSWERS = 128 << 20
_PATIENCE_S = 60.0  # for so long others that need less may go before one that waits


class AnswerReservation:
    """What one round of an agent holds. `long_before` is how many long answers it had before this one."""

    def __init__(self, budget: "AnswerBudget", long_before: int) -> None:
        self._budget = budget
        self._order = (long_before, next(budget.arrivals))
        self.held = 0
        self.waits_since: float | None = None

    @property
    def is_long(self) -> bool:
        """Whether the answer is none of the ordinary ones."""
        return self.held > 0

    def __lt__(self, other: "AnswerReservation") -> bool:
        return self._order < other._order

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._budget.release(self)

    def admit(self, size: int) -> bool:
        """Whether the answer may be as long as that, now."""
        return size <= max(ORDINARY_ANSWER, self.held) or self._budget.take(self, size)

    async def wait_for(self, size: int) -> None:
        """Returns when the answer may be as long as that. What is held meanwhile is given up."""
        self._budget.release(self)
        await self._budget.wait(self, size)


_JUDGING_OF_ORDINARY = nullcontext()  # of nearly all answers


class AnswerBudget:
    """The places of one process."""

    def __init__(self, total: int = LONG_ANSWERS) -> None:
        self._total = total
        self._held = 0
        self._waiting: dict[AnswerReservation, tuple[int, asyncio.Event]] = {}
        self._judging = asyncio.Lock()
        self.arrivals: Iterator[int] = itertools.count()

    @property
    def held(self) -> int:
        """Bytes of long answers that are read or judged now."""
        return self._held

    def place(self, long_before: int) -> AnswerReservation:
        """A place for one round, which is free again at the end of the block."""
        return AnswerReservation(self, long_before)

    def judging(self, place: AnswerReservation) -> AbstractAsyncContextManager[None]:
        """Surrounds a slice of the judging: of long answers, which get half of the time together."""
        return self._judging_of_long() if place.is_long else _JUDGING_OF_ORDINARY

    @asynccontextmanager
    async def _judging_of_long(self) -> AsyncIterator[None]:
        async with self._judging:
            began = time.thread_time()  # others on this machine are no reason to take longer breaks
            yield
            await asyncio.sleep(time.thread_time() - began)

    def take(self, place: AnswerReservation, size: int) -> bool:
        """Holds `size` bytes in all for `place` if there is room for them."""
        more = size - place.held
        if self._held + more > self._total or self._has_waited_long_enough(place):
            return False
        self._held += more
        place.held = size
        return True

    def release(self, place: AnswerReservation) -> None:
        """Gives up what `place` holds."""
        if place.held:
            self._held -= place.held
            place.held = 0
            self._call()

    async def wait(self, place: AnswerReservation, size: int) -> None:
        """Returns when `place` holds `size` bytes."""
        called = asyncio.Event()
        place.waits_since = asyncio.get_running_loop().time()
        self._waiting[place] = size, called
        try:
            self._call()
            await called.wait()
        finally:
            self._waiting.pop(place, None)
            place.waits_since = None
            self._call()  # it may have been the one for which others had to wait

    def _call(self) -> None:
        """Gives those who wait what there is room for, in their order."""
        for place in sorted(self._waiting):
            size, called = self._waiting[place]
            if self.take(place, size):
                del self._waiting[place]
                called.set()

    def _has_waited_long_enough(self, place: AnswerReservation) -> bool:
        """Whether somebody else waits before whom nobody may go any more."""
        if not self._waiting:
            return False
        first = min(self._waiting)
        if first is place or first.waits_since is None:
            return False
        return asyncio.get_running_loop().time() - first.waits_since > _PATIENCE_S
