"""Whose turn it is to write where only one may at a time: those that can wait go last, but not for ever."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum, auto

_LONGEST_WAIT_S = 1.0  # after which whoever can wait goes before all but those that go first


class Urgency(Enum):
    """Who writes before whom where only one may at a time."""

    FIRST = auto()  # before all that wait; whoever has two of these pieces of work begins them one by one
    USUAL = auto()
    CAN_WAIT = auto()


class WriteTurn:
    """A lock of one event loop, handed on in the order of arrival within each class of urgency."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._is_taken = False
        self._waiting: dict[Urgency, deque[tuple[float, asyncio.Future[None]]]] = {
            urgency: deque() for urgency in Urgency
        }

    @asynccontextmanager
    async def taken(self, urgency: Urgency = Urgency.USUAL) -> AsyncIterator[None]:
        """Nobody else writes while the block runs."""
        if self._is_taken:
            await self._wait(urgency)
        self._is_taken = True
        try:
            yield
        finally:
            self._hand_on()

    async def _wait(self, urgency: Urgency) -> None:
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[urgency].append((self._clock(), called))
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():  # it was called just before
                self._hand_on()
            raise

    def _hand_on(self) -> None:
        """To the next one; it stays taken meanwhile, so that nobody comes in between."""
        while (called := self._next()) is not None:
            if not called.done():
                called.set_result(None)
                return
        self._is_taken = False

    def _next(self) -> asyncio.Future[None] | None:
        order = list(Urgency)
        patient = self._waiting[Urgency.CAN_WAIT]
        if patient and self._clock() - patient[0][0] > _LONGEST_WAIT_S:
            order = [Urgency.FIRST, Urgency.CAN_WAIT]
        for urgency in order:
            if waiting := self._waiting[urgency]:
                return waiting.popleft()[1]
        return None
