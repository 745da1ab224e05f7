"""Parsers whose wrong usage is one line: what was typed, why it is wrong, the nearest that is right."""

import argparse
import difflib
import itertools
import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

_UNKNOWN = re.compile(r"unrecognized arguments: (?P<words>.*)", re.DOTALL)
_MISSING = re.compile(r"the following arguments are required: (?P<words>.*)", re.DOTALL)
# As argparse says it of words for commands; of flags it says which.
_NO_COMMAND = re.compile(
    r"argument (?!-).*?: invalid choice: '(?P<word>.*?)' \(choose from (?P<words>.*)\)", re.DOTALL
)
_WORD = re.compile(r"[\w.-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_JSON = "--json"


class OneLineParser(argparse.ArgumentParser):
    """Ends with 2 and one line on stderr for wrong usage; with `--json` also with a document on stdout.

    Flags that one of several commands does not know are told with the command's name.
    """

    _typed: Sequence[str] = ()

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        self._typed = sys.argv[1:] if args is None else args
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        program, _, command = self.prog.partition(" ")
        line = f"{command}{': ' if command else ''}{_CONTROL.sub(' ', self._helpful(message))}"
        if _JSON in self._typed:
            print(json.dumps({"error": line}))
        self.exit(2, f"{program}: error: {line}\n")

    def _helpful(self, message: str) -> str:
        """The message of argparse, with what to type instead."""
        if (missing := _MISSING.fullmatch(message)) is not None:
            if mistyped := self._mistyped():  # which is why the right one is missing
                message = f"unrecognized arguments: {' '.join(mistyped)}"
            else:
                return f"{missing['words']} must be given ({self._all})"
        if (unknown := _UNKNOWN.fullmatch(message)) is not None:
            flag = unknown["words"].split(" ", 1)[0].partition("=")[0]
            return f"{message} ({self._instead(flag, self._option_string_actions)})"
        if (wrong := _NO_COMMAND.fullmatch(message)) is not None:
            hint = self._instead(wrong["word"], _WORD.findall(wrong["words"]))
            return f"there is no command {wrong['word']!r} ({hint})"
        return message

    def _mistyped(self) -> list[str]:
        """Words like long flags that begin no flag of ours."""
        words = itertools.takewhile(lambda word: word != "--", self._typed)
        return [
            word
            for word in words
            if word.startswith("--")
            and not any(flag.startswith(word.partition("=")[0]) for flag in self._option_string_actions)
        ]

    def _instead(self, typed: str, known: Iterable[str]) -> str:
        near = difflib.get_close_matches(typed, [*known], n=1)
        return f"did you mean {near[0]!r}?" if near else self._all

    @property
    def _all(self) -> str:
        return f"`{self.prog} --help` lists them"
