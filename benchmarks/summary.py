"""The figures that matter on one page: what is measured, what it should be, and what that cost to find out.

CPU is also told in P-256 verifications of the same machine (V), because machines differ; V is measured anew
for each measurement. What has not begun after ten minutes is left out, and said.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks import fleet, idle, ima, overload, registration, shared_policy, startup
from benchmarks.rig.cost import Cost, allow_descriptors, measured
from benchmarks.rig.stored import stored_in
from keylime.ima.measurement_list import parse_line, split_lines
from keylime.ima.replay import replay
from tests.fakes.software_identity import SoftwareIdentity

_LIMIT_S = 600.0
_DESCRIPTORS = 8192
_GOALS_V = (6.0, 14.0)  # a CPU of which V is 43 us takes 0.25 ms, and 0.6 ms
_ENTRIES = 100_000
_V_OF_BUDGETS_US = 43.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the page."""

    name: str
    value: str
    goal: str = ""
    is_kept: bool | None = None


def below(name: str, value: float, goal: float, unit: str) -> Figure:
    """A figure that should not be above its goal."""
    return Figure(name, f"{value:.3g} {unit}", f"{goal:g} {unit}", value <= goal)


Measurement = Callable[[Path, Cost], list[Figure]]


def attestations(agents: int, interval_s: float, goal_v: float) -> Measurement:
    """CPU and memory of a fleet on SQLite, one worker, 100 IMA lines that are known."""

    def measure(directory: Path, cost: Cost) -> list[Figure]:
        options = fleet.Options((agents,), interval_s, 5 * interval_s, 100, 0, 1, 1, "sqlite")

        async def run() -> fleet.Result:
            with stored_in("sqlite") as database:
                async with aiohttp.ClientSession() as session:
                    return await fleet.measure(agents, options, directory, database, session)

        result = asyncio.run(run())
        rate = f"{result.rounds_per_s:.0f}/s"
        in_v = below(f"an attestation, {rate}", result.cpu_ms * 1e3 / cost.v_us, goal_v, "V")
        return [
            Figure(in_v.name, f"{result.cpu_ms:.3f} ms = {in_v.value}", in_v.goal, in_v.is_kept),
            below(f"memory of a polled agent, {agents} of them", result.memory_kb_per_agent, 50, "KB"),
            below(f"GET /agents/ID at {rate}, p99", result.api_ms[1], 20, "ms"),
        ]

    return measure


def overloaded(agents: int) -> Measurement:
    """Agents polled without pause while as many are added."""

    def measure(directory: Path, cost: Cost) -> list[Figure]:
        one_worker = {"KEYLIME_VERIFIER_NUM_WORKERS": "1"}
        result = asyncio.run(overload.run(agents, 5.0, one_worker, directory, "sqlite", 0.0))
        at_rate = f"an attestation, {result.rounds_per_s:.0f}/s (saturated)"
        in_v = below(at_rate, result.cpu_ms * 1e3 / cost.v_us, 4.5, "V")
        return [
            below(
                f"{agents} agents added while {agents} are polled without pause",
                result.adding_s,
                overload.BUDGET_ADDING_S,
                "s",
            ),
            below("requests that were refused meanwhile", result.refused, 0, ""),
            below("leases lost meanwhile", result.leases_lost, 0, ""),
            below("GET /agents/ID, saturated, p99", result.settled_ms[1], overload.BUDGET_API_P99_MS, "ms"),
            Figure(in_v.name, f"{result.cpu_ms:.3f} ms = {in_v.value}", in_v.goal, in_v.is_kept),
        ]

    return measure


def policies(directory: Path, _cost: Cost) -> list[Figure]:
    """A large policy that many agents are held to."""
    first, later = asyncio.run(shared_policy.measure(shared_policy.PATHS, directory))
    name = f"added and judged first, {shared_policy.PATHS:,} paths"
    return [
        below(f"{name}: the first agent", first.cpu_s, shared_policy.BUDGET_FIRST_S, "s CPU"),
        below(f"{name}: a later one", later.cpu_s, shared_policy.BUDGET_LATER_S, "s CPU"),
    ]


def registrations(directory: Path, _cost: Cost) -> list[Figure]:
    """Registration and activation."""
    agents = [
        registration.Agent(f"{number:08x}-0000-4000-8000-000000000000", SoftwareIdentity())
        for number in range(30)
    ]
    *_, again = asyncio.run(registration.measure(agents, directory))
    return [below("an agent registers and activates", again.cpu_ms, registration.BUDGET_MS, "ms CPU")]


def starts(directory: Path, _cost: Cost) -> list[Figure]:
    """The verifier, which has made its certificates before."""
    verifier = startup.verifier(directory)
    verifier("verifier, first start")
    result = verifier("verifier")
    return [below("the verifier from start to first answer", result.cpu_s, startup.BUDGET_S, "s CPU")]


def rest(directory: Path, _cost: Cost) -> list[Figure]:
    """A worker without agents."""
    result = idle.measure(idle.SECONDS, directory)
    return [below("a worker at rest, in a second", result.cpu_ms, idle.BUDGET_MS, "ms CPU")]


def entries(_directory: Path, cost: Cost) -> list[Figure]:
    """A first measurement list, new to the verifier and then known to it."""
    text = ima.make_list(_ENTRIES)
    quoted = replay([parse_line(line) for line in split_lines(text)], ima.BANK)
    new, seen = ima.measure(_ENTRIES, text, quoted, ima.make_policy())
    slower = cost.v_us / _V_OF_BUDGETS_US
    return [
        below("an IMA entry, new", new, round(3.0 * slower, 2), "us"),
        below("an IMA entry, seen before", seen, round(0.7 * slower, 2), "us"),
    ]


MEASUREMENTS: Sequence[Measurement] = (
    entries,
    starts,
    rest,
    registrations,
    policies,
    attestations(400, 1.0, _GOALS_V[0]),
    attestations(50, 2.0, _GOALS_V[1]),
    overloaded(500),
)


def measure_all(limit_s: float, console: Console) -> Table:
    """The page, as far as it comes within the limit."""
    table = Table(title="What a verifier and a registrar cost")
    headings = ("", "measured", "goal", "", "V (us)", "CPU (s)", "wall (s)", "load")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    began = time.monotonic()
    for number, measure in enumerate(MEASUREMENTS):
        if time.monotonic() - began > limit_s:
            table.caption = f"{len(MEASUREMENTS) - number} measurements were left out after {limit_s:g} s"
            break
        with ExitStack() as stack, console.status(f"{number + 1} of {len(MEASUREMENTS)}"):
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="keylime-bench-"))
            with measured() as cost:
                figures = measure(Path(directory), cost)
        spent = f"{cost.v_us:.0f}", f"{cost.cpu_s:.1f}", f"{cost.wall_s:.1f}", f"{cost.load:.1f}"
        for line, figure in enumerate(figures):
            kept = {None: "", True: "kept", False: "missed"}[figure.is_kept]
            table.add_row(
                figure.name, figure.value, figure.goal, kept, *(spent if line == 0 else ("",) * len(spent))
            )
    return table


def main() -> None:
    """Prints the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=_LIMIT_S, help="seconds (default: %(default)s)")
    limit_s = parser.parse_args().limit
    allow_descriptors(_DESCRIPTORS)
    console = Console(width=140)
    console.print(measure_all(limit_s, console))


if __name__ == "__main__":
    main()
