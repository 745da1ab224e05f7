"""CPU seconds of commands that people wait for: `python benchmarks/commands.py`.

The least of some runs counts: what others do on the machine only adds. The verifier that is asked is a real
one, over TLS with its own authority, and knows no agent, which it says as quickly as anything else.
"""

import os
import resource
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.rig.processes import Daemon, free_port
from tests.lab.daemon import program

_RUNS = 7
_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Result:
    label: str
    cpu_s: float
    budget_s: float


def cpu_s(arguments: Sequence[str], environ: Mapping[str, str], status: int) -> float:
    """What `keylime_tenant` with these arguments costs, and ends with `status`."""
    costs = []
    for _ in range(_RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(  # noqa: S603 - our own program
            [program("keylime_tenant"), *arguments],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != status:
            raise RuntimeError(f"{arguments} ended with {done.returncode}: {done.stderr}")
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(costs)


def measure(directory: Path) -> list[Result]:
    """Help, and a status, against a verifier that is started here."""
    environ = {
        "KEYLIME_DIR": str(directory),
        "KEYLIME_VERIFIER_PORT": str(free_port()),
        "KEYLIME_VERIFIER_ENABLED_REVOCATION_NOTIFICATIONS": "",
    }
    environ["KEYLIME_TENANT_VERIFIER_PORT"] = environ["KEYLIME_VERIFIER_PORT"]
    with Daemon("keylime_verifier", directory / "verifier.log", environ) as daemon:
        daemon.wait_for("Listening on")
        return [
            Result("keylime_tenant --help", cpu_s(["--help"], environ, 0), 0.15),
            Result("keylime_tenant cvstatus", cpu_s(["cvstatus", "-u", "nobody"], environ, 1), 0.3),
        ]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="keylime-commands-") as directory:
        results = measure(Path(directory))
    table = Table("command", "CPU (s)", "budget (s)")
    for result in results:
        table.add_row(result.label, f"{result.cpu_s:.3f}", f"{result.budget_s:.2f}")
    Console().print(table)
    late = [result.label for result in results if result.cpu_s > result.budget_s]
    if late:
        raise SystemExit(f"over the budget: {', '.join(late)}")


if __name__ == "__main__":
    main()
