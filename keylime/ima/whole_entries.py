"""Entries whose names hold newlines: kernels print these as they are, and so one entry on several lines.

Such lines are put together where the template hash says that they are one entry. Lines keep their index,
which is what agents count: the entry stands at its last line, and the lines before it are blank.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator

from keylime.errors import MalformedEvidence
from keylime.ima.measurement_list import is_hash_right, parse_line

# Bounds for lines that no kernel writes: names have at most 4096 bytes, signatures fewer.
_MOST_LINES = 64
_MOST_BYTES = 16 << 10
_LEAST_BYTES = 50  # of a line that begins an entry
_BEGINNING = re.compile(rb"[ 0-9][0-9] [0-9a-f]{40,128} [^ ]+ ")


def whole_entries(slices: Iterable[list[bytes]]) -> Iterator[list[bytes]]:
    """`slices` of a list, of the same lines in all, with entries that go on in the next line put together."""
    held: list[bytes] = []  # the last entry of a slice, which may go on in the next one
    for lines in slices:
        together = held + lines
        begin = next((at for at in reversed(range(len(together))) if _begins(together[at])), 0)
        if len(together) - begin > _MOST_LINES:
            begin = len(together)
        held = together[begin:]
        yield with_whole_entries(together[:begin])
    if held:
        yield _ended(with_whole_entries(held))


def with_whole_entries(lines: list[bytes]) -> list[bytes]:
    """The same of lines that do not go on."""
    # Nearly always, and found out in a fraction of the time that reading the lines takes.
    if not lines or (min(lines) >= b"10 " and max(lines) < b"10!" and min(map(len, lines)) > _LEAST_BYTES):
        return lines
    whole = list(lines)
    begin = 0
    for at in range(1, len(lines) + 1):
        if at == len(lines) or _begins(lines[at]):
            if at - begin > 1:
                count, entry = _put_together(lines[begin:at])
                if count > 1:
                    whole[begin : begin + count] = [*[b""] * (count - 1), entry]
            begin = at
    return whole


def _begins(line: bytes) -> bool:
    return _BEGINNING.match(line) is not None


def _put_together(lines: list[bytes]) -> tuple[int, bytes]:
    """The entry that `lines` begin with, and how many of them it takes."""
    first = lines[0]
    is_violation = False
    with contextlib.suppress(MalformedEvidence):
        entry = parse_line(first)
        if is_hash_right(entry):
            return 1, first
        is_violation = entry.is_violation
    most = min(len(lines), _MOST_LINES)
    while is_violation and most > 1 and not lines[most - 1]:
        most -= 1  # nothing tells whether its name ends so, and nothing rests on it
    for count in range(most, 1, -1):
        text = b"\n".join(lines[:count])
        if len(text) > _MOST_BYTES:
            continue
        with contextlib.suppress(MalformedEvidence):
            if is_hash_right(entry := parse_line(text)) or (is_violation and entry.is_violation):
                return count, text
    return 1, first


def _ended(lines: list[bytes]) -> list[bytes]:
    """The last lines of a list, whose blank end was cut off: the last name may have ended so."""
    last = lines[-1]
    with contextlib.suppress(MalformedEvidence):
        entry = parse_line(last)
        if not (entry.is_violation or is_hash_right(entry)) and is_hash_right(parse_line(last + b"\n")):
            return [*lines[:-1], last + b"\n"]
    return lines
