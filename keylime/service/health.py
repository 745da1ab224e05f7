"""Whether a process is alive and ready, as named checks; nothing in the answers is secret.

A *vital* check is about the process itself: when it fails, only a new start helps, so liveness and the
service manager's watchdog follow it. The others are about what the process needs and may get back by itself.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from keylime.service.health_report import HealthReport

log = logging.getLogger(__name__)

Check: TypeAlias = Callable[[], Awaitable[str | None]]
Clock: TypeAlias = Callable[[], float]

_CHECK_LIMIT_S = 3.0
_KEPT_S = 1.0  # anybody may ask: asking more often than this costs nothing more
_WATCH_INTERVAL_S = 4.0
_ENDED = "it is being stopped"


class Health:
    """The checks of one process. Answers are kept for a second, and a check that hangs fails after three."""

    def __init__(
        self,
        *,
        limit_s: float = _CHECK_LIMIT_S,
        clock: Clock = time.monotonic,
        watch_interval_s: float = _WATCH_INTERVAL_S,
    ) -> None:
        self._limit_s = limit_s
        self._watch_interval_s = watch_interval_s
        self._clock = clock
        self._probes: list[_Probe] = []
        self._notes: dict[str, Callable[[], str | None]] = {}

    def add(self, name: str, check: Check, *, vital: bool = False) -> None:
        """`check` says what is wrong in words fit for anyone, or None."""
        self._probes.append(_Probe(name, check, vital))

    def note(self, name: str, remark: Callable[[], str | None]) -> None:
        """`remark` says at once what somebody should see to, though all is well, in words fit for anyone."""
        self._notes[name] = remark

    async def alive(self) -> HealthReport:
        """The vital checks alone."""
        return await self._report([probe for probe in self._probes if probe.vital])

    async def ready(self) -> HealthReport:
        """All checks, and all remarks."""
        report = await self._report(self._probes)
        remarks = {name: text for name, text in self.remarks().items() if text is not None}
        return replace(report, remarks=remarks)

    def remarks(self) -> Mapping[str, str | None]:
        """What there is to be said by each of those who were asked for remarks; None: nothing."""
        return {name: remark() for name, remark in self._notes.items()}

    async def watch(self) -> None:
        """Says in the log what is wrong and what is well again, each once, whether anybody asks or not.

        When it is cancelled, checks that are under way end before it does: what they use may be closed then.
        """
        known: Mapping[str, str] = {}
        try:
            while True:
                report = await self._report(self._probes, is_kept=False)
                for name, problem in report.problems.items():
                    if known.get(name) != problem:
                        log.error("not ready: %s: %s", name, problem)
                for name in known.keys() - report.problems.keys():
                    log.info("%s: well again", name)
                known = report.problems
                await asyncio.sleep(self._watch_interval_s)
        finally:
            await self._end_checks()

    async def _end_checks(self) -> None:
        running = [probe.running for probe in self._probes if probe.running is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _report(self, probes: "list[_Probe]", *, is_kept: bool = True) -> HealthReport:
        await asyncio.gather(*(self._refresh(probe, is_kept=is_kept) for probe in probes))
        return HealthReport({probe.name: probe.problem for probe in probes if probe.problem is not None})

    async def _refresh(self, probe: "_Probe", *, is_kept: bool) -> None:
        """`is_kept`: for others who ask; what our own watch found would often be old to them."""
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
                probe.problem = _ENDED if running.cancelled() else running.result()
                probe.answered_at = self._clock() if is_kept else probe.answered_at
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
