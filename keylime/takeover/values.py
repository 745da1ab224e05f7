"""Values of foreign rows, read with patience: any column may be missing, empty, or not what it should be."""

import json
import re
from collections.abc import Mapping

from keylime.errors import KeylimeError
from keylime.nesting import is_too_deep

Row = Mapping[str, object]
"""A row by the names of its columns; what the table does not have is not there."""

_SHOWN = 40
_LARGEST = 2**31 - 1
_NUMBER = re.compile(r"-?[0-9]+")
_WORDS = {"0": False, "1": True, "false": False, "true": True, "f": False, "t": True}


class NotTakenOver(KeylimeError):
    """A value of an earlier release that cannot be taken over as it is; names the column."""


def text_of(row: Row, name: str) -> str | None:
    """The text in a column, None when nothing is there. Raises NotTakenOver for what is no text."""
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, str | bytes):
        return sound(value, name) or None
    raise NotTakenOver(f"{name} is not text")


def sound(value: str | bytes, name: str) -> str:
    """A text that every database can hold and every answer can bear. Raises NotTakenOver."""
    try:
        text = value.decode() if isinstance(value, bytes) else value.encode().decode()
    except UnicodeError as error:
        raise NotTakenOver(f"{name} is not UTF-8 text") from error
    if "\0" in text:
        raise NotTakenOver(f"{name} is not text: it holds a zero byte")
    return text


def number_of(row: Row, name: str, *, least: int = 0, most: int = _LARGEST) -> int | None:
    """The number in a column, None when nothing is there. Raises NotTakenOver."""
    value = row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = int(value) if len(value) < len(str(_LARGEST)) + 2 else most + 1
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise NotTakenOver(f"{name} is {shown(value)}, which is no number")
    if not least <= value <= most:
        raise NotTakenOver(f"{name} is {shown(value)}: expected {least} to {most}")
    return value


def flag_of(row: Row, name: str) -> bool | None:
    """The truth in a column of 0 and 1, None when nothing is there, or nothing that is either."""
    value = row.get(name)
    return _WORDS.get(str(value).lower()) if value is not None else None


def json_of(row: Row, name: str) -> object:
    """What the JSON text in a column says, None when nothing is there. Raises NotTakenOver."""
    text = text_of(row, name)
    if text is None or not text.strip():
        return None
    if is_too_deep(text):
        raise NotTakenOver(f"{name} is nested too deeply")
    try:
        found: object = json.loads(text)
    except ValueError as error:
        raise NotTakenOver(f"{name} is not JSON") from error
    return found


def shown(value: object) -> str:
    """A value within a message, cut and without control characters."""
    return ascii(value)[:_SHOWN]
