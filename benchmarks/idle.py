"""CPU of a verifier that has nothing to do, for each second: `python benchmarks/idle.py`.

One worker on SQLite without agents renews its lease, and watches for changes, over its health and its
certificates.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.rig.processes import Daemon, free_port

BUDGET_MS = 2.0
SECONDS = 20.0
_SETTLING_S = 6.0


@dataclass(frozen=True, slots=True)
class Result:
    """CPU in milliseconds, and how often a thread woke up, in each second."""

    cpu_ms: float
    wakes: float


def measure(seconds: float, directory: Path) -> Result:
    """Starts a verifier and lets it be."""
    options = {
        "KEYLIME_DIR": str(directory),
        "KEYLIME_VERIFIER_PORT": str(free_port()),
        "KEYLIME_VERIFIER_NUM_WORKERS": "1",
    }
    with Daemon("keylime_verifier", directory / "verifier.log", options) as daemon:
        daemon.wait_for("Listening on")
        time.sleep(_SETTLING_S)
        began, cpu_s, wakes = time.monotonic(), daemon.exact_cpu_s, daemon.wakes
        time.sleep(seconds)
        lasted_s = time.monotonic() - began
        return Result((daemon.exact_cpu_s - cpu_s) / lasted_s * 1e3, (daemon.wakes - wakes) / lasted_s)


def render(result: Result) -> Table:
    table = Table(title="A verifier at rest")
    for number, heading in enumerate(("", "in a second", f"budget {BUDGET_MS:g} ms")):
        table.add_column(heading, justify="right" if number else "left")
    table.add_row("CPU", f"{result.cpu_ms:.2f} ms", "kept" if result.cpu_ms <= BUDGET_MS else "missed")
    table.add_row("threads that wake up", f"{result.wakes:.1f}")
    return table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long to measure (%(default)s)")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="keylime-idle-") as directory:
        Console().print(render(measure(seconds, Path(directory))))


if __name__ == "__main__":
    main()
