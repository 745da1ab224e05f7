"""The text of a measurement list as it arrived, cut into lines a slice at a time.

A list may have a hundred megabytes and millions of lines. Whole, it is held once, in the form that it came
in; decoded and cut into lines, never more of it than a slice.
"""

import re
from collections.abc import Iterator
from itertools import repeat
from typing import Self, TypeAlias

import msgspec

from keylime.errors import MalformedEvidence

SLICE = 500  # lines: what is done with them takes a millisecond or two
_PIECE = 128 << 10  # bytes that are decoded at once
_ESCAPE_SIZE = 12  # of the longest: two surrogates
# What may be cut off from the rest of a JSON string: no half of an escape sequence or of a surrogate pair.
_WHOLE = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|\\u(?![dD][89abAB])[0-9a-fA-F]{4})*+"
)

Buffer: TypeAlias = bytes | bytearray | memoryview


class ListText:
    """An ASCII list. Its slices can be gone through as often as it takes."""

    __slots__ = ("_content", "_is_json")

    def __init__(self, content: Buffer, *, is_json: bool = False) -> None:
        """`content` is the list, or with `is_json` the inside of the JSON string that it is sent as."""
        self._content = memoryview(content)
        self._is_json = is_json

    @classmethod
    def of_json(cls, string: msgspec.Raw) -> Self:
        """The list in a JSON string that was checked for its syntax."""
        return cls(memoryview(string)[1:-1], is_json=True)

    def slices(self) -> Iterator[list[bytes]]:
        """The lines by index, without newlines, at most `SLICE` at a time; see `split_lines`.

        A slice may be empty: then the next line is a long one, and others may have their turn. Raises
        MalformedEvidence.
        """
        blank = 0  # lines that are empty, and count unless the list ends with them
        for lines in self._line_groups():
            filled = len(lines)
            while filled and not lines[filled - 1]:
                filled -= 1
            if filled:
                yield from _blank_lines(blank)
                blank = 0
                for begin in range(0, filled, SLICE):
                    yield lines[begin : min(begin + SLICE, filled)]
            else:
                yield []
            blank += len(lines) - filled

    def content(self) -> bytes:
        """The whole of it."""
        return b"".join(self._pieces())

    def _line_groups(self) -> Iterator[list[bytes]]:
        """All lines, as many at a time as end in one piece."""
        begun: list[bytes] = []  # of a line that goes on in the next piece
        for piece in self._pieces():
            if b"\n" not in piece:
                begun.append(piece)
                yield []
                continue
            lines = piece.split(b"\n")
            if begun:
                lines[0] = b"".join((*begun, lines[0]))
            begun = [lines.pop()]
            yield lines
        yield [b"".join(begun)]

    def _pieces(self) -> Iterator[bytes]:
        content, start = self._content, 0
        while start < len(content):
            end = min(start + _PIECE, len(content))
            if not self._is_json:
                yield bytes(content[start:end])
            else:
                end = self._whole_until(start, end)
                yield _decoded(bytes(content[start:end]))
            start = end

    def _whole_until(self, start: int, end: int) -> int:
        """Where a piece that begins at `start` may end, near `end`."""
        content = self._content
        if end == len(content):
            return end
        # Seldom are there escape sequences so near; characters must not be cut either.
        while end > start and content[end] & 0xC0 == 0x80:
            end -= 1
        if b"\\" in bytes(content[max(start, end - _ESCAPE_SIZE) : end]):
            whole = _WHOLE.match(content, start, end)
            end = start if whole is None else whole.end()
        if end == start:
            raise MalformedEvidence("the IMA list is not UTF-8 text")
        return end


def _decoded(piece: bytes) -> bytes:
    if b"\\" not in piece:
        return piece
    try:
        return msgspec.json.decode(b'"' + piece + b'"', type=str).encode()
    except (msgspec.DecodeError, UnicodeError) as error:
        raise MalformedEvidence(f"the IMA list is not text: {error}") from error


def _blank_lines(count: int) -> Iterator[list[bytes]]:
    while count > 0:
        yield list(repeat(b"", min(count, SLICE)))
        count -= SLICE
