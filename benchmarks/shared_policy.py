"""A policy with 100,000 paths: from adding an agent that is held to it to the verdict on its first quote."""

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

from benchmarks.rig.machines import policy_of
from benchmarks.rig.processes import Daemon, free_port
from benchmarks.rig.watched_fleet import Operator, running_fleet

PATHS = 100_000
BUDGET_FIRST_S = 0.4
BUDGET_LATER_S = 0.03
_LATER = 5
_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Result:
    """CPU and time of the first agent, which brings the policy, and of each later one."""

    cpu_s: float
    took_s: float


async def measure(paths: int, directory: Path) -> list[Result]:
    """The first agent, and the mean of the later ones."""
    port = free_port()
    options = {
        "KEYLIME_DIR": str(directory),
        "KEYLIME_VERIFIER_PORT": str(port),
        "KEYLIME_VERIFIER_QUOTE_INTERVAL": "60",
        "KEYLIME_VERIFIER_NUM_WORKERS": "1",
    }
    results = []
    async with aiohttp.ClientSession() as session:
        with Daemon("keylime_verifier", directory / "verifier.log", options) as daemon:
            daemon.wait_for("Listening on")
            authority = directory / "cv_ca"
            operator = Operator(session, port, authority)
            machines = running_fleet(
                1 + _LATER, ima_lines=100, growth=0, processes=1, client_ca=authority / "cacert.crt"
            )
            policy = policy_of(paths)
            with machines as fleet:
                for number, machine in enumerate(fleet.identities):
                    began, cpu_s = time.monotonic(), daemon.cpu_s
                    await operator.add(machine, "" if number else policy)
                    while not await operator.passes(machine):
                        if time.monotonic() - began > _LIMIT_S:
                            raise RuntimeError(f"{machine.agent_id} does not pass")
                        await asyncio.sleep(0.005)
                    results.append(Result(daemon.cpu_s - cpu_s, time.monotonic() - began))
    later = results[1:]
    return [
        results[0],
        Result(sum(one.cpu_s for one in later) / _LATER, sum(one.took_s for one in later) / _LATER),
    ]


def render(results: Sequence[Result], paths: int) -> Table:
    table = Table(title=f"Added, and judged for the first time, by a policy with {paths:,} paths")
    for number, heading in enumerate(("", "CPU (s)", "budget", "time (s)")):
        table.add_column(heading, justify="right" if number else "left")
    rows = zip(("the first agent", "a later one"), results, (BUDGET_FIRST_S, BUDGET_LATER_S), strict=True)
    for label, result, budget in rows:
        table.add_row(label, f"{result.cpu_s:.3f}", f"{budget:g}", f"{result.took_s:.2f}")
    return table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paths", type=int, default=PATHS, help="of the policy (default: %(default)s)")
    paths = parser.parse_args().paths
    with tempfile.TemporaryDirectory(prefix="keylime-policy-") as directory:
        Console().print(render(asyncio.run(measure(paths, Path(directory))), paths))


if __name__ == "__main__":
    main()
