"""What a demonstration says while it runs and when it is over."""

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Step:
    """One step that was carried out: what was seen, and how long it took."""

    title: str
    observation: str
    seconds: float
    succeeded: bool


class Seen(enum.Enum):
    """What was seen of a demonstration, or of a part of it."""

    ALL = enum.auto()
    LATE = enum.auto()  # all of it, but not as fast as is aimed at
    PARTLY = enum.auto()


def conclusion(*parts: Seen | None) -> str:
    """The last line, in the markup of rich: what was seen of each part, None where one was left out."""
    if Seen.PARTLY in parts:
        return "[red]Not every step was seen.[/red]"
    scope = " of the first part; the second was left out" if None in parts else ""
    late = ", some of them late" if Seen.LATE in parts else ""
    colour = "yellow" if scope or late else "green"
    return f"[{colour}]Every step was seen{late}{scope}.[/{colour}]"


@dataclass(slots=True)
class Report:
    """Runs steps one after the other, tells each as it happens, and sums up at the end."""

    console: Console
    seen: list[Step] = field(default_factory=list)

    def step(self, title: str, work: Callable[[], str]) -> None:
        """Carries out `work`, which returns what it saw or raises. A failed step ends the demonstration."""
        self.console.print(f"[bold]{len(self.seen) + 1:2}. {title}[/bold]")
        started = time.monotonic()
        try:
            observation = work()
        except Exception as error:  # an interrupted step has not failed
            self._note(title, str(error) or type(error).__name__, started, succeeded=False)
            raise
        self._note(title, observation, started, succeeded=True)

    def is_complete(self, steps: int) -> bool:
        """Whether so many steps were seen, and none failed."""
        return len(self.seen) == steps and all(seen.succeeded for seen in self.seen)

    def _note(self, title: str, observation: str, started: float, *, succeeded: bool) -> None:
        seconds = time.monotonic() - started
        self.seen.append(Step(title, observation, seconds, succeeded))
        colour = "green" if succeeded else "red"
        # What programs said may look like markup.
        self.console.print(
            f"    {observation} ({seconds:.2f} s)", style=colour, highlight=False, markup=False
        )

    def summary(self, title: str = "What was seen") -> Table:
        """All steps in one table."""
        table = Table(title=title)
        table.add_column("step")
        table.add_column("observation", overflow="fold")
        table.add_column("seconds", justify="right")
        table.add_column("")
        for seen in self.seen:
            mark = "[green]ok[/green]" if seen.succeeded else "[red]failed[/red]"
            observation = seen.observation.partition("\n")[0].rstrip(";").replace("[", r"\[")
            table.add_row(seen.title, observation, f"{seen.seconds:.2f}", mark)
        return table
