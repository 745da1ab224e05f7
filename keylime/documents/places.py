"""Lines of a JSON text: where in an operator's file a member is that an error names."""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from typing import TypeAlias

Place: TypeAlias = Sequence[str | int]

_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(strict=False)
# As errors about documents begin: digests['/usr/bin/x'][0], ima.log_hash_alg, excludes[3].
_QUOTED = r"\[(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")\]"
_STEP = re.compile(rf"(?P<name>[\w-]+)|\.(?P<member>[\w-]+)|\[(?P<index>\d+)\]|(?P<key>{_QUOTED})")
_PLACE = re.compile(rf"[\w-]+(?:\.[\w-]+|\[\d+\]|{_QUOTED})*(?=: )")


def place_in_message(message: str) -> Place:
    """The place that an error about a document begins with; empty where it begins with none."""
    match = _PLACE.match(message)
    if match is None:
        return ()
    steps: list[str | int] = []
    for step in _STEP.finditer(match[0]):
        if step["index"] is not None:
            steps.append(int(step["index"]))
        elif step["key"] is not None:
            steps.append(str(ast.literal_eval(step["key"][1:-1])))
        else:
            steps.append(step["name"] or step["member"])
    return steps


def line_of(text: str, place: Place) -> int | None:
    """The number of the line in which the value at `place` begins; None if the text has no such place."""
    at = _skip(text, 0)
    try:
        for step in place:
            found = next((start for key, start in _members(text, at) if key == step), None)
            if found is None:
                return None
            at = found
    except (ValueError, IndexError, RecursionError):
        return None
    return text.count("\n", 0, at) + 1


def _members(text: str, at: int) -> Iterator[tuple[str | int, int]]:
    """Keys, or indices, of the object or array that begins at `at`, and where their values begin."""
    opening, at = text[at], _skip(text, at + 1)
    if opening not in "{[" or text[at] in "}]":
        return
    index = 0
    while True:
        key: str | int = index
        if opening == "{":
            key, at = _DECODER.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)  # the colon
        yield key, at
        _, at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        if text[at] != ",":
            return
        at = _skip(text, at + 1)
        index += 1


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return at if match is None else match.end()
