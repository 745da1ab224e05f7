"""The version of what is installed, as every program says it."""

import argparse
from typing import NoReturn

DISTRIBUTION = "keylime"


def installed_version() -> str:
    """The version of the installed distribution; of sources that nobody installed none is known."""
    from importlib import metadata  # which costs every start as much as the parser does

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def add_version(parser: argparse.ArgumentParser) -> None:
    """Gives a program the flag `--version`, which prints its name and version and ends it with status 0."""
    parser.add_argument("--version", action=_ShowVersion)


class _ShowVersion(argparse.Action):
    """As argparse's own, but looks for the version only when it is asked for: programs start quickly."""

    def __init__(self, option_strings: list[str], dest: str, **_: object) -> None:
        super().__init__(
            option_strings,
            argparse.SUPPRESS,
            nargs=0,
            default=argparse.SUPPRESS,
            help="print the version and end",
        )

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(parser.prog, installed_version())
        parser.exit()
