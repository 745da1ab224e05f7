"""A simulated year: certificates, reboots, updates, restarts of every part, and no hand that helps.

Verifier and registrar are real programs, the machines answer with keys in software; all live by a clock that
is set in steps. At the end of each, every machine is attested, nobody was accused, no log tells of a defect;
but one machine is tampered with on the way, and must be the only one that is found.
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.rig.year_checks import MAX_AGE_S, Judgement, Seen, Shown, Truth, judge
from benchmarks.rig.year_machines import Notice
from benchmarks.rig.year_plan import DAYS, Kind, Step, plan_year
from benchmarks.rig.year_site import YearSite
from keylime.messages.verifier import OperationalState
from tests.lab.calendar import CLOCK_FILE, COMPILER, Calendar

_SHOWN_LINES = 8
_TROUBLE = (TimeoutError, RuntimeError, OSError, aiohttp.ClientError)  # of programs, or of calling them


@dataclass
class Year:
    """What has been seen so far."""

    site: YearSite
    plan: tuple[Step, ...]
    console: Console
    happened: Counter[Kind] = field(default_factory=Counter)
    exceptions: list[tuple[int, str, str]] = field(default_factory=list)  # day, what, reason
    problems: list[str] = field(default_factory=list)
    passes: int = 0
    attested: int = 0
    _known: set[Notice] = field(default_factory=set)
    _silenced: set[str] = field(default_factory=set)
    _read: dict[Path, int] = field(default_factory=dict)

    async def live(self) -> None:
        """Walks through the year, up to the first step that does not end well."""
        async with self.site.living():
            await self._end(Step(0, 0, ()))
            for step in self.plan:
                if self.problems:
                    return
                await self._walk(step)
            if not self.problems:
                self._look_back()

    async def _walk(self, step: Step) -> None:
        began = time.monotonic()
        await self.site.go_to(timedelta(days=step.day))
        for event in step.events:
            try:
                if event.kind is Kind.SILENCE:
                    self._silenced |= {self.site.machines[number].agent_id for number in event.machines}
                self.happened[event.kind] += max(1, len(event.machines))
                await self.site.do(event)
            except _TROUBLE as error:
                self.problems.append(f"day {step.day}, {event}: {error!r}")
                break
        await self._end(step, time.monotonic() - began)

    async def _end(self, step: Step, took_s: float = 0.0) -> None:
        began = time.monotonic()
        try:
            if not self.problems:
                self.passes += await self.site.until_attested()
                await self.site.until_renewed()
        except _TROUBLE as error:
            self.problems.append(f"day {step.day}: {error!r}")
        try:
            judgement = await self._judge(step)
        except _TROUBLE as error:
            judgement = Judgement((repr(error),), ())
        self.problems += [f"day {step.day}: {problem}" for problem in judgement.problems]
        self.exceptions += [(step.day, what, reason) for what, reason in judgement.exceptions]
        took_s += time.monotonic() - began
        text = ", ".join(map(str, step.events)) or "begins"
        mark = "[red]failed[/]" if self.problems else "well"
        self.console.print(
            f"step {step.number:2} of {len(self.plan)}  day {step.day:3}  {took_s:5.1f} s  "
            f"{self.attested:2} attested  {mark}  {text}",
            soft_wrap=True,
        )

    async def _judge(self, step: Step) -> Judgement:
        site, now = self.site, self.site.now.timestamp()
        shown = {
            agent_id: Shown(
                OperationalState(one["operational_state"]),
                one["attestation_status"],
                now - one["last_successful_attestation"],
                one["last_event_id"] or "",
            )
            for agent_id, one in (await site.statuses()).items()
        }
        self.attested = sum(
            one.state is OperationalState.GET_QUOTE and abs(one.age_s) <= MAX_AGE_S for one in shown.values()
        )
        notices = site.told() | site.written()
        machines = {machine.agent_id for machine in site.machines}
        truth = Truth(machines, frozenset(site.bad), frozenset(self._silenced))
        judgement = judge(step, Seen(shown, notices, self._new_lines()), truth, self._known)
        self._known |= notices
        return judgement

    def _new_lines(self) -> list[str]:
        lines: list[str] = []
        for program in (self.site.verifier, self.site.registrar):
            text = program.log.read_bytes()
            new = text[self._read.get(program.log, 0) :].decode(errors="replace")
            lines += re.split(r"\n(?! )", new)  # tracebacks belong to what they explain
            self._read[program.log] = len(text)
        return lines

    def _look_back(self) -> None:
        """At the end: the bad machine was found at once, the silent one was taken back."""
        (bad,), (silenced,) = self.site.bad, self._silenced
        due = {Notice("revocation", bad), Notice("comm_error", silenced), Notice("cleared", silenced)}
        self.problems += [
            f"nobody was told: {one.kind} about {one.agent_id}" for one in sorted(due - self.site.told())
        ]
        if self.site.questions_until_found > 2:
            self.problems.append(
                f"{bad} was asked {self.site.questions_until_found} times until it was found"
            )


def render(year: Year) -> Table:
    table = Table(title=f"{DAYS} days of {len(year.site.machines)} machines, in {len(year.plan)} steps")
    table.add_column("")
    table.add_column("count", justify="right")
    for kind in Kind:
        table.add_row(kind.value, str(year.happened[kind]))
    table.add_section()
    table.add_row("machines attested at the end", str(year.attested))
    table.add_row("passes that were waited for", f"{year.passes:,}")
    table.add_row("questions until the bad machine was found", str(year.site.questions_until_found))
    table.add_row("wrong alarms, and other problems", str(len(year.problems)))
    return table


def render_exceptions(year: Year) -> Table:
    table = Table(title="What was said with good reason")
    for heading in ("day", "what", "reason"):
        table.add_column(heading, overflow="fold")
    for day, what, reason in year.exceptions:
        table.add_row(str(day), escape(what), escape(reason))
    return table


def run_inside(options: argparse.Namespace) -> int:
    """The year, in a process that follows the clock as well."""
    clock = Path(os.environ[CLOCK_FILE])
    site = YearSite(clock.parent, clock, options.machines)
    year = Year(
        site, plan_year(options.steps, options.machines, options.seed), Console(width=100, highlight=False)
    )
    asyncio.run(year.live())
    year.console.print(render(year))
    if year.exceptions:
        year.console.print(render_exceptions(year))
    for problem in year.problems:
        year.console.print(problem, style="red", markup=False)
    if year.problems:
        for line in year.site.verifier.text.splitlines()[-_SHOWN_LINES:]:
            year.console.print(line, style="dim", markup=False)
    return 1 if year.problems else 0


def main() -> int:
    """Prints what happened, and a table; 1 when the year did not end well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", type=int, default=50, help="how many, from 3 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=27, help=f"in {DAYS} days, from 4 (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="what happens when (%(default)s)")
    options = parser.parse_args()
    try:
        plan_year(options.steps, options.machines, options.seed)
    except ValueError as error:
        parser.error(str(error))
    if CLOCK_FILE in os.environ:
        return run_inside(options)
    if not Path(COMPILER).exists():
        print(f"skipped: the clock of the simulated year needs {COMPILER} (Debian package gcc)")
        return 0
    with tempfile.TemporaryDirectory(prefix="keylime-year-") as directory:
        environment = {**os.environ, **Calendar(Path(directory)).environment}
        return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
