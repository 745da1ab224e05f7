"""Waiting for what comes about by itself."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 100.0  # for things that take milliseconds on an idle machine


async def eventually(question: Callable[[], Any], *, limit_s: float = LIMIT_S) -> Any:
    """The first answer to `question`, asynchronous or not, that is true. Raises TimeoutError."""
    deadline = time.monotonic() + limit_s
    while True:
        answer = question()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"still {answer!r} after {limit_s} s")
        await asyncio.sleep(0.005)
