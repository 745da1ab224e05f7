"""The program keylime_upgrade_config: the configuration of an earlier Keylime, as this release reads it."""

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from keylime.command_line import OneLineParser
from keylime.config.options import TABLES
from keylime.config.reader import parse_file
from keylime.config.upgrade.conversion import ConfigSource, Upgrade, defaults, upgrade
from keylime.errors import ConfigError, KeylimeError
from keylime.file_errors import file_errors_explained
from keylime.interruption import end_interrupted
from keylime.pki.files import write_atomically
from keylime.version import installed_version

FORMAT = "2.6"
_SINGLE_FILE = "keylime.conf"
_PROGRAM = "keylime_upgrade_config"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Places:
    """Where configuration is on this machine."""

    etc: Path = Path("/etc/keylime")
    single_files: tuple[Path, ...] = (Path("/usr/etc/keylime.conf"), Path("/etc/keylime.conf"))

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Places":
        """With what the environment adds: the lowest and the highest of the single files."""
        named = environ.get("KEYLIME_CONFIG")
        lowest = (Path(named),) if named else ()
        home = environ.get("HOME")
        highest = (Path(home) / ".config" / _SINGLE_FILE,) if home else ()
        return cls(single_files=(*lowest, *cls().single_files, *highest))


def main() -> None:
    """Exit status: 0 when the files are written or nothing is to be done, 1 when they cannot be."""
    arguments = _parse_arguments()
    try:
        with file_errors_explained():
            _run(arguments, Places.of(os.environ))
    except KeylimeError as error:
        sys.exit(f"{_PROGRAM}: error: {error}")
    except KeyboardInterrupt:
        end_interrupted(_PROGRAM)


def _parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(
        prog=_PROGRAM,
        description="Writes the configuration files of this release from those of an earlier Keylime: the "
        "single keylime.conf up to 6.4, or one file for each component in any format. Options that have no "
        "effect any more are named. Nothing is overwritten without --force.",
    )
    parser.add_argument(
        "--component",
        action="append",
        nargs="+",
        choices=list(TABLES),
        metavar="NAME",
        help=f"write only these of {', '.join(TABLES)}; without it, what the existing files are about",
    )
    parser.add_argument(
        "--input",
        action="append",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="read these, later ones before earlier ones, and not those in /etc",
    )
    parser.add_argument(
        "--out",
        "--output",
        type=Path,
        metavar="DIR",
        help="write into this directory, by default /etc/keylime for root and . for others",
    )
    parser.add_argument("--defaults", action="store_true", help="read nothing and write the packaged files")
    parser.add_argument("--force", action="store_true", help="replace files, and keep them as FILE.bkp")
    parser.add_argument("--debug", action="store_true", help="name every file that is read and written")
    parser.add_argument(
        "--version",
        nargs="?",
        const="",
        metavar="X.Y",
        help=f"the format to write, which is {FORMAT}; without X.Y the version of this program",
    )
    for name, meaning in (("--mapping", "FILE"), ("--templates", "DIR")):
        parser.add_argument(
            name, type=Path, metavar=meaning, help="has no effect: what moved where is built in"
        )
    arguments = parser.parse_args()
    if arguments.version == "":
        print(parser.prog, installed_version())
        parser.exit()
    if arguments.version not in (None, FORMAT):
        parser.error(f"--version {arguments.version}: only format {FORMAT} is written")
    if arguments.defaults and arguments.input:
        parser.error("--defaults reads nothing: leave out --input")
    return arguments


def _run(arguments: argparse.Namespace, places: Places) -> None:
    directory: Path = arguments.out or (places.etc if os.geteuid() == 0 else Path())
    if not directory.is_dir():
        raise ConfigError(f"--out: {directory} is not a directory: make it, or name another one")
    wanted = _flat(arguments.component)
    for name in ("mapping", "templates"):
        if getattr(arguments, name) is not None:
            _say(f"--{name} has no effect: what moved where is built in")
    if arguments.defaults:
        result = defaults(wanted or list(TABLES))
    else:
        sources = _read(_flat(arguments.input) or _installed(places), arguments.debug)
        if not sources and not wanted:
            raise ConfigError(
                f"there is no configuration in {places.etc}, and no {_SINGLE_FILE}: name files with --input, "
                "or write new ones with --defaults"
            )
        result = upgrade(sources, wanted)
        if not result.files:
            names = ", ".join(source.name for source in sources)
            raise ConfigError(f"{names}: nothing in there is configuration of Keylime")
    for remark in result.remarks:
        _say(remark)
    files = {name: text for name, text in result.files.items() if not wanted or name in wanted}
    _write(directory, files, result, arguments)


def _flat(groups: Iterable[Sequence[T]] | None) -> list[T]:
    return [one for group in groups or () for one in group]


def _installed(places: Places) -> list[Path]:
    """The files of each component, and of the single ones as many as there are; the former go first."""
    split = [places.etc / f"{component}.conf" for component in TABLES]
    single = [path for path in places.single_files if path.is_file()]
    return [*single, *(path for path in split if path.is_file())]


def _read(paths: Sequence[Path], debug: bool) -> list[ConfigSource]:
    sources = []
    for path in paths:
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not a text file in UTF-8") from error
        component = path.name.partition(".")[0]
        section = component if component in TABLES else "general"
        entries = parse_file(text, section=section, origin=str(path), toml=component == "agent")
        sources.append(ConfigSource(str(path), entries))
        if debug:
            _say(f"read {path}: {len(entries)} options")
    return sources


def _write(directory: Path, files: Mapping[str, str], result: Upgrade, arguments: argparse.Namespace) -> None:
    changed = {}
    for component, text in files.items():
        path = directory / f"{component}.conf"
        if path.is_file() and path.read_bytes() == text.encode():
            continue
        changed[path] = text
    present = [path for path in changed if path.exists()]
    if present and not arguments.force:
        raise ConfigError(
            f"{present[0]} is there already: --force replaces it and keeps it as {present[0].name}.bkp, "
            "--out DIR writes elsewhere; nothing was written"
        )
    if not changed:
        _say("Configuration is up-to-date")
    for path, text in changed.items():
        _replace(path, text, is_secret=path.stem in result.secret)
        _say(f"wrote {path}")


def _replace(path: Path, text: str, *, is_secret: bool) -> None:
    try:
        owner = path.stat() if path.exists() else path.parent.stat()
        mode = owner.st_mode & 0o755 if path.exists() else 0o640
        if path.exists():
            shutil.copy2(path, _free_name(path))
        write_atomically(path, text.encode(), mode & 0o750 if is_secret else mode)
        if os.geteuid() == 0:
            os.chown(path, owner.st_uid, owner.st_gid)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _free_name(path: Path) -> Path:
    """FILE.bkp, or with a number behind it when there is one already."""
    backup = path.with_name(f"{path.name}.bkp")
    number = 1
    while backup.exists():
        backup = path.with_name(f"{path.name}.bkp.{number}")
        number += 1
    return backup


def _say(text: str) -> None:
    print(f"{_PROGRAM}: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
