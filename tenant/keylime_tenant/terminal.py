"""Lines for a person at a terminal: columns, colours, ages. Nothing is ever cut.

An id, a path or a digest that is shown in part cannot be copied, searched or compared. Columns that do not
fit are left out as a whole, the least important first, and a line that is still too long is the terminal's to
break.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

_STYLES = {"good": "32", "bad": "31;1", "doubtful": "33", "quiet": "2", "strong": "1"}
_GAP = "  "


@dataclass(frozen=True, slots=True)
class Terminal:
    """What lines are made for; a stream that is no terminal has no colours, and all the room there is."""

    width: int | None = None
    has_colours: bool = False
    is_wide: bool = False  # everything is wanted, whether it fits or not

    def paint(self, text: str, style: str) -> str:
        """`text` in a style of ours: good, bad, doubtful, quiet, strong; others change nothing."""
        code = _STYLES.get(style)
        return f"\x1b[{code}m{text}\x1b[0m" if self.has_colours and code and text else text


def wants_colours(environ: Mapping[str, str], *, is_terminal: bool) -> bool:
    """Whether colours are shown (https://no-color.org)."""
    return is_terminal and not environ.get("NO_COLOR") and environ.get("TERM", "dumb") != "dumb"


@dataclass(frozen=True, slots=True)
class Column:
    """One column; those of the highest rank go first where there is no room, and rank 0 never does."""

    title: str
    cells: Sequence[str]
    rank: int = 0
    styles: Sequence[str] = ()

    @property
    def width(self) -> int:
        """Of the title or the longest cell."""
        return max(map(len, (self.title, *self.cells)))


def lines_of(columns: Sequence[Column], terminal: Terminal) -> list[str]:
    """A heading, and a line for each row. Empty columns are left out."""
    shown = [column for column in columns if column.rank == 0 or any(column.cells)]
    while not terminal.is_wide and terminal.width is not None and _total(shown) > terminal.width:
        least = max(shown, key=lambda column: column.rank)
        if least.rank == 0:
            break
        shown.remove(least)
    count = max((len(column.cells) for column in columns), default=0)
    heading = _GAP.join(column.title.upper().ljust(column.width) for column in shown).rstrip()
    return [terminal.paint(heading, "quiet"), *(_row(shown, number, terminal) for number in range(count))]


def _total(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + len(_GAP) * (len(columns) - 1)


def _row(columns: Sequence[Column], number: int, terminal: Terminal) -> str:
    cells = []
    for position, column in enumerate(columns):
        is_last = position == len(columns) - 1
        cell = column.cells[number]
        padding = "" if is_last else " " * (column.width - len(cell))
        style = column.styles[number] if column.styles else ""
        cells.append(terminal.paint(cell, style) + padding)
    return _GAP.join(cells).rstrip()


def record_lines(fields: Iterable[tuple[str, str]], terminal: Terminal) -> list[str]:
    """One line for each name and value, the values below each other; fields without a value are left out."""
    present = [(name, value) for name, value in fields if value]
    width = max((len(name) for name, _ in present), default=0)
    return [f"{terminal.paint(name.ljust(width), 'quiet')}{_GAP}{value}" for name, value in present]


def moment(epoch_s: object) -> str:
    """`epoch_s` in UTC for people; "never" for 0, null or nonsense."""
    if not isinstance(epoch_s, int | float) or epoch_s <= 0 or epoch_s > 253402300799:
        return "never"
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def age(since: int | None, now: float) -> str:
    """The time since the epoch second `since`, in its two largest units; empty without one."""
    if since is None:
        return ""
    seconds = max(0, int(now - since))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def ago(epoch_s: object, now: float) -> str:
    """How long ago something was; "never" where `moment` says so."""
    if moment(epoch_s) == "never" or not isinstance(epoch_s, int | float):
        return "never"
    return f"{age(int(epoch_s), now)} ago"
