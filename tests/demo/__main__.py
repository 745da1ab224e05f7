"""The main job before your eyes: real daemons, real TPM commands, one machine that falls from grace.

Every step states what it expects and waits to see it; the exit status is 0 only when all were seen.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from keylime.errors import KeylimeError
from tests.captures import capture
from tests.demo.scenario import Scenario
from tests.lab.installation import Options, open_lab
from tests.lab.network import enter_user_namespace, open_network


@dataclass(frozen=True, slots=True)
class Seen:
    """One step that was carried out: what was seen, and how long it took."""

    title: str
    observation: str
    seconds: float
    succeeded: bool


@dataclass(slots=True)
class Report:
    """Runs steps one after the other, tells each as it happens, and sums up at the end."""

    console: Console
    seen: list[Seen] = field(default_factory=list)

    def step(self, title: str, work: Callable[[], str]) -> None:
        """Carries out `work`, which returns what it saw or raises. A failed step ends the demonstration."""
        self.console.print(f"[bold]{len(self.seen) + 1:2}. {title}[/bold]")
        started = time.monotonic()
        try:
            observation = work()
        except BaseException as error:
            self._note(title, str(error) or type(error).__name__, started, succeeded=False)
            raise
        self._note(title, observation, started, succeeded=True)

    def _note(self, title: str, observation: str, started: float, *, succeeded: bool) -> None:
        seconds = time.monotonic() - started
        self.seen.append(Seen(title, observation, seconds, succeeded))
        colour = "green" if succeeded else "red"
        self.console.print(f"    [{colour}]{observation}[/{colour}] ({seconds:.2f} s)", highlight=False)

    def summary(self) -> Table:
        """All steps in one table."""
        table = Table(title="What was seen")
        table.add_column("step")
        table.add_column("observation", overflow="fold")
        table.add_column("seconds", justify="right")
        table.add_column("")
        for seen in self.seen:
            mark = "[green]ok[/green]" if seen.succeeded else "[red]failed[/red]"
            table.add_row(seen.title, seen.observation.splitlines()[0], f"{seen.seconds:.2f}", mark)
        return table


def main() -> int:
    """0 when every step was seen, 1 when one was not."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave configuration and logs behind for a look")
    arguments = parser.parse_args()
    enter_user_namespace()
    os.umask(0o077)
    console = Console(soft_wrap=not sys.stdout.isatty())
    report = Report(console)
    directory = Path(tempfile.mkdtemp(prefix="keylime-demo-"))
    try:
        with ExitStack() as stack:
            network = stack.enter_context(open_network(directory, ("control", "node1", "node2")))
            console.print(f"Three nodes: {network.kind}; files in {directory}")
            lab = stack.enter_context(open_lab(directory, network.nodes, Options()))
            boot_log = (capture("direct-efistub").path / "binary_bios_measurements").read_bytes()
            Scenario(lab, directory, boot_log).run(report.step)
    except (KeylimeError, OSError, RuntimeError, TimeoutError) as error:
        console.print(f"[red]The demonstration ended early:[/red] {error}", highlight=False, markup=True)
    finally:
        if arguments.keep:
            console.print(f"Configuration, databases and logs are left in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    console.print(report.summary())
    complete = len(report.seen) == Scenario.STEPS and all(seen.succeeded for seen in report.seen)
    console.print(
        "[green]Every step was seen.[/green]" if complete else "[red]Not every step was seen.[/red]"
    )
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
