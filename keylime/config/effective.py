"""The values that count and where each comes from, in words for operators: secrets are masked. Pure."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from keylime.config.model import MASK, DefaultValue, Option
from keylime.config.options import TABLES
from keylime.config.render import assignment
from keylime.config.settings import Settings


@dataclass(frozen=True, slots=True)
class Effective:
    """One option as a program takes it; `source` is a file and line, a variable, or default."""

    component: str
    section: str
    option: str
    value: DefaultValue
    line: str
    source: str


def effective(settings: Settings, only: Collection[str] = ()) -> tuple[Effective, ...]:
    """The options of a component that have an effect, in the order of its table; `only` these, if any."""
    table = TABLES[settings.component]
    found = []
    for option in table.options:
        if option.ignored or (only and option.name not in only):
            continue
        value = _masked(option, settings.value(option.name, option.section))
        line = assignment(table, option, value)
        source = settings.source(option.name, option.section)
        found.append(Effective(table.component, option.section, option.name, value, line, source))
    if not only:
        found += _extra(settings)
    return tuple(found)


def _extra(settings: Settings) -> Iterator[Effective]:
    """Options of sections that have no table."""
    for (section, name), text in settings.extra.items():
        yield Effective(settings.component, section, name, text, f"{name} = {text}", "file")


def _masked(option: Option, value: DefaultValue) -> DefaultValue:
    if isinstance(value, str):
        return option.masked(value)
    if isinstance(value, tuple):
        # Elements are texts or, for severities, mappings without secrets.
        return tuple(option.masked(each) if isinstance(each, str) else each for each in value)  # type: ignore[return-value]  # each element keeps its type
    return value


def as_lines(found: Sequence[Effective]) -> Iterator[str]:
    """Each option on a line of its own: `[section] option = value  # source`."""
    for one in found:
        yield f"[{one.section}] {one.line}  # {one.source}".replace("\n", " ")


def as_tree(found: Sequence[Effective]) -> Mapping[str, object]:
    """The same for programs: component, section, option, then its value and source."""
    tree: dict[str, dict[str, dict[str, object]]] = {}
    for one in found:
        section = tree.setdefault(one.component, {}).setdefault(one.section, {})
        section[one.option] = {"value": one.value, "source": one.source, "masked": MASK in str(one.value)}
    return tree
