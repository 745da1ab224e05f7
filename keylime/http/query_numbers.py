"""Whole numbers in the query of a request."""

from keylime.http.exchange import HttpError, Request

MAX_ID = (1 << 63) - 1
MAX_LIMIT = 1000
"""Events in one answer."""


def number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """The number that the query gives for `name`. Raises HttpError when it is not from `least` to `most`."""
    text = request.query.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
        raise HttpError(400, f"{name} is not a number from {least} to {most}")
    return int(text)
