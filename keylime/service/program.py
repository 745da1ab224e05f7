"""A program's asynchronous work, on the event loop that all programs use."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from keylime.service.event_loop import new_event_loop

ResultT = TypeVar("ResultT")


def run(work: Coroutine[None, None, ResultT]) -> ResultT:
    """Runs `work` to its end."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)
