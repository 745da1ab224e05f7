"""The page of all options, written from the tables: `python -m keylime.config.reference [--check] PAGE`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from keylime.config.model import ComponentTable, DefaultValue, Option
from keylime.config.options import TABLES
from keylime.config.render import assignment
from keylime.config.settings import variable_name

_INTRODUCTION = """# Configuration reference

Every option of every file, with its kind, its default, and the variable of the environment that sets it as
well. How files, snippets and variables come together, and how values are written, stands in
[configuration](../configuration.md); what a program has made of them is shown by its `--dump-config`.

This page is written by `make config` from the tables in `keylime/config/tables/`.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, *(line for table in TABLES.values() for line in _component(table))])


def _component(table: ComponentTable) -> Iterator[str]:
    yield f"## {table.component}.conf\n"
    shown = [option for option in table.options if not option.ignored]
    for section in dict.fromkeys(option.section for option in shown):
        yield f"### [{section}] of {table.component}.conf\n"
        for option in shown:
            if option.section == section:
                yield from _option(table, option)
    ignored = [f"`{option.name}`" for option in table.options if option.ignored]
    if ignored:
        yield f"Known from existing files, without effect: {', '.join(ignored)}.\n"


def _option(table: ComponentTable, option: Option) -> Iterator[str]:
    yield f"**`{option.name}`** ({', '.join(_facts(table, option))})  "
    yield f"{_plain(option.help)}  "
    yield f"`{variable_name(table, option)}`\n"


def _facts(table: ComponentTable, option: Option) -> Iterator[str]:
    yield option.kind.value
    yield f"default {_shown(table, option, option.default)}"
    if option.packaged is not None:
        yield f"in the packaged file {_shown(table, option, option.packaged)}"
    if option.choices:
        yield "one of " + ", ".join(f"`{choice}`" for choice in option.choices)
    if option.minimum is not None:
        yield f"at least {option.minimum:g}"
    if option.maximum is not None:
        yield f"at most {option.maximum:g}"


def _shown(table: ComponentTable, option: Option, value: DefaultValue) -> str:
    text = assignment(table, option, value).partition("=")[2].strip()
    return f"`{text}`" if text else "empty"


def _plain(text: str) -> str:
    """Without what Markdown would take for its own."""
    return text.replace("<", "&lt;").replace("*", r"\*").replace("_", r"\_")


def main() -> None:
    """Write the page, or with --check only compare; exit status 1 when it differs."""
    parser = argparse.ArgumentParser(description="Write the reference of all options.")
    parser.add_argument("--check", action="store_true", help="only compare, write nothing")
    parser.add_argument("page", type=Path)
    arguments = parser.parse_args()
    path: Path = arguments.page
    if not arguments.check:
        path.write_text(page(), encoding="utf-8")
    elif not path.is_file() or path.read_text(encoding="utf-8") != page():
        sys.exit(f"{path} differs from the tables; run `make config`")


if __name__ == "__main__":
    main()
