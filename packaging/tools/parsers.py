"""The argument parser of a program, for what is made of it: manual pages, completion, the manual."""

import argparse
import importlib
import sys
from contextlib import ExitStack, redirect_stdout
from unittest.mock import patch

# Daemons belong to section 8, what people call belongs to section 1.
_DAEMONS = frozenset({"keylime_agent", "keylime_push_model_agent", "keylime_registrar", "keylime_verifier"})
# In some releases of Python one of these calls another, in others none.
_PARSING = ("parse_args", "parse_known_args", "parse_intermixed_args", "parse_known_intermixed_args")


class _ParserFound(BaseException):
    """Carries the parser out of a program that was about to use it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(script: str, place: str) -> argparse.ArgumentParser:
    """The parser of a console script, which is run until it would parse its arguments, and no further."""

    def caught(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _ParserFound(self)

    module, _, function = place.partition(":")
    try:
        with ExitStack() as stack:
            for name in _PARSING:
                stack.enter_context(patch.object(argparse.ArgumentParser, name, caught))
            # Without any argument, some only print their help.
            stack.enter_context(patch.object(sys, "argv", [script, "-"]))
            stack.enter_context(redirect_stdout(None))
            getattr(importlib.import_module(module), function)()
    except _ParserFound as found:
        found.parser.prog = script
        return found.parser
    except SystemExit:
        pass
    raise SystemExit(f"{script} parses no arguments")


def section_of(script: str) -> int:
    return 8 if script in _DAEMONS else 1
