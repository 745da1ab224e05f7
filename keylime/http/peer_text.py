"""What a peer says, in a form that can be shown."""

import re

_MAX_TEXT = 1000
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    """A peer's `text` made fit for logs and terminals: control characters escaped, length bounded."""
    shown = _UNPRINTABLE.sub(lambda match: f"\\x{ord(match[0]):02x}", text[:_MAX_TEXT])
    return shown if len(text) <= _MAX_TEXT else shown + "..."
