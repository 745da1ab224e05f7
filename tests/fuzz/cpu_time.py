"""Limits in CPU time: an input is slow when the parser is, and not when the machine is busy."""

import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn


class TooSlow(AssertionError):
    """An input took more CPU time than any may."""


def within(limit_s: float, run: Callable[[bytes], None], data: bytes) -> None:
    """`run(data)`, which may take `limit_s` seconds of this process's CPU time. Raises TooSlow.

    For the main thread, where Python delivers signals. Code in C is told about the limit when it returns.
    """

    def give_up(_number: int, _frame: FrameType | None) -> NoReturn:
        raise TooSlow(f"an input of {len(data)} bytes took more than {limit_s} s of CPU time")

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    try:
        run(data)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Budget:
    """Calls `run` with each input until this process has spent `budget_s` of CPU time; then `leave`, once."""

    def __init__(
        self, run: Callable[[bytes], None], budget_s: float, limit_s: float, leave: Callable[[], object]
    ) -> None:
        """Without end when `budget_s` is 0."""
        self.executions = 0
        self._run = run
        self._limit_s = limit_s
        self._leave = leave
        self._end_s = time.process_time() + budget_s if budget_s else float("inf")

    def __call__(self, data: bytes) -> None:
        """One execution. Raises TooSlow, and whatever `run` raises."""
        self.executions += 1
        within(self._limit_s, self._run, data)
        if time.process_time() >= self._end_s:
            sys.stderr.write(f"stat::number_of_executed_units: {self.executions}\n")
            sys.stderr.flush()
            self._leave()
