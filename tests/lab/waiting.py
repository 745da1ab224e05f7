"""Waiting for a condition with a deadline, in place of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_PAUSE_S = 0.05


def await_value(probe: Callable[[], T | None], what: str, limit_s: float = 100) -> T:
    """What `probe` returns as soon as it is neither None nor False. Raises TimeoutError naming `what`."""
    deadline = time.monotonic() + limit_s
    while True:
        value = probe()
        if value is not None and value is not False:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not seen within {limit_s:.0f} s: {what}")
        time.sleep(_PAUSE_S)
