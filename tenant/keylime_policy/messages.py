"""What the policy programs say beside their result: one line each, on stderr."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from rich.console import Console
from rich.progress import track

from keylime.errors import KeylimeError
from keylime.file_errors import file_errors_explained
from keylime.interruption import end_interrupted
from keylime.pki.library_warnings import ignore_library_warnings

T = TypeVar("T")

LINE_S = 10.0  # between lines about what takes long


@dataclass(frozen=True, slots=True)
class Messages:
    """Lines that name the program; remarks only with `verbose`."""

    program: str
    verbose: bool = False
    clock: Callable[[], float] = time.monotonic

    def warning(self, text: str) -> None:
        """Something that the operator should look at."""
        print(f"{self.program}: warning: {text}", file=sys.stderr)

    def warnings(self, texts: Iterable[str]) -> None:
        """One warning for each text."""
        for text in texts:
            self.warning(text)

    def note(self, text: str) -> None:
        """Something that is good to know."""
        print(f"{self.program}: {text}", file=sys.stderr)

    def remark(self, text: str) -> None:
        """Something for who looks closer."""
        if self.verbose:
            self.note(text)

    def progress(self, items: Iterable[Sequence[T]], total: int, title: str) -> Iterator[Sequence[T]]:
        """`items` one after the other, with a progress bar on stderr; lines where that is no terminal."""
        console = Console(stderr=True)
        if not console.is_terminal:
            return self._lines(items, total, title)
        return iter(track(items, total=total, description=title, console=console, transient=True))

    def _lines(self, items: Iterable[Sequence[T]], total: int, title: str) -> Iterator[Sequence[T]]:
        told = self.clock()
        for number, item in enumerate(items):
            if self.clock() - told >= LINE_S:
                told = self.clock()
                self.note(f"{title}: {number} of {total} ({100 * number // max(total, 1)} %)")
            yield item


def run_program(program: str, action: Callable[[], int], *, failed: int, as_json: bool = False) -> NoReturn:
    """Ends the process with what `action` returns; with `failed` and one line for a KeylimeError.

    With `as_json` that line is a document on stdout, too.
    """
    ignore_library_warnings()
    try:
        with file_errors_explained():
            sys.exit(action())
    except KeylimeError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": str(error)}))
        sys.exit(failed)
    except BrokenPipeError:
        # Whoever read our output has seen enough; without a reader it cannot be flushed at exit either.
        sys.stderr.close()
        sys.exit(failed)
    except KeyboardInterrupt:
        end_interrupted(program)
