"""The flags `--import [URL]` and `--dry-run` of registrar and verifier, and what `--json` means with them."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL

from keylime.errors import ConfigError
from keylime.takeover.place import DatabasePlace
from keylime.takeover.report import TakeoverReport
from keylime.takeover.source import parse_source

_FROM_CONFIGURATION = ""


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What an operator wants: to take over what is at `url`, or with None what database_url names."""

    url: str | None
    is_dry: bool
    as_json: bool

    def source(self, place: DatabasePlace, work_dir: Path, sqlite_name: str) -> URL:
        """The old database. Raises ConfigError."""
        if self.url is not None:
            return parse_source(self.url, work_dir=work_dir, sqlite_name=sqlite_name)
        if place.old is None:
            raise ConfigError(
                "--import: database_url names no database of an earlier Keylime; name it, like "
                f"--import sqlite:///{work_dir / sqlite_name}"
            )
        return place.old

    def shown(self, report: TakeoverReport) -> str:
        """The report as it was asked for."""
        return report.to_json() if self.as_json else report.text()


def add_import_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to those that every daemon has, `--json` among them."""
    parser.add_argument(
        "--import",
        dest="import_from",
        metavar="URL",
        nargs="?",
        const=_FROM_CONFIGURATION,
        help="take over what an earlier Keylime (5.8 to 7.14) has at URL, by default in database_url, say "
        "what was taken and what was not, and end; the old database is only read, what is here stays",
    )
    parser.add_argument("--dry-run", action="store_true", help="with --import: only say it, write nothing")


def import_request(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> ImportRequest | None:
    """What the flags ask for; flags that mean nothing end the program."""
    if arguments.import_from is None:
        if arguments.dry_run:
            parser.error("--dry-run goes with --import")
        return None
    if arguments.check_config or arguments.dump_config:
        parser.error("--import goes without --check-config and --dump-config")
    if arguments.migrate:
        parser.error("--import brings the tables up to date by itself: leave out --migrate")
    return ImportRequest(arguments.import_from or None, arguments.dry_run, arguments.json)
