"""Time that passes for us, and not while we are ready to run and others have the processors.

A bound on it says the same on an idle machine as on a busy one: what was waited for, and what was computed.
"""

import contextlib
import time
from pathlib import Path


def kept_waiting_ns(process: int | str) -> int:
    """How long the first thread of a process stood in the queue of those that are ready to run.

    By the kernel's sched-stats; `thread-self` is the thread that asks.
    """
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[1])


class OwnTime:
    """Measures from its making on, for this thread and for processes that it waits for."""

    def __init__(self, *processes: int) -> None:
        self._kept_waiting_ns: dict[int | str, int] = dict.fromkeys(("thread-self", *processes), 0)
        self._look()
        self._before_ns = sum(self._kept_waiting_ns.values())
        self._began = time.monotonic()

    def passed_s(self) -> float:
        """Seconds so far. Of a process that has ended meanwhile, what was seen last counts."""
        passed_s = time.monotonic() - self._began
        self._look()
        return passed_s - (sum(self._kept_waiting_ns.values()) - self._before_ns) / 1e9

    def _look(self) -> None:
        for process in self._kept_waiting_ns:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                self._kept_waiting_ns[process] = kept_waiting_ns(process)
