"""What is shown while something is being done that takes nobody knows how long."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from keylime_policy.messages import LINE_S, Messages


@contextmanager
def working(messages: Messages, title: str) -> Iterator[None]:
    """Shows `title` on stderr meanwhile; where that is no terminal, one line after a while."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(title):
            yield
        return
    timer = threading.Timer(LINE_S, lambda: messages.note(f"{title}: this takes a while"))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
