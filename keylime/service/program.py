"""A program's asynchronous work, on the event loop that all programs use."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import TypeVar

from keylime.service.event_loop import new_event_loop

ResultT = TypeVar("ResultT")

# A thread in the middle of a transaction waits for so long after each statement until a busy event loop lets
# it go on, and everybody else waits for the transaction.
_SWITCH_INTERVAL_S = 0.0005


def run(work: Coroutine[None, None, ResultT]) -> ResultT:
    """Runs `work` to its end."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)
