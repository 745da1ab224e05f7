"""The text of one configuration file as entries. Pure: opens no file and knows no option.

One reader for what is found in the field: INI files, TOML files of agents, and snippets without a section
header, which are read as the component's own section.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from keylime.errors import ConfigError

_HEADER = re.compile(r"\[([^\[\]]+)\]\s*(?:[#;].*)?")
_ASSIGNMENT = re.compile(r"([^=:]+?)\s*[=:]\s*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Assignment:
    """One assignment: `name` in lower case, `text` without quotes, `line` counted from 1."""

    section: str
    name: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file that was read, with its entries."""

    path: Path
    entries: tuple[Assignment, ...]


@dataclass(slots=True)
class _Assignment:
    section: str
    name: str
    lines: list[str]
    line: int
    indent: int


def parse_file(text: str, *, section: str, origin: str, toml: bool = False) -> tuple[Assignment, ...]:
    """The entries of a file, in order. `section` is where a file without header belongs, `origin` its name.

    With `toml`, values follow the rules of TOML (escapes, comments after the value) where they can. Raises
    ConfigError, which names the line, for a line that is no assignment and an option that is there twice.
    """
    seen: dict[tuple[str, str], int] = {}
    entries = []
    for found in _assignments(text, section, origin):
        first = seen.setdefault((found.section, found.name), found.line)
        if first != found.line:
            raise ConfigError(
                f"{origin}, line {found.line}: [{found.section}] {found.name} is set twice "
                f"(first in line {first}); remove one of the two"
            )
        raw = "\n".join(found.lines).strip()
        value = _toml_text(raw) if toml else _ini_text(raw)
        if "\0" in f"{found.section}{found.name}{raw}{value}":
            shown = f"[{found.section}] {found.name}".replace("\0", "")
            raise ConfigError(
                f"{origin}, line {found.line}: {shown} holds a NUL character; correct or remove the line"
            )
        entries.append(Assignment(found.section, found.name, value, found.line))
    return tuple(entries)


def _assignments(text: str, section: str, origin: str) -> Iterator[_Assignment]:
    current: _Assignment | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.strip()
        if not content or content[0] in "#;":
            continue
        indent = len(line) - len(line.lstrip())
        # As in every INI reader, a line that is indented deeper than its option continues the value.
        if current is not None and indent > current.indent:
            current.lines.append(content)
            continue
        if current is not None:
            yield current
            current = None
        if header := _HEADER.fullmatch(content):
            section = header[1].strip()
        elif assignment := _ASSIGNMENT.fullmatch(content):
            current = _Assignment(section, assignment[1].lower(), [assignment[2]], number, indent)
        else:
            raise ConfigError(
                # Without the line itself, which may be half a password.
                f'{origin}, line {number}: neither "option = value" nor "[section]" nor a comment (#)'
            )
    if current is not None:
        yield current


def _ini_text(raw: str) -> str:
    """Double quotes and blanks at the ends do not belong to the value; backslashes have no meaning."""
    return raw.strip('" \t')


def _toml_text(raw: str) -> str:
    """A TOML value as plain text; what is not TOML is taken as INI."""
    try:
        value = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        return _ini_text(raw)
    match value:
        case {"value": str(text), **rest} if not rest:
            return text.strip()
        case {"value": list(elements), **rest} if not rest:
            return repr(elements)
        case _:  # numbers, booleans, and words that happen to be dates: their text, less a comment
            return _ini_text(raw.partition("#")[0])
