"""When verifiers, or the test that asks them, were ready to run and had no processor."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from tests.fakes.own_time import kept_waiting_ns
from tests.truth.history import Starved

_PAUSE_S = 0.5


class Hunger:
    """Looks at the kernel's sched-stats again and again.

    Of those that waited at the same time, the one that waited longest counts: what passes through all of them
    may have waited for more, never for less.
    """

    def __init__(self, processes: Callable[[], Iterable[int]]) -> None:
        """`processes` tells who runs now, beside the thread that asks."""
        self.starved: list[Starved] = []
        self._processes = processes
        self._before_ns: dict[int | str, int] = {}
        self._looked_at = time.monotonic()

    async def watch(self) -> None:
        """Takes note, for ever."""
        while True:
            self._look()
            await asyncio.sleep(_PAUSE_S)

    def _look(self) -> None:
        began, self._looked_at = self._looked_at, time.monotonic()
        now_ns: dict[int | str, int] = {}
        asked: list[int | str] = ["thread-self", *self._processes()]
        for process in asked:
            with suppress(FileNotFoundError, ProcessLookupError):
                now_ns[process] = kept_waiting_ns(process)
        waited_ns = [now - self._before_ns[one] for one, now in now_ns.items() if one in self._before_ns]
        self._before_ns = now_ns
        if (for_s := max(waited_ns, default=0) / 1e9) > 0:
            self.starved.append(Starved(began, self._looked_at, min(for_s, self._looked_at - began)))
