"""Whose turn it is to write where only one may at a time: those that can wait go last, but not for ever."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_LONGEST_WAIT_S = 1.0  # after which whoever can wait goes before those that cannot


class WriteTurn:
    """A lock of one event loop, handed on in the order of arrival within each of two classes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._is_taken = False
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._patient: deque[tuple[float, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, *, can_wait: bool = False) -> AsyncIterator[None]:
        """Nobody else writes while the block runs. Who `can_wait` begins when nobody else waits."""
        if self._is_taken:
            await self._wait(can_wait=can_wait)
        self._is_taken = True
        try:
            yield
        finally:
            self._hand_on()

    async def _wait(self, *, can_wait: bool) -> None:
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if can_wait:
            self._patient.append((self._clock(), called))
        else:
            self._urgent.append(called)
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
        is_overdue = self._patient and self._clock() - self._patient[0][0] > _LONGEST_WAIT_S
        if self._urgent and not is_overdue:
            return self._urgent.popleft()
        return self._patient.popleft()[1] if self._patient else None
