"""The argument parser of a program, for what is made of it: manual pages, completion, the manual."""

import argparse
import contextlib
import importlib
import sys

# Daemons belong to section 8, what people call belongs to section 1.
_DAEMONS = frozenset({"keylime_agent", "keylime_push_model_agent", "keylime_registrar", "keylime_verifier"})


class _ParserFound(BaseException):
    """Carries the parser out of a program that was about to use it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(script: str, place: str) -> argparse.ArgumentParser:
    """The parser of a console script, which is run until it would parse its arguments, and no further."""

    def caught(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _ParserFound(self)

    module, _, function = place.partition(":")
    original = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args, sys.argv
    argparse.ArgumentParser.parse_args = caught  # type: ignore[assignment,method-assign]
    argparse.ArgumentParser.parse_known_args = caught  # type: ignore[assignment,method-assign]
    sys.argv = [script, "-"]  # without any, some only print their help
    try:
        with contextlib.redirect_stdout(None):
            getattr(importlib.import_module(module), function)()
    except _ParserFound as found:
        found.parser.prog = script
        return found.parser
    except SystemExit:
        pass
    finally:
        argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args, sys.argv = original  # type: ignore[method-assign]
    raise SystemExit(f"{script} parses no arguments")


def section_of(script: str) -> int:
    return 8 if script in _DAEMONS else 1
