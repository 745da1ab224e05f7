"""What runs beside a daemon's main task: loops that must not end, and tasks that live as long as a block."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NoReturn

from keylime.service.health import Health

log = logging.getLogger(__name__)

_RESTART_PAUSE_S = 1.0
_REMEMBERED_S = 30.0
_TOLERATED_ENDS = 3  # within that time


@asynccontextmanager
async def accompanied(*companions: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs the coroutines as tasks while the block runs, then cancels them and waits for their ends."""
    tasks = [asyncio.create_task(companion) for companion in companions]
    for task in tasks:
        task.add_done_callback(_log_defect)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _log_defect(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a background task has ended because of a defect", exc_info=error)


class SupervisedLoop:
    """A loop that is started again should it ever end; `problem` tells when that happens again and again."""

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.monotonic,
        pause_s: float = _RESTART_PAUSE_S,
    ) -> None:
        self._name = name
        self._work = work
        self._clock = clock
        self._pause_s = pause_s
        self._ends: deque[float] = deque(maxlen=_TOLERATED_ENDS)
        self._is_started = False

    async def run(self) -> NoReturn:
        """Goes on for ever; ends by cancellation."""
        self._is_started = True
        try:
            while True:
                await self._work_once()
                self._ends.append(self._clock())
                await asyncio.sleep(self._pause_s)
        finally:
            self._is_started = False

    async def problem(self) -> str | None:
        """The check of this loop, see `health`."""
        if not self._is_started:
            return "not running"
        is_full = len(self._ends) == _TOLERATED_ENDS
        return "keeps failing" if is_full and self._clock() - self._ends[0] < _REMEMBERED_S else None

    async def _work_once(self) -> None:
        try:
            await self._work()
        except Exception:
            log.exception("the %s ended because of a defect; starting it again", self._name)
        else:
            log.error("the %s ended by itself; starting it again", self._name)


def supervised(
    works: Mapping[str, Callable[[], Awaitable[None]]], health: Health
) -> AbstractAsyncContextManager[None]:
    """Runs the loops by their names, each a vital check, and the watch over `health` while the block runs."""
    loops = [SupervisedLoop(name, work) for name, work in works.items()]
    for name, loop in zip(works, loops, strict=True):
        health.add(name, loop.problem, vital=True)
    return accompanied(*(loop.run() for loop in loops), health.watch())
