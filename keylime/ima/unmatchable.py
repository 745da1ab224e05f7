"""Names that a runtime policy lists and no kernel measures: without a word, they would look like rules."""

import re
from collections.abc import Iterable, Iterator

import re2  # type: ignore[import-untyped]

from keylime.documents.patterns import re2_options
from keylime.ima.measurement_list import BOOT_AGGREGATE

_SHOWN = 3
_FEW = 1000  # names, beyond which it is faster to look at each

# The kernel measures absolute paths, without detours, and prints a blank as an underscore. Only files that
# are mounted nowhere have no path: those of memfd_create() are measured by their name.
_DOUBTS = (
    (re.compile(r"(?!/|memfd:)"), "not an absolute path"),
    (re.compile(r".* "), "blanks are measured as underscores"),
    (re.compile(r".*(//|/\.\.?(/|$))|.*/$"), "not a path as the kernel writes it"),
)
_ANY_DOUBT = re.compile(r"(?!/|memfd:)|.*( |//|/\.\.?(/|$)|/$)")
_ANY_DOUBT_IN_LINES = rb"(?m)^(?:[^/]|$)| |//|/\.\.?(?:/|$)|/$"


def name_doubt(name: str) -> str | None:
    """Why no kernel prints this name; None where one may."""
    return next((reason for pattern, reason in _DOUBTS if pattern.match(name)), None)


def name_warnings(names: Iterable[str], where: str) -> Iterator[str]:
    """One line for each kind of name that can hardly ever match; `where` is the section that has them."""
    doubtful = _doubtful([name for name in names if name != BOOT_AGGREGATE])
    for pattern, reason in _DOUBTS:
        kind = [name for name in doubtful if pattern.match(name)]
        if kind:
            shown = ", ".join(repr(name) for name in kind[:_SHOWN])
            more = f" and {len(kind) - _SHOWN} more" if len(kind) > _SHOWN else ""
            yield f"{where}: {shown}{more} will not match any file: {reason}"


def _doubtful(names: list[str]) -> list[str]:
    lines = "\n".join(names).encode("utf-8", "surrogatepass")
    found = _doubtful_lines(lines) if lines.count(b"\n") == len(names) - 1 else None
    return [name for name in names if _ANY_DOUBT.match(name)] if found is None else found


def _doubtful_lines(lines: bytes) -> list[str] | None:
    """The same where each line is a name, in a sixth of the time; None if there are more than a few."""
    options = re2_options()
    options.encoding = re2.Options.Encoding.LATIN1  # for RE2, a byte is a character
    pattern = re2.compile(_ANY_DOUBT_IN_LINES, options)
    found: list[str] = []
    start = 0
    while start <= len(lines) and (match := pattern.search(lines, start)) is not None:
        if len(found) == _FEW:
            return None
        start = lines.rfind(b"\n", 0, match.start()) + 1
        end = lines.find(b"\n", match.start())
        line = lines[start:] if end < 0 else lines[start:end]
        found.append(line.decode("utf-8", "surrogatepass"))
        start += len(line) + 1
    return found
