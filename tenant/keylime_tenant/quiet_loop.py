"""What an event loop has to say, unless the program is being interrupted."""

import asyncio
from typing import Any


def be_quiet_when_interrupted() -> None:
    """For the task that calls it: once it is cancelled, the loop reports no exception of its callbacks.

    Ctrl-C cancels the task at any instruction, also after a callback of asyncio's own has seen that its
    future is not over, and before it sets the result.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if task is None or not task.cancelling():
            loop.default_exception_handler(context)

    loop.set_exception_handler(report)
