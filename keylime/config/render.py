"""The text of configuration files, made from the tables: the packaged ones, and those of an upgrade. Pure."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping

from keylime.config.model import ComponentTable, DefaultValue, Option

_WIDTH = 100
_PLAIN = re.compile(r"[^,\[\]\s'\"][^,\[\]'\"]*(?<!\s)")  # what is an element of a list without quotes
_HEADERS: Mapping[str, str] = {
    "agent": 'Text stands in double quotes, numbers and true/false do not (TOML); lists are texts: "a, b".',
    "logging": "Sections [logger_NAME] with level and qualname may be added for single loggers.",
}


Values = Mapping[tuple[str, str], DefaultValue]
"""Values by section and name."""


def render(table: ComponentTable, values: Values | None = None) -> str:
    """The text of a component's file: every option that has an effect, with its help.

    It has the packaged defaults, or the `values` of an existing installation and the defaults of the program.
    """
    note = _HEADERS.get(table.component, "Lists are written as ['a', 'b'] or a, b.")
    name = f"{table.component}.conf"
    if values is None:
        header = (
            f"{table.title}. These are the defaults{_but_for(table)}: leave this file as it is and put what "
            f"differs into files of /etc/keylime/{name}.d/. {note}"
        )
    else:
        header = f"{table.title}, written by keylime_upgrade_config from what was there before. {note}"
    return "\n".join([*_comment(header), *_sections(table, values)]) + "\n"


def _sections(table: ComponentTable, values: Values | None) -> Iterator[str]:
    shown = [option for option in table.options if not option.ignored]
    for section in dict.fromkeys(option.section for option in shown):
        yield f"\n[{section}]"
        for option in shown:
            if option.section != section:
                continue
            yield ""
            yield from _comment(option.help)
            value = _shown(option, values)
            if values is None and value != option.default:
                yield from _comment(f"Without this file the default is {option.default}.")
            yield assignment(table, option, value)


def _shown(option: Option, values: Values | None) -> DefaultValue:
    if values is not None:
        return values.get(option.key, option.default)
    return option.default if option.packaged is None else option.packaged


def _but_for(table: ComponentTable) -> str:
    return ", but for the addresses" if any(option.packaged is not None for option in table.options) else ""


def assignment(table: ComponentTable, option: Option, value: DefaultValue) -> str:
    """The line that sets an option, in the notation of its component's files."""
    text = _toml(value) if table.component == "agent" else _ini(value)
    return f"{option.name} = {text}".rstrip()


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _ini(value: DefaultValue) -> str:
    match value:
        case tuple((single,)) if single == "default":  # a keyword, not an element
            return "default"
        case tuple():
            return repr(list(value))
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _toml(value: DefaultValue) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False)  # whose escapes are among TOML's
        case tuple():
            plain = ", ".join(str(element) for element in value)
            is_plain = all(_PLAIN.fullmatch(str(element)) for element in value)
            return json.dumps(plain if is_plain else repr(list(value)), ensure_ascii=False)
        case _:
            return str(value)
