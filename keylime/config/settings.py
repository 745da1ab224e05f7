"""A component's settings: files, environment and defaults joined, every value checked before anything starts.

Pure: `loader` reads the files. Other modules get a component's frozen dataclass made from these; nobody else
reads configuration.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keylime.config.model import ComponentTable, DefaultValue, Kind, Option
from keylime.config.options import ENVIRONMENT_NAMES, TABLES
from keylime.config.reader import ConfigFile
from keylime.config.values import parse_flag, parse_value
from keylime.errors import ConfigError

_DEFAULT_WORK_DIR = "/var/lib/keylime"
DEFAULT = "default"
"""The source of a value that nobody has set."""
_VARIABLE = "environment variable "  # before its name: the source of a value from there
_TEXTS = frozenset({Kind.TEXT, Kind.ADDRESS, Kind.PATH, Kind.SECRET})


@dataclass(frozen=True, slots=True)
class _Given:
    """The text of an option and where it stands."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class _Value:
    value: DefaultValue
    source: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked values of one component.

    The methods take an option's name, and its section when that is not the component's own. Asking for an
    option that is not in the table, or with the wrong method, is a defect: LookupError or TypeError.
    `warnings` are for the log, `files` are what was read, `extra` holds options of open sections as text.
    """

    component: str
    warnings: tuple[str, ...]
    files: tuple[Path, ...]
    extra: Mapping[tuple[str, str], str]
    _values: Mapping[tuple[str, str], _Value]

    def text(self, option: str, section: str | None = None) -> str:
        """A text, address, path (as written) or secret."""
        value = self._find(option, section)
        if not isinstance(value, str):
            raise TypeError(f"{option} is not a text")
        return value

    def integer(self, option: str, section: str | None = None) -> int:
        value = self._find(option, section)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{option} is not an integer")
        return value

    def number(self, option: str, section: str | None = None) -> float:
        value = self._find(option, section)
        if not isinstance(value, float):
            raise TypeError(f"{option} is not a number")
        return value

    def flag(self, option: str, section: str | None = None) -> bool:
        value = self._find(option, section)
        if not isinstance(value, bool):
            raise TypeError(f"{option} is not a flag")
        return value

    def items(self, option: str, section: str | None = None) -> tuple[str, ...]:
        """The elements of a list; a keyword such as default is a list of that one word."""
        value = self._find(option, section)
        if not isinstance(value, tuple):
            raise TypeError(f"{option} is not a list")
        elements = tuple(element for element in value if isinstance(element, str))
        if len(elements) != len(value):
            raise TypeError(f"{option} is not a list of texts")
        return elements

    def mappings(self, option: str, section: str | None = None) -> tuple[Mapping[str, str], ...]:
        value = self._find(option, section)
        if not isinstance(value, tuple):
            raise TypeError(f"{option} is not a list")
        elements = tuple(element for element in value if isinstance(element, Mapping))
        if len(elements) != len(value):
            raise TypeError(f"{option} is not a list of mappings")
        return elements

    def value(self, option: str, section: str | None = None) -> DefaultValue:
        """Whatever the option is."""
        return self._find(option, section)

    def source(self, option: str, section: str | None = None) -> str:
        """Where the value comes from: a file, an environment variable, or DEFAULT."""
        return self._lookup(option, section).source

    def is_of_environment(self, option: str, section: str | None = None) -> bool:
        """Whether a variable of the environment sets it."""
        return self.source(option, section).startswith(_VARIABLE)

    @contextmanager
    def placed(self, option: str, section: str | None = None) -> Iterator[None]:
        """Lets a ConfigError about the value of an option begin with where that value stands."""
        try:
            yield
        except ConfigError as error:
            source = self.source(option, section)
            if source == DEFAULT:
                raise
            raise ConfigError(f"{source}: {error}") from error

    def changed(self, later: "Settings") -> tuple[tuple[str, str], ...]:
        """Section and name of each option whose value is another one in `later`, but for ignored ones."""
        is_ignored = {option.key: option.ignored for option in TABLES[self.component].options}
        return tuple(
            key
            for key, found in self._values.items()
            if not is_ignored[key] and later._values[key].value != found.value
        )

    def _find(self, option: str, section: str | None) -> DefaultValue:
        return self._lookup(option, section).value

    def _lookup(self, option: str, section: str | None) -> _Value:
        key = (section or self.component, option)
        if key not in self._values:
            raise LookupError(f'{self.component} has no option "{option}" in section [{key[0]}]')
        return self._values[key]


def join_settings(
    component: str,
    files: Sequence[ConfigFile],
    environ: Mapping[str, str],
    warnings: Sequence[str] = (),
) -> Settings:
    """The settings of a component (a key of TABLES): its `files`, lowest priority first, and the environment.

    `warnings` come before those about what is in the files. Raises ConfigError, which names file, section,
    option and remedy, for a value that cannot be used.
    """
    table = TABLES[component]
    given: dict[tuple[str, str], _Given] = {}
    extra: dict[tuple[str, str], str] = {}
    told = list(warnings)
    for file in files:
        known, unknown, remarks = _sort_entries(table, file)
        given |= known
        extra |= unknown
        told += remarks
    given |= _from_environment(table, environ)
    told += _unknown_variables(table, environ)
    values = {option.key: _value(option, given.get(option.key)) for option in table.options}
    told += _without_effect(table, given)
    return Settings(component, tuple(told), tuple(file.path for file in files), extra, values)


def work_dir(environ: Mapping[str, str]) -> Path:
    """The working directory: KEYLIME_DIR, else /var/lib/keylime; always absolute."""
    return Path(environ.get("KEYLIME_DIR") or _DEFAULT_WORK_DIR).absolute()


def path_below(base: Path, settings: Settings, option: str) -> Path:
    """The path in `option`, from the working directory `base` where it is relative.

    One left at a default in the usual working directory is in `base`, wherever that is.
    """
    path = Path(settings.text(option))
    default = TABLES[settings.component].by_key()[settings.component, option].default
    if str(path) == default and path.is_relative_to(_DEFAULT_WORK_DIR):
        path = path.relative_to(_DEFAULT_WORK_DIR)
    return base / path


def is_test_mode(environ: Mapping[str, str]) -> bool:
    """Whether KEYLIME_TEST is on. Raises ConfigError when it is neither on nor off."""
    try:
        return parse_flag(environ.get("KEYLIME_TEST") or "off")
    except ValueError as error:
        raise ConfigError(f"environment variable KEYLIME_TEST: {error}") from error


def _sort_entries(
    table: ComponentTable, file: ConfigFile
) -> tuple[dict[tuple[str, str], _Given], dict[tuple[str, str], str], list[str]]:
    """The known options of a file, those of open sections, and remarks about the others."""
    options, former = table.by_key(), table.by_former_key()
    known: dict[tuple[str, str], _Given] = {}
    moved: dict[tuple[str, str], _Given] = {}
    extra: dict[tuple[str, str], str] = {}
    remarks = []
    for entry in file.entries:
        key = (entry.section, entry.name)
        place = f"{file.path}, line {entry.line}"
        if key in options:
            known[key] = _Given(entry.text, place)
        elif key in former:
            new = former[key]
            moved[new.key] = _Given(entry.text, place)
            remarks.append(f'{place}: option "{entry.name}" has moved to section [{new.section}]')
        elif entry.section not in table.sections and entry.section.startswith(table.open_sections):
            extra[key] = entry.text
        else:
            remarks.append(f"{place}: {_unknown_option(table, *key)}")
    return moved | known, extra, remarks


def _unknown_option(table: ComponentTable, section: str, name: str) -> str:
    if section not in table.sections:
        return (
            f'unknown section [{section}], its option "{name}" is ignored{_nearest(section, table.sections)}'
        )
    names = [option.name for option in table.options if option.section == section]
    elsewhere = [option.section for option in table.options if option.name == name]
    hint = f"; it belongs to section [{elsewhere[0]}]" if elsewhere else _nearest(name, names)
    return f'unknown option "{name}" in section [{section}] is ignored{hint}'


def _nearest(word: str, words: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, list(words), n=1)
    return f'; did you mean "{matches[0]}"?' if matches else ""


def variable_name(table: ComponentTable, option: Option) -> str:
    """The variable of the environment that sets an option."""
    section = "" if option.section == table.component else f"{option.section}_"
    return f"KEYLIME_{table.component}_{section}{option.name}".upper()


def _from_environment(table: ComponentTable, environ: Mapping[str, str]) -> dict[tuple[str, str], _Given]:
    names = {variable_name(table, option): option for option in table.options}
    return {
        option.key: _Given(environ[name].strip('" \t'), f"{_VARIABLE}{name}")
        for name, option in names.items()
        if name in environ
    }


def _unknown_variables(table: ComponentTable, environ: Mapping[str, str]) -> Iterator[str]:
    own = f"KEYLIME_{table.component.upper()}_"
    known = {variable_name(table, option) for option in table.options} | {f"{own}CONFIG"}
    prefixes = tuple(f"KEYLIME_{component.upper()}_" for component in TABLES)
    for name in sorted(environ):
        if name != name.upper() and name.upper() in known:
            yield f"environment variable {name} is ignored: its name must be {name.upper()}"
            continue
        # A name that fits no component is reported by the programs, not again by what all of them read.
        stray = (
            name.startswith("KEYLIME_")
            and not name.startswith(prefixes)
            and name not in ENVIRONMENT_NAMES
            and table.component not in ("ca", "logging")
        )
        if stray or (name.startswith(own) and name not in known):
            yield f"unknown environment variable {name} is ignored{_nearest(name, known | ENVIRONMENT_NAMES)}"


def _value(option: Option, given: _Given | None) -> _Value:
    if given is None:
        return _Value(option.default, DEFAULT)
    try:
        return _Value(parse_value(option, given.text), given.source)
    except ValueError as error:
        if option.ignored:
            return _Value(option.default, DEFAULT)
        shown = "" if option.holds_secret(given.text) else f" = {given.text[:100]!r}"
        raise ConfigError(f"{given.source}: [{option.section}] {option.name}{shown}: {error}") from error


def _without_effect(table: ComponentTable, given: Mapping[tuple[str, str], _Given]) -> Iterator[str]:
    """Remarks about what is set and does nothing. Raises ConfigError where it must not do nothing."""
    for option in table.options:
        found = given.get(option.key)
        if not option.ignored or found is None or not found.text:
            continue
        try:
            differs = parse_value(option, found.text) != option.default
        except ValueError:
            differs = True
        if differs and option.refusal:
            raise ConfigError(
                f"{found.source}: [{option.section}] {option.name} = {found.text[:100]!r}: "
                f"{option.refusal}; set it to {option.default!r} or remove the line"
            )
        if differs:
            yield f'{found.source}: option "{option.name}" of section [{option.section}] has no effect'
