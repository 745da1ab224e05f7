r"""File names in a measurement list: bytes for the kernel, texts for policies, findings and JSON.

Nearly all names are UTF-8, and then the text is the name. A byte that is not becomes three octal digits after
a backslash (`caf\351`, as `ls -b` prints it). No two names have the same text.
"""

import re

_BACKSLASH = r"\134"
# A backslash that would be taken for the beginning of an escaped byte, or of an escaped backslash.
_AMBIGUOUS = re.compile(r"\\(?=134|[23][0-7]{2})")
_ESCAPE = re.compile(rb"\\(134|[23][0-7]{2})")
_UNDECODABLE = re.compile("[\udc80-\udcff]")


def name_text(name: bytes) -> str:
    """The text that stands for `name`; `name_bytes` takes it back."""
    text = name.decode("utf-8", "surrogateescape")
    if "\\" in text:
        text = _AMBIGUOUS.sub(lambda _: _BACKSLASH, text)
    return text if text.isascii() else _UNDECODABLE.sub(_octal, text)


def name_bytes(text: bytes) -> bytes:
    """The name that a text, encoded as UTF-8, stands for."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), text)


def has_escapes(text: bytes) -> bool:
    """Whether `text`, read as bytes of a name, would not stand for itself."""
    return b"\\" in text and _ESCAPE.search(text) is not None


def list_text(lines: bytes) -> str:
    """Lines of a list as a text that can travel as JSON: those that are not UTF-8 are escaped like names.

    Whoever reads such a line tells by its template hash that it was escaped.
    """
    try:
        return lines.decode()
    except UnicodeDecodeError:
        return "\n".join(_line_text(line) for line in lines.split(b"\n"))


def _line_text(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return name_text(line)


def _octal(match: re.Match[str]) -> str:
    return f"\\{ord(match[0]) - 0xDC00:03o}"
