"""More work than there is time for: agents polled without pause while as many are added and operators ask.

Overload may stretch the period and nothing else: every request gets its answer, no lease is lost.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.rig.cost import allow_descriptors
from benchmarks.rig.machines import MachineIdentity, policy_of
from benchmarks.rig.percentiles import percentiles_ms
from benchmarks.rig.processes import Daemon, free_port
from benchmarks.rig.stored import stored_in
from benchmarks.rig.watched_fleet import Operator, add_in_the_end, running_fleet, until

_IMA_LINES = 100
_API_PAUSE_S = 0.02
_DESCRIPTORS = 1024
_LOST = ("the lease had ended", "cannot renew the lease")
BUDGET_ADDING_S = 5.0
BUDGET_API_P99_MS = 100


@dataclass(frozen=True, slots=True)
class Result:
    """What an operator and the log say of the overload."""

    adding_s: float
    refused: int
    while_adding_ms: tuple[float, float]
    settled_ms: tuple[float, float]
    rounds_per_s: float
    cpu_ms: float
    leases_lost: int


async def _ask(
    operator: Operator, machines: Sequence[MachineIdentity], ended: asyncio.Event, seconds: Sequence[float]
) -> tuple[list[float], int]:
    """How long answers took until `ended`, or for so many `seconds`; how many were refused."""
    took_s, refused = [], 0
    deadline = time.monotonic() + (seconds[0] if seconds else 600.0)
    number = 0
    while not ended.is_set() and time.monotonic() < deadline:
        try:
            took_s.append(await operator.show(machines[number % len(machines)]))
        except (RuntimeError, KeyError):
            refused += 1
        number += 1
        await asyncio.sleep(_API_PAUSE_S)
    return took_s, refused


async def run(
    count: int, seconds: float, options: Mapping[str, str], directory: Path, kind: str, interval_s: float
) -> Result:
    """Half of the machines are polled, the other half is added meanwhile."""
    port = free_port()
    with stored_in(kind) as database:
        given = {
            "KEYLIME_DIR": str(directory),
            "KEYLIME_VERIFIER_PORT": str(port),
            "KEYLIME_VERIFIER_QUOTE_INTERVAL": str(interval_s),
            "KEYLIME_VERIFIER_DATABASE_URL": database.url,
            **options,
        }
        log = directory / "verifier.log"
        async with aiohttp.ClientSession() as session:
            with Daemon("keylime_verifier", log, given) as daemon:
                daemon.wait_for("Listening on")
                authority = directory / "cv_ca"
                operator = Operator(session, port, authority)
                machines = running_fleet(
                    2 * count, ima_lines=_IMA_LINES, growth=0, processes=1, client_ca=authority / "cacert.crt"
                )
                with machines as fleet:
                    first, *polled = fleet.identities[:count]
                    await operator.add(first, policy_of(_IMA_LINES))
                    await until(fleet, lambda report: report.quotes > 0, 30)
                    await add_in_the_end(operator, polled)
                    await asyncio.sleep(5 + interval_s)
                    asked = [first, *polled]
                    ended = asyncio.Event()
                    asking = asyncio.create_task(_ask(operator, asked, ended, ()))
                    began = time.monotonic()
                    refused = await add_in_the_end(operator, fleet.identities[count:])
                    adding_s = time.monotonic() - began
                    ended.set()
                    while_adding_s, unanswered = await asking
                    await asyncio.sleep(2)
                    fleet.report()
                    began, cpu_s = time.monotonic(), daemon.cpu_s
                    settled_s, more = await _ask(operator, asked, asyncio.Event(), (seconds,))
                    lasted_s, used_s = time.monotonic() - began, daemon.cpu_s - cpu_s
                    quotes = fleet.report().quotes
        said = log.read_text(errors="replace")
        return Result(
            adding_s,
            refused + unanswered + more,
            percentiles_ms(while_adding_s),
            percentiles_ms(settled_s),
            quotes / lasted_s,
            used_s / quotes * 1e3,
            sum(said.count(words) for words in _LOST),
        )


def render(result: Result, count: int, shape: str) -> Table:
    table = Table(title=f"{count} agents polled without pause, {count} added ({shape})")
    for heading in ("", "measured", "budget"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row(f"adding {count} agents (s)", f"{result.adding_s:.1f}", f"{BUDGET_ADDING_S:g}")
    table.add_row("requests that were refused", str(result.refused), "0")
    table.add_row("leases lost", str(result.leases_lost), "0")
    api = "GET /agents/ID p50 / p99 (ms)"
    table.add_row(f"{api}, meanwhile", "{:.1f} / {:.1f}".format(*result.while_adding_ms), "")
    table.add_row(
        f"{api}, afterwards", "{:.1f} / {:.1f}".format(*result.settled_ms), f"- / {BUDGET_API_P99_MS}"
    )
    table.add_row("attestations/s afterwards", f"{result.rounds_per_s:.0f}", "")
    table.add_row("CPU for each (ms)", f"{result.cpu_ms:.3f}", "")
    return table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=500, help="polled, and added (default: %(default)s)")
    parser.add_argument("--interval", type=float, default=0.0, help="quote_interval in s (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of asking afterwards (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="num_workers of the verifier (%(default)s)")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    given = parser.parse_args()
    allow_descriptors(_DESCRIPTORS + 4 * given.agents)
    options = {"KEYLIME_VERIFIER_NUM_WORKERS": str(given.workers)}
    with tempfile.TemporaryDirectory(prefix="keylime-overload-") as directory:
        result = asyncio.run(
            run(given.agents, given.seconds, options, Path(directory), given.database, given.interval)
        )
    shape = f"{given.workers} worker{'s' if given.workers > 1 else ''}, {given.database}"
    Console(width=100).print(render(result, given.agents, shape))


if __name__ == "__main__":
    main()
