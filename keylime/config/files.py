"""Where a component's configuration files are, and reading them: the only module here that touches the disk.

What exists but cannot be read, or could have been changed by somebody else, stops the program.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from keylime.config.model import ComponentTable, Option
from keylime.config.reader import Assignment, ConfigFile, parse_file
from keylime.errors import ConfigError
from keylime.safe_paths import Owners, require_safe_directory, require_safe_file


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """What was read, from lowest to highest priority, and what was strange on the way."""

    files: tuple[ConfigFile, ...]
    warnings: tuple[str, ...] = ()


def find_files(
    table: ComponentTable, named: str | None, etc: Path, usr_etc: Path, owners: Owners
) -> FoundFiles:
    """The files of a component; `named` is the file that KEYLIME_<COMPONENT>_CONFIG names, if it is set.

    Raises ConfigError for a file or directory that cannot be read or that others than `owners` may write.
    """
    warnings: tuple[str, ...] = ()
    if named:
        path = Path(named)
        if _is_regular(path):
            return FoundFiles((_read(table, path, owners),))
        problem = f"KEYLIME_{table.component.upper()}_CONFIG names {named}, which is not a file"
        if table.component == "agent":
            raise ConfigError(f"{problem}; correct or unset the variable")
        # The other components have always gone on with their usual files here.
        warnings = (f"{problem}; the usual files are read instead",)
    name = f"{table.component}.conf"
    if table.component == "agent":
        found = _layered(table, usr_etc / name, owners) + _layered(table, etc / name, owners)
    else:
        found = _base(table, (etc / name, usr_etc / name), owners)
        for directory in (usr_etc, etc):
            found += _snippets(table, directory / f"{name}.d", owners)
    return FoundFiles(found, warnings)


def _layered(table: ComponentTable, base: Path, owners: Owners) -> tuple[ConfigFile, ...]:
    """The agent's order: the base files of both directories are merged."""
    own = (_read(table, base, owners),) if _is_regular(base) else ()
    return own + _snippets(table, base.with_name(f"{base.name}.d"), owners)


def _base(table: ComponentTable, candidates: tuple[Path, ...], owners: Owners) -> tuple[ConfigFile, ...]:
    """The order of the other components: base files are alternatives, the first that says anything counts."""
    for path in candidates:
        if _is_regular(path):
            file = _read(table, path, owners)
            if file.entries:
                return (file,)
    return ()


def _snippets(table: ComponentTable, directory: Path, owners: Owners) -> tuple[ConfigFile, ...]:
    """All regular files of a directory in byte order, whatever their suffix."""
    try:
        names = sorted(os.listdir(os.fsencode(directory)))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise _unreadable(directory, error) from error
    require_safe_directory(directory, owners)
    paths = [directory / os.fsdecode(name) for name in names]
    return tuple(_read(table, path, owners) for path in paths if _is_regular(path))


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(path, error) from error


def _read(table: ComponentTable, path: Path, owners: Owners) -> ConfigFile:
    try:
        with path.open("rb") as file:
            # Of the open file, so that it cannot be exchanged between look and read.
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            require_safe_file(path, owners)
            content = file.read()
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8; correct it or move it elsewhere") from error
    is_agent = table.component == "agent"
    entries = parse_file(text, section=table.component, origin=str(path), toml=is_agent)
    _refuse_shown_secrets(table.by_key(), path, mode, entries)
    return ConfigFile(path, entries)


def _refuse_shown_secrets(
    options: Mapping[tuple[str, str], Option], path: Path, mode: int, entries: tuple[Assignment, ...]
) -> None:
    if not mode & stat.S_IROTH:
        return
    for entry in entries:
        option = options.get((entry.section, entry.name))
        if option is not None and option.holds_secret(entry.text):
            raise ConfigError(
                f"{path} may be read by everybody (mode {mode:04o}) and holds the secret "
                f"[{entry.section}] {entry.name}; run: chmod o-rwx {path}"
            )


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot read {path}: {error.strerror}; start as root or give the user of this program access "
        "(directories need mode 0700, files 0600, and its ownership)"
    )
