"""What an option is: its name, kind, default and limits. Knows no file format and no component."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

DefaultValue: TypeAlias = str | int | float | bool | tuple[str, ...] | tuple[Mapping[str, str], ...]

# Words that options understand; a file that holds only these gives nothing away.
_KEYWORDS_WITHOUT_SECRET = frozenset({"", "default", "generate"})
_URL_WITH_PASSWORD = re.compile(r"://[^/@:\s]*:[^/@\s]+@")


class Kind(Enum):
    """How the text of an option is read, and with which method of `Settings` its value is taken."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    FLAG = "flag"
    LIST = "list"
    MAPPINGS = "list of mappings"
    ADDRESS = "address"
    ADDRESSES = "list of addresses"
    PATH = "path"
    SECRET = "secret"  # noqa: S105  the name of a kind


@dataclass(frozen=True, slots=True)
class Option:
    """One line of a component's table.

    `choices` bound a text, or each element of a list. An `ignored` option is known from existing files and
    has no effect here. `former` are (section, name) pairs under which older files have the same option; they
    are read with a warning.
    """

    section: str
    name: str
    kind: Kind
    default: DefaultValue
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    ignored: bool = False
    former: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        return self.section, self.name

    def holds_secret(self, text: str) -> bool:
        """Whether a file with this value must not be readable by everybody."""
        if self.kind is Kind.SECRET:
            return text not in _KEYWORDS_WITHOUT_SECRET
        return _URL_WITH_PASSWORD.search(text) is not None


@dataclass(frozen=True, slots=True)
class ComponentTable:
    """All options of a component, in the order of its packaged file.

    Further sections, whose names start with one of `open_sections`, may be in a file and hold any options.
    """

    component: str
    title: str
    options: tuple[Option, ...]
    open_sections: tuple[str, ...] = ()

    @property
    def sections(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(option.section for option in self.options))

    def by_key(self) -> Mapping[tuple[str, str], Option]:
        return {option.key: option for option in self.options}

    def by_former_key(self) -> Mapping[tuple[str, str], Option]:
        return {key: option for option in self.options for key in option.former}
