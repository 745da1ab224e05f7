"""Manual pages and completion of every program, made from its own argument parser.

    python packaging/tools/pages.py PYPROJECT MANUAL BASH ZSH FISH

Runs with the programs installed, and with argparse-manpage and shtab (requirements/build.in).
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage
from parsers import parser_of, section_of


def _manual(parser: argparse.ArgumentParser, script: str, project: Mapping[str, str]) -> str:
    page = Manpage(
        parser,
        {
            "prog": script,
            "project_name": "Keylime",
            "version": project["version"],
            "manual_section": section_of(script),
            "manual_title": "Keylime",
            "description": _first_sentence(parser.description or project["description"]),
            "format": "single-commands-section",
        },
    )
    page.date = ""  # the same sources make the same page
    before, options, after = str(page).partition(".SH OPTIONS\n")
    return before + _commands(parser) + options + after


def _commands(parser: argparse.ArgumentParser) -> str:
    """The section on a program's commands, where its parser tells what they are."""
    commands: Sequence[tuple[str, str, str]] = getattr(parser, "commands", ())
    lines, last = [], None
    for group, word, summary in commands:
        if group != last:
            lines += [f".SS {_escaped(group)}"]
        lines += [".TP", f"\\fB{_escaped(word)}\\fR", _escaped(summary)]
        last = group
    return "\n".join([".SH COMMANDS", *lines, "", ""]) if lines else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


def _completed(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser with the words that it takes, and does not insist on, where a shell shall propose them."""
    for action in parser._actions:
        action.choices = action.choices or getattr(action, "completions", None)
    return parser


def _first_sentence(text: str) -> str:
    sentence = re.split(r"(?<=[.:])\s", " ".join(text.split()), maxsplit=1)[0].rstrip(".:")
    return sentence[:1].lower() + sentence[1:]


def _scripts(pyproject: Path) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    for script, place in sorted(project["scripts"].items()):
        yield script, place, project


def main() -> None:
    pyproject, manual, bash, zsh, fish = map(Path, sys.argv[1:])
    for directory in (bash, zsh, fish):
        directory.mkdir(parents=True, exist_ok=True)
    for script, place, project in _scripts(pyproject):
        parser = parser_of(script, place)
        section = section_of(script)
        page = manual / f"man{section}" / f"{script}.{section}"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(_manual(parser, script, project), "utf-8")
        _completed(parser)
        (bash / script).write_text(shtab.complete(parser, shell="bash"), "utf-8")  # noqa: S604 - its language
        (zsh / f"_{script}").write_text(shtab.complete(parser, shell="zsh"), "utf-8")  # noqa: S604
        (fish / f"{script}.fish").write_text(shtab.complete(parser, shell="fish"), "utf-8")  # noqa: S604


if __name__ == "__main__":
    main()
