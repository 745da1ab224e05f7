"""What `top` shows and what its keys do: values in, lines and orders out.

The terminal, the clock and the verifier are its caller's.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from keylime.findings.finding import printable
from keylime_tenant.people import below
from keylime_tenant.standing import Standing, standing_of
from keylime_tenant.terminal import Terminal, age, ago
from keylime_tenant.told_status import ToldStatus

_KEYS = (
    "up/down move  space mark  a mark all  enter findings  / filter  s state  r reactivate  t stop  "
    "d delete  q quit"
)
_STATES: Sequence[Standing | None] = (None, *Standing)


class BulkAction(enum.Enum):
    """What can be done to agents, many at once."""

    REACTIVATE = "reactivate"
    STOP = "stop"
    DELETE = "delete"


_ACTIONS = {"r": BulkAction.REACTIVATE, "t": BulkAction.STOP, "d": BulkAction.DELETE}


class KeyMode(enum.Enum):
    """What the next key means."""

    LIST = enum.auto()
    FILTER = enum.auto()
    CONFIRM = enum.auto()


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the verifier said last, and when; `problem` is why it says nothing now."""

    statuses: Mapping[str, ToldStatus] = field(default_factory=dict)
    asked_at: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """What a person has chosen."""

    mode: KeyMode = KeyMode.LIST
    filter: str = ""
    state: Standing | None = None
    cursor: str | None = None
    marked: frozenset[str] = frozenset()
    opened: frozenset[str] = frozenset()
    pending: BulkAction | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Quit:
    """End."""


@dataclass(frozen=True, slots=True)
class Carry:
    """Do this to these agents."""

    action: BulkAction
    agents: tuple[str, ...]


Order = Quit | Carry | None


@dataclass(frozen=True, slots=True)
class ScreenLine:
    """One line of the screen; it may be longer than the screen is wide."""

    text: str
    style: str = ""
    is_current: bool = False


def visible(fleet: Fleet, view: View) -> list[str]:
    """The ids that the filters let through, the worst first."""
    needle = view.filter.lower()

    def wanted(agent_id: str, status: ToldStatus) -> bool:
        if view.state is not None and standing_of(status) is not view.state:
            return False
        texts = (agent_id, status.ip or "", *_policies(status))
        return any(needle in text.lower() for text in texts)

    found = [
        (standing_of(status), agent) for agent, status in fleet.statuses.items() if wanted(agent, status)
    ]
    return [agent for _, agent in sorted(found)]


def _policies(status: ToldStatus) -> Iterable[str]:
    return (name for name in (status.runtime_policy_name, status.mb_policy_name) if name)


def press(view: View, key: str, fleet: Fleet) -> tuple[View, Order]:
    """The view after `key`, a character or the name of one ("up", "enter", ...), and what to do."""
    view = replace(view, message="")
    if view.mode is KeyMode.FILTER:
        return _type(view, key), None
    if view.mode is KeyMode.CONFIRM:
        return _confirm(view, key, fleet)
    agents = visible(fleet, view)
    current = _current(view, agents)
    match key:
        case "q" | "escape":
            return view, Quit()
        case "up" | "k" | "down" | "j" | "home" | "end" | "page up" | "page down":
            return replace(view, cursor=_moved(agents, current, key)), None
        case "/":
            return replace(view, mode=KeyMode.FILTER), None
        case "s":
            following = _STATES[(_STATES.index(view.state) + 1) % len(_STATES)]
            return replace(view, state=following), None
        case "a":
            return replace(
                view, marked=frozenset() if view.marked >= set(agents) else frozenset(agents)
            ), None
        case " " if current is not None:
            marked = view.marked ^ {current}
            return replace(view, marked=marked, cursor=_moved(agents, current, "down")), None
        case "enter" if current is not None:
            return replace(view, opened=view.opened ^ {current}, cursor=current), None
        case "r" | "t" | "d" if current is not None:
            return replace(view, mode=KeyMode.CONFIRM, pending=_ACTIONS[key]), None
    return view, None


def _type(view: View, key: str) -> View:
    if key == "enter":
        return replace(view, mode=KeyMode.LIST)
    if key == "escape":
        return replace(view, mode=KeyMode.LIST, filter="")
    if key == "backspace":
        return replace(view, filter=view.filter[:-1])
    return replace(view, filter=view.filter + key) if len(key) == 1 and key.isprintable() else view


def _confirm(view: View, key: str, fleet: Fleet) -> tuple[View, Order]:
    """Only a `y` is a yes."""
    asked = replace(view, mode=KeyMode.LIST, pending=None)
    agents = chosen(fleet, view)
    if key != "y" or view.pending is None or not agents:
        return replace(asked, message="nothing was done"), None
    return replace(asked, marked=frozenset()), Carry(view.pending, agents)


def chosen(fleet: Fleet, view: View) -> tuple[str, ...]:
    """The agents that an action is for: those that are marked and shown, without any the current one."""
    agents = visible(fleet, view)
    marked = tuple(agent for agent in agents if agent in view.marked)
    current = _current(view, agents)
    return marked or (() if current is None else (current,))


def _current(view: View, agents: Sequence[str]) -> str | None:
    if not agents:
        return None
    return view.cursor if view.cursor in agents else agents[0]


_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -10, "page down": 10}


def _moved(agents: Sequence[str], current: str | None, key: str) -> str | None:
    if current is None:
        return None
    last = len(agents) - 1
    if key in ("home", "end"):
        return agents[0 if key == "home" else last]
    return agents[max(0, min(last, agents.index(current) + _STEPS[key]))]


def screen(fleet: Fleet, view: View, place: str, now: float) -> list[ScreenLine]:
    """All lines, the list as long as it is: its caller shows those around the current one."""
    agents = visible(fleet, view)
    lines = [ScreenLine(_headline(fleet, agents, place, now), "strong")]
    if fleet.problem:
        lines.append(ScreenLine(fleet.problem, "bad"))
    lines.append(_prompt(fleet, view))
    width = max((len(printable(agent)) for agent in agents), default=5)
    lines.append(ScreenLine(f"  {'AGENT':{width}}  {'STATE':14}  {'LAST PASS':16}  PASSES", "quiet"))
    current = _current(view, agents)
    for agent in agents:
        status = fleet.statuses[agent]
        standing = standing_of(status)
        passed = ago(status.last_successful_attestation, now)
        mark = "*" if agent in view.marked else " "
        count = "?" if status.attestation_count is None else status.attestation_count
        text = f"{mark} {printable(agent):{width}}  {standing.word:14}  {passed:16}  {count}"
        lines.append(ScreenLine(text, standing.style, agent == current))
        if agent in view.opened:
            plain = Terminal(is_wide=True)
            lines += [ScreenLine(f"  {line}") for line in below(status, plain)] or [
                ScreenLine("     no findings")
            ]
    return lines


def _headline(fleet: Fleet, agents: Sequence[str], place: str, now: float) -> str:
    counts: dict[Standing, int] = {}
    for status in fleet.statuses.values():
        standing = standing_of(status)
        counts[standing] = counts.get(standing, 0) + 1
    told = ", ".join(f"{counts[one]} {one.word}" for one in Standing if one in counts) or "no agents"
    shown = "" if len(agents) == len(fleet.statuses) else f", {len(agents)} shown"
    asked = "not asked yet" if fleet.asked_at is None else f"{age(int(fleet.asked_at), now)} ago"
    return f"{place}: {told}{shown} ({asked})"


def _prompt(fleet: Fleet, view: View) -> ScreenLine:
    if view.mode is KeyMode.CONFIRM and view.pending is not None:
        agents = chosen(fleet, view)
        whom = f"agent {printable(agents[0])}" if len(agents) == 1 else f"{len(agents)} agents"
        return ScreenLine(f"{view.pending.value} {whom}? y: yes, any other key: no", "doubtful")
    if view.mode is KeyMode.FILTER:
        return ScreenLine(f"filter: {view.filter}_  (enter keeps it, escape drops it)", "doubtful")
    if view.message:
        return ScreenLine(view.message, "doubtful")
    filters = [f"filter {view.filter!r}"] if view.filter else []
    if view.state is not None:
        filters.append(f"only {view.state.word}")
    return ScreenLine(f"{', '.join(filters)}  {_KEYS}".strip(), "quiet")


def folded(lines: Sequence[ScreenLine], width: int) -> list[ScreenLine]:
    """Lines that are too long go on below themselves: nothing is cut."""
    room = max(width, 1)
    return [
        replace(line, text=line.text[start : start + room])
        for line in lines
        for start in range(0, max(len(line.text), 1), room)
    ]


def window(lines: Sequence[ScreenLine], head: int, height: int) -> list[ScreenLine]:
    """The first `head` lines, and of the others as many as fit, with the current one among them."""
    room = max(height - head, 0)
    rest = lines[head:]
    place = next((number for number, line in enumerate(rest) if line.is_current), 0)
    first = max(0, min(place - room // 2, len(rest) - room))
    return [*lines[:head], *rest[first : first + room]][:height]


def head_of(fleet: Fleet) -> int:
    """How many lines of `screen` stand above the list."""
    return 4 if fleet.problem else 3
