"""Whether a process is alive and ready, as named checks; nothing in the answers is secret.

A *vital* check is about the process itself: when it fails, only a new start helps, so liveness and the
service manager's watchdog follow it. The others are about what the process needs and may get back by itself.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

log = logging.getLogger(__name__)

Check: TypeAlias = Callable[[], Awaitable[str | None]]
Clock: TypeAlias = Callable[[], float]

_CHECK_LIMIT_S = 3.0
_KEPT_S = 1.0  # anybody may ask: asking more often than this costs nothing more


@dataclass(frozen=True, slots=True)
class Report:
    """What is wrong, by the name of the check; empty when all is well."""

    problems: Mapping[str, str]

    @property
    def is_good(self) -> bool:
        """Whether no check failed."""
        return not self.problems


class Health:
    """The checks of one process. Answers are kept for a second, and a check that hangs fails after three."""

    def __init__(self, *, limit_s: float = _CHECK_LIMIT_S, clock: Clock = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._probes: list[_Probe] = []

    def add(self, name: str, check: Check, *, vital: bool = False) -> None:
        """`check` says what is wrong in words fit for anyone, or None."""
        self._probes.append(_Probe(name, check, vital))

    async def alive(self) -> Report:
        """The vital checks alone."""
        return await self._report([probe for probe in self._probes if probe.vital])

    async def ready(self) -> Report:
        """All checks."""
        return await self._report(self._probes)

    async def _report(self, probes: "list[_Probe]") -> Report:
        await asyncio.gather(*(self._refresh(probe) for probe in probes))
        return Report({probe.name: probe.problem for probe in probes if probe.problem is not None})

    async def _refresh(self, probe: "_Probe") -> None:
        if probe.running is None:
            if probe.answered_at is not None and self._clock() - probe.answered_at < _KEPT_S:
                return
            probe.running = asyncio.create_task(_answer(probe))
        running = probe.running
        # Not cancelled when it takes long: a check in a thread would go on, and the next one beside it.
        await asyncio.wait([running], timeout=self._limit_s)
        if running.done():
            if probe.running is running:
                probe.running = None
                probe.problem, probe.answered_at = running.result(), self._clock()
        else:
            probe.problem = f"no answer within {self._limit_s:g} s"


@dataclass(slots=True, eq=False)
class _Probe:
    name: str
    check: Check
    vital: bool
    problem: str | None = None
    answered_at: float | None = None
    running: "asyncio.Task[str | None] | None" = None


async def _answer(probe: _Probe) -> str | None:
    try:
        return await probe.check()
    except Exception:
        log.exception("the health check %s failed because of a defect", probe.name)
        return "cannot be checked"
