"""What a program's own argument parser says, as a part of its page in the manual."""

import argparse
import html
from collections.abc import Iterator


def options_of(parser: argparse.ArgumentParser, level: int = 3) -> str:
    """Usage, and a table for each group of options, in Markdown; then the same for each subcommand."""
    return "\n".join(_lines(parser, level))


def _lines(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    formatter = parser._get_formatter()
    formatter._width = 84
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    yield from ("```text", formatter.format_help().strip(), "```", "")
    subcommands: list[argparse._SubParsersAction[argparse.ArgumentParser]] = []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]
        subcommands += [one for one in actions if isinstance(one, argparse._SubParsersAction)]
        rows = [action for action in actions if not isinstance(action, argparse._SubParsersAction)]
        if any(not isinstance(action, argparse._HelpAction) for action in rows):
            if group.title not in ("options", "positional arguments"):
                yield from (f"{_text(str(group.title)).capitalize()}:", "")
            if group.description:
                yield from (_text(group.description), "")
            yield from ("| option | |", "|---|---|")
            yield from (_row(parser, action) for action in rows)
            yield ""
    for action in subcommands:
        summaries = {one.dest: one.help for one in action._choices_actions}
        for name, child in action.choices.items():
            yield from (f"{'#' * level} {parser.prog} {name}", "")
            child.prog = f"{parser.prog} {name}"
            if about := child.description or summaries.get(name):
                yield from (_text(about[:1].upper() + about[1:]), "")
            yield from _lines(child, level)


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    name = formatter._format_action_invocation(action)
    about = formatter._expand_help(action) if action.help else ""
    return f"| <code>{_text(name)}</code> | {_text(about)} |"


def _text(text: str) -> str:
    text = html.escape(" ".join(text.split()), quote=False)
    for character in "\\`*_[]|":
        text = text.replace(character, f"&#{ord(character)};")
    return text
