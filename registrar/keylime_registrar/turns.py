"""Whose turn it is when there is more work than can be done at once: source by source, not call by call.

Who has many calls waiting has them done one in each round, as if he had one. Whoever comes from elsewhere
waits for one call of each source at most, however many calls these have.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from keylime.errors import KeylimeError


class TooManyWaiting(KeylimeError):
    """A source has as many calls waiting as it may, or one has waited for too long."""


class _Line:
    """Those who wait, by the next part of their source; where sources end, in the order of their coming."""

    __slots__ = ("parts", "waiters")

    def __init__(self) -> None:
        self.parts: dict[str, _Line] = {}
        self.waiters: deque[asyncio.Future[None]] = deque()

    def __bool__(self) -> bool:
        return bool(self.parts or self.waiters)

    def add(self, waiter: "asyncio.Future[None]", source: tuple[str, ...], most: int) -> None:
        line = self
        for part in source:
            line = line.parts.setdefault(part, _Line())
        if len(line.waiters) >= most:
            raise TooManyWaiting(source[-1])
        line.waiters.append(waiter)

    def next(self) -> "asyncio.Future[None]":
        if self.waiters:
            return self.waiters.popleft()
        part, line = next(iter(self.parts.items()))
        waiter = line.next()
        del self.parts[part]
        if line:
            self.parts[part] = line  # behind all others
        return waiter


class CallTurns:
    """Lets `at_once` calls work at a time; of one address up to `most_waiting` wait, each so long at most."""

    def __init__(self, *, at_once: int = 4, most_waiting: int = 512, longest_s: float = 15.0) -> None:
        self._free = at_once
        self._most_waiting = most_waiting
        self._longest_s = longest_s
        self._line = _Line()

    @asynccontextmanager
    async def taken(self, prefixes: tuple[str, ...]) -> AsyncIterator[None]:
        """A turn for a call from this source, prefixes narrowest first. Raises TooManyWaiting."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(prefixes)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, prefixes: tuple[str, ...]) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._line.add(waiter, prefixes[::-1], self._most_waiting)
        try:
            async with asyncio.timeout(self._longest_s):
                await self._given(waiter)
        except TimeoutError as error:
            raise TooManyWaiting(prefixes[0]) from error

    async def _given(self, waiter: "asyncio.Future[None]") -> None:
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # it got its turn in the same moment
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._line:
            waiter = self._line.next()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1
