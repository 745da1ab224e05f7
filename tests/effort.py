"""How hard the tests try: all that they know, or what the fast loop (`make unit`) has the time for."""

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_SHARE = 7  # a prime, so that all bits of a byte and all kinds of parameters have their turn
_IS_QUICK = os.environ.get("KEYLIME_TESTS_QUICK") == "1"


def examples(count: int) -> int:
    """How many examples to make up: `count`, or a seventh of them, but not less than five."""
    return max(count // _SHARE, min(count, 5)) if _IS_QUICK else count


def tried(cases: Sequence[T]) -> Sequence[T]:
    """The cases to try, of very many that are alike: all, or each seventh."""
    return cases[::_SHARE] if _IS_QUICK else cases
