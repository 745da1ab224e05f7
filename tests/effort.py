"""How hard the tests try: all that they know (`make test-thorough`); that without fuzzing and a year of
certificates (`make test`); or what the fast loop has time for (`make unit`).
"""

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

IS_THOROUGH = os.environ.get("KEYLIME_TESTS_THOROUGH") == "1"
_IS_QUICK = os.environ.get("KEYLIME_TESTS_QUICK") == "1"
# A prime, so that all bits of a byte and all kinds of parameters have their turn.
_SHARE = 11 if _IS_QUICK else 1


def examples(count: int) -> int:
    """How many examples to make up: `count`, or a share of them, but not less than five."""
    return max(count // _SHARE, min(count, 5))


def tried(cases: Sequence[T]) -> Sequence[T]:
    """The cases to try, of very many that are alike: all, or in the fast loop each eleventh."""
    return cases[::_SHARE]
