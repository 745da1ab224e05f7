"""A fleet on one verifier: CPU for each attestation, memory and database for each agent, lag, API answers.

The verifier is the real one, in processes of its own, with default options but for interval, number of
workers and database. The machines are simulated in other processes and send genuine quotes over mutual TLS.
All figures are taken from outside: CPU and memory from /proc, rounds from machines and database, latencies as
a client sees them.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.rig.cost import allow_descriptors
from benchmarks.rig.machines import FleetReport, policy_of
from benchmarks.rig.percentiles import percentiles_ms
from benchmarks.rig.processes import Daemon, free_port
from benchmarks.rig.stored import Stored, stored_in
from benchmarks.rig.watched_fleet import Operator, add_all, running_fleet, until

_FILLER_PATHS = 10_000
_SETTLING_ROUNDS = 3
_API_CALLS = 200
_SPARE_DESCRIPTORS = 1024
_API_PAUSE_S = 0.01
BUDGET_CPU_MS = 0.6
BUDGET_KB = 40
BUDGET_API_P99_MS = 50


@dataclass(frozen=True, slots=True)
class Options:
    agents: tuple[int, ...]
    interval_s: float
    seconds: float
    ima_lines: int
    growth: int
    processes: int
    workers: int
    database: str


@dataclass(frozen=True, slots=True)
class Result:
    """One size of fleet."""

    agents: int
    rounds_per_s: float
    cpu_ms: float
    fleet_cpu_ms: float
    adding_ms: float
    memory_mb: float
    memory_kb_per_agent: float
    database_kb_per_agent: float
    lag_ms: tuple[float, float]
    api_ms: tuple[float, float]

    @property
    def kb_per_agent(self) -> float:
        return self.memory_kb_per_agent + self.database_kb_per_agent


async def measure(
    count: int, options: Options, directory: Path, database: Stored, session: aiohttp.ClientSession
) -> Result:
    """Runs a verifier with `count` agents."""
    port = free_port()
    daemon = Daemon(
        "keylime_verifier",
        directory / "verifier.log",
        {
            "KEYLIME_DIR": str(directory),
            "KEYLIME_VERIFIER_PORT": str(port),
            "KEYLIME_VERIFIER_QUOTE_INTERVAL": str(options.interval_s),
            "KEYLIME_VERIFIER_DATABASE_URL": database.url,
            "KEYLIME_VERIFIER_NUM_WORKERS": str(options.workers),
        },
    )
    with daemon:
        daemon.wait_for("Listening on")
        operator = Operator(session, port, directory / "cv_ca")
        machines = running_fleet(
            count,
            ima_lines=options.ima_lines,
            growth=options.growth,
            processes=options.processes,
            client_ca=directory / "cv_ca" / "cacert.crt",
        )
        with machines as fleet:
            first, *others = fleet.identities
            await operator.add(first, policy_of(max(options.ima_lines, _FILLER_PATHS)))
            await until(fleet, lambda report: report.quotes > 0, 10 + 3 * options.interval_s)
            # What all agents share is there now: the policy, its file in the database, the known IMA lines.
            empty_kb, database_bytes, started_s = daemon.memory_kb, database.bytes, daemon.cpu_s
            await add_all(operator, others)
            added_s = daemon.cpu_s - started_s
            limit_s = 30 + 5 * options.interval_s + count / 50
            await until(fleet, lambda report: report.fewest_rounds >= _SETTLING_ROUNDS, limit_s)

            before, stored_before = fleet.report(), database.rounds
            began, cpu_before_s = time.monotonic(), daemon.cpu_s
            await asyncio.sleep(options.seconds)
            steady_s, lasted_s = daemon.cpu_s - cpu_before_s, time.monotonic() - began
            steady = fleet.report()
            full_kb = daemon.memory_kb

            api_s = []
            for number in range(_API_CALLS):
                api_s.append(await operator.show(fleet.identities[number % count]))
                await asyncio.sleep(_API_PAUSE_S)
            await asyncio.sleep(1.2)  # the last batch is written
            check(steady, database.rounds - stored_before)
            return Result(
                agents=count,
                rounds_per_s=steady.quotes / lasted_s,
                cpu_ms=steady_s / steady.quotes * 1e3,
                fleet_cpu_ms=(steady.cpu_s - before.cpu_s) / steady.quotes * 1e3,
                adding_ms=added_s / len(others) * 1e3,
                memory_mb=full_kb / 1024,
                memory_kb_per_agent=(full_kb - empty_kb) / len(others),
                database_kb_per_agent=(database.bytes - database_bytes) / 1024 / len(others),
                lag_ms=percentiles_ms([interval - options.interval_s for interval in steady.intervals_s]),
                api_ms=percentiles_ms(api_s),
            )


def check(steady: FleetReport, stored: int) -> None:
    """What was measured must have been the steady state: no handshakes, and every round a recorded pass."""
    if steady.connections:
        raise RuntimeError(f"{steady.connections} connections were not kept alive")
    if stored < steady.quotes:
        raise RuntimeError(f"{steady.quotes} quotes were sent, {stored} passes recorded")


def render(results: Sequence[Result], options: Options) -> Table:
    growth = f", {options.growth} more in every round" if options.growth else ""
    lines = f"{options.ima_lines} IMA lines{growth}"
    shape = f"{options.workers} worker{'s' if options.workers > 1 else ''}, {options.database}"
    table = Table(title=f"Verifier ({shape}), a round of each agent every {options.interval_s:g} s, {lines}")
    columns = ("agents", *(str(result.agents) for result in results), "budget")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")

    def row(name: str, values: Sequence[str], budget: str = "") -> None:
        table.add_row(name, *values, budget)

    row("attestations/s", [f"{result.rounds_per_s:.0f}" for result in results])
    row("CPU per attestation (ms)", [f"{result.cpu_ms:.3f}" for result in results], f"{BUDGET_CPU_MS}")
    row("CPU per added agent (ms)", [f"{result.adding_ms:.1f}" for result in results])
    row("resident memory (MB)", [f"{result.memory_mb:.0f}" for result in results])
    row("memory per agent (KB)", [f"{result.memory_kb_per_agent:.1f}" for result in results])
    row("database per agent (KB)", [f"{result.database_kb_per_agent:.1f}" for result in results])
    row("both per agent (KB)", [f"{result.kb_per_agent:.1f}" for result in results], f"{BUDGET_KB}")
    row("lag p50 / p99 (ms)", ["{:.0f} / {:.0f}".format(*result.lag_ms) for result in results])
    row(
        "GET /agents/{id} p50 / p99 (ms)",
        ["{:.1f} / {:.1f}".format(*result.api_ms) for result in results],
        f"- / {BUDGET_API_P99_MS}",
    )
    row("the machines' own CPU (ms)", [f"{result.fleet_cpu_ms:.3f}" for result in results])
    table.caption = "lag: time between two quotes of one agent beyond the interval, which is jittered by 5 %"
    return table


def parse_options() -> Options:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--agents", default="400", help="sizes of the fleet (default: %(default)s)")
    parser.add_argument("--interval", type=float, default=2.0, help="quote_interval in seconds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long to measure (%(default)s)")
    parser.add_argument("--ima-lines", type=int, default=100, help="lines of each IMA list (%(default)s)")
    parser.add_argument("--growth", type=int, default=0, help="known lines measured anew each round")
    parser.add_argument("--workers", type=int, default=1, help="num_workers of the verifier (%(default)s)")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--processes", type=int, default=1, help="processes of machines (%(default)s)")
    given = parser.parse_args()
    sizes = tuple(int(size) for size in given.agents.split(","))
    return Options(
        sizes,
        given.interval,
        given.seconds,
        given.ima_lines,
        given.growth,
        given.processes,
        given.workers,
        given.database,
    )


async def run(options: Options) -> list[Result]:
    results = []
    for count in options.agents:
        with (
            tempfile.TemporaryDirectory(prefix="keylime-fleet-") as directory,
            stored_in(options.database) as database,
        ):
            async with aiohttp.ClientSession() as session:
                results.append(await measure(count, options, Path(directory), database, session))
    return results


def main() -> None:
    """Prints the table."""
    options = parse_options()
    # Of each machine a socket that listens, and one that is connected.
    allow_descriptors(_SPARE_DESCRIPTORS + 2 * max(options.agents))
    Console(width=100).print(render(asyncio.run(run(options)), options))


if __name__ == "__main__":
    main()
