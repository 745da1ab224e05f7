"""The packaged *.conf files, written from the tables: `python -m keylime.config.render [--check] DIR`."""

import argparse
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from keylime.config.model import ComponentTable, DefaultValue
from keylime.config.options import TABLES

_WIDTH = 100
_HEADERS: Mapping[str, str] = {
    "agent": 'Text stands in double quotes, numbers and true/false do not (TOML); lists are texts: "a, b".',
    "logging": "Sections [logger_NAME] with level and qualname may be added for single loggers.",
}


def render(table: ComponentTable) -> str:
    """The text of a component's file: every option that has an effect, with its help and default."""
    note = _HEADERS.get(table.component, "Lists are written as ['a', 'b'] or a, b.")
    name = f"{table.component}.conf"
    header = (
        f"{table.title}. These are the defaults: leave this file as it is and put what differs into files of "
        f"/etc/keylime/{name}.d/. {note}"
    )
    return "\n".join([*_comment(header), *_sections(table)]) + "\n"


def _sections(table: ComponentTable) -> Iterator[str]:
    shown = [option for option in table.options if not option.ignored]
    for section in dict.fromkeys(option.section for option in shown):
        yield f"\n[{section}]"
        for option in shown:
            if option.section != section:
                continue
            yield ""
            yield from _comment(option.help)
            value = _toml(option.default) if table.component == "agent" else _ini(option.default)
            yield f"{option.name} = {value}".rstrip()


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
            return f'"{value}"'
        case tuple():
            return f'"{", ".join(str(element) for element in value)}"'
        case _:
            return str(value)


def main() -> None:
    """Write the files, or with --check only compare; exit status 1 when one differs."""
    parser = argparse.ArgumentParser(description="Write the packaged configuration files.")
    parser.add_argument("--check", action="store_true", help="only compare, write nothing")
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    stale = []
    for table in TABLES.values():
        path: Path = arguments.directory / f"{table.component}.conf"
        text = render(table)
        if arguments.check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(path.name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"differ from the tables: {', '.join(stale)}")


if __name__ == "__main__":
    main()
