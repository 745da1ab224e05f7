"""What existing configuration comes to in the files of today. Pure: texts in, texts and remarks out."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from keylime.config.model import ComponentTable, DefaultValue, Option
from keylime.config.options import TABLES
from keylime.config.reader import Assignment
from keylime.config.render import render
from keylime.config.upgrade.single_file import SECTIONS, Place, convert
from keylime.config.values import parse_value

_SHOWN = 100


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """A file that was read, under the name that remarks give it."""

    name: str
    entries: tuple[Assignment, ...]

    @property
    def is_single_file(self) -> bool:
        """Whether it is the one file of Keylime up to 6.4."""
        return any(entry.section in SECTIONS for entry in self.entries)


@dataclass(slots=True)
class Upgrade:
    """The new files by component, and what there is to say; `secret` are those that hold secrets."""

    files: dict[str, str] = field(default_factory=dict)
    secret: set[str] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)


def component_of(section: str) -> str | None:
    """The component that a section of a split file belongs to."""
    for table in TABLES.values():
        if section in table.sections or section.startswith(table.open_sections):
            return table.component
    return None


def upgrade(sources: Sequence[ConfigSource], wanted: Iterable[str] = ()) -> Upgrade:
    """The files of the components that `sources` speak of; `wanted` ones are among them in any case.

    Later sources go before earlier ones.
    """
    result = Upgrade()
    texts: dict[Place, str] = {}
    for source in sources:
        if source.is_single_file:
            converted = convert(source.entries)
            texts |= converted.texts
            result.remarks += [f"{source.name}: {remark}" for remark in converted.remarks]
        else:
            texts |= _of_split_file(source, result.remarks)
    components = {component for component, _, _ in texts} | set(wanted)
    for component, table in TABLES.items():
        if component in components:
            values = _values(table, texts, result)
            result.files[component] = render(table, values)
    return result


def defaults(components: Iterable[str]) -> Upgrade:
    """The files as they are packaged."""
    return Upgrade({component: render(TABLES[component]) for component in components})


def _of_split_file(source: ConfigSource, remarks: list[str]) -> dict[Place, str]:
    texts: dict[Place, str] = {}
    for entry in source.entries:
        component = component_of(entry.section)
        if component is None:
            remarks.append(
                f"{source.name}, line {entry.line}: section [{entry.section}] is unknown, and left out"
            )
        else:
            texts[component, entry.section, entry.name] = entry.text
    return texts


def _values(
    table: ComponentTable, texts: Mapping[Place, str], result: Upgrade
) -> dict[tuple[str, str], DefaultValue]:
    """The values of a component's options that differ from the defaults or were written down."""
    options, former = table.by_key(), table.by_former_key()
    values: dict[tuple[str, str], DefaultValue] = {}
    for (component, section, name), text in texts.items():
        if component != table.component or name == "version":
            continue
        key = (section, name)
        option = options.get(key) or former.get(key)
        if option is None:
            if section in table.sections:
                result.remarks.append(f"{_label(table, key)} is unknown, and left out{_nearest(name, table)}")
            continue
        if option.key in values and key in former:
            continue  # the newer place counts
        _take(table, option, text, values, result)
    return values


def _take(
    table: ComponentTable,
    option: Option,
    text: str,
    values: dict[tuple[str, str], DefaultValue],
    result: Upgrade,
) -> None:
    label = _label(table, option.key)
    try:
        value = parse_value(option, text)
    except ValueError as error:
        if text or not option.ignored:
            shown = "" if option.holds_secret(text) else f" = {text[:_SHOWN]!r}"
            result.remarks.append(f"{label}{shown} cannot be used ({error}), and becomes {option.default!r}")
        return
    if option.ignored:
        if value != option.default and text:
            reason = option.refusal or option.help.rstrip(".")
            result.remarks.append(f"{label} has no effect, and is left out: {reason}")
        return
    values[option.key] = value
    if option.holds_secret(text):
        result.secret.add(table.component)


def _label(table: ComponentTable, key: tuple[str, str]) -> str:
    return f"{table.component}.conf [{key[0]}] {key[1]}"


def _nearest(name: str, table: ComponentTable) -> str:
    found = difflib.get_close_matches(name, [option.name for option in table.options], n=1)
    return f' (did you mean "{found[0]}"?)' if found else ""
