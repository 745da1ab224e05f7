"""Many attestations by one verifier: memory and descriptors must be as flat at the end as after the first.

Machines answer as fast as they are asked, with an IMA list that grows in each round.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.rig.machines import policy_of
from benchmarks.rig.processes import Daemon, free_port
from benchmarks.rig.watched_fleet import Fleet, Operator, add_all, running_fleet, until

_SAMPLES = 10
_PATHS = 10_000
_IMA_LINES = 100


async def soak(daemon: Daemon, fleet: Fleet, rounds: int, console: Console) -> Table:
    """A line for each tenth of the attestations."""
    table = Table(title=f"One verifier, {rounds:,} attestations of {len(fleet.identities)} machines")
    for heading in ("attestations", "after [s]", "resident [MB]", "descriptors", "CPU each [ms]"):
        table.add_column(heading, justify="right")
    began, done, cpu_s = time.monotonic(), 0, daemon.cpu_s
    with console.status("attesting") as status:
        for sample in range(1, _SAMPLES + 1):
            before = done
            while done < rounds * sample // _SAMPLES:
                await asyncio.sleep(0.5)
                done += fleet.report().quotes
                status.update(f"{done:,} of {rounds:,} attestations")
            spent_s, cpu_s = daemon.cpu_s - cpu_s, daemon.cpu_s
            table.add_row(
                f"{done:,}",
                f"{time.monotonic() - began:.0f}",
                f"{daemon.memory_kb / 1024:.1f}",
                str(daemon.descriptors),
                f"{spent_s / (done - before) * 1e3:.3f}",
            )
    return table


async def run(agents: int, rounds: int, interval_s: float, directory: Path, console: Console) -> Table:
    """Starts a verifier and machines, and measures."""
    port = free_port()
    options = {
        "KEYLIME_DIR": str(directory),
        "KEYLIME_VERIFIER_PORT": str(port),
        "KEYLIME_VERIFIER_QUOTE_INTERVAL": str(interval_s),
    }
    async with aiohttp.ClientSession() as session:
        with Daemon("keylime_verifier", directory / "verifier.log", options) as daemon:
            daemon.wait_for("Listening on")
            authority = directory / "cv_ca"
            machines = running_fleet(
                agents, ima_lines=_IMA_LINES, growth=1, processes=1, client_ca=authority / "cacert.crt"
            )
            with machines as fleet:
                operator = Operator(session, port, authority)
                first, *others = fleet.identities
                await operator.add(first, policy_of(_PATHS))
                await until(fleet, lambda report: report.quotes > 0, 10 + 3 * interval_s)
                await add_all(operator, others)
                await until(fleet, lambda report: report.fewest_rounds >= 1, 30 + 5 * interval_s)
                return await soak(daemon, fleet, rounds, console)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=50, help="machines (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4000, help="attestations (default: %(default)s)")
    parser.add_argument("--interval", type=float, default=0.1, help="quote_interval in s (%(default)s)")
    options = parser.parse_args()
    console = Console(width=100)
    with tempfile.TemporaryDirectory(prefix="keylime-soak-") as directory:
        work = run(options.agents, options.rounds, options.interval, Path(directory), console)
        console.print(asyncio.run(work))


if __name__ == "__main__":
    main()
