"""Names that a runtime policy lists and no kernel measures: without a word, they would look like rules."""

import re
from collections.abc import Iterable, Iterator

from keylime.ima.measurement_list import BOOT_AGGREGATE

_SHOWN = 3

# The kernel measures absolute paths, without detours, and prints a blank as an underscore.
_DOUBTS = (
    (re.compile(r"(?!/)"), "not an absolute path"),
    (re.compile(r".* "), "blanks are measured as underscores"),
    (re.compile(r".*(//|/\.\.?(/|$))|.*/$"), "not a path as the kernel writes it"),
)
_ANY_DOUBT = re.compile(r"(?!/)|.*( |//|/\.\.?(/|$)|/$)")


def name_doubt(name: str) -> str | None:
    """Why no kernel prints this name; None where one may."""
    return next((reason for pattern, reason in _DOUBTS if pattern.match(name)), None)


def name_warnings(names: Iterable[str], where: str) -> Iterator[str]:
    """One line for each kind of name that can hardly ever match; `where` is the section that has them."""
    doubtful = [name for name in names if _ANY_DOUBT.match(name) and name != BOOT_AGGREGATE]
    for pattern, reason in _DOUBTS:
        kind = [name for name in doubtful if pattern.match(name)]
        if kind:
            shown = ", ".join(repr(name) for name in kind[:_SHOWN])
            more = f" and {len(kind) - _SHOWN} more" if len(kind) > _SHOWN else ""
            yield f"{where}: {shown}{more} will not match any file: {reason}"
