"""How much work something is, counted and not timed: the calls of Python and C functions that it makes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Calls:
    """The number of calls so far."""

    count: int = 0


@contextmanager
def counted_calls() -> Iterator[Calls]:
    """Counts the calls in this thread until it is left."""
    calls = Calls()

    def note(_frame: object, event: str, _argument: object) -> None:
        if event in ("call", "c_call"):
            calls.count += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)
