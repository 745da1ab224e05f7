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

MASK = "********"
# Up to the last "@", so that nothing is left over of a password with "@" or "/" in it; and as a parameter.
_PASSWORDS_OF_URL = re.compile(r"(://[^/@:\s]*:)\S+(?=@)|([?&]\w*passw(?:or)?d=)[^&\s]+")


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
    has no effect here; where `refusal` says why, another value than the default stops the start, because who
    set it relies on what it does. `former` are (section, name) pairs under which older files have the same
    option; they are read with a warning. `packaged` is what the packaged file says where that is not the
    default: addresses to listen on, which are open only where somebody installed the file.
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
    refusal: str = ""
    former: tuple[tuple[str, str], ...] = ()
    packaged: DefaultValue | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.section, self.name

    def holds_secret(self, text: str) -> bool:
        """Whether a file with this value must not be readable by everybody."""
        if self.kind is Kind.SECRET:
            return text not in _KEYWORDS_WITHOUT_SECRET
        return _URL_WITH_PASSWORD.search(text) is not None

    def masked(self, text: str) -> str:
        """`text` without what must not be shown: a secret as a whole, of a URL its password."""
        if self.kind is Kind.SECRET:
            return MASK if self.holds_secret(text) else text
        return _PASSWORDS_OF_URL.sub(lambda found: f"{found[1] or found[2]}{MASK}", text)


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
