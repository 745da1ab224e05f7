"""What takes longer than an operator expects is named while it goes on."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from keylime_tenant.render import Output

_PATIENCE_S = 1.0  # after which somebody wants to know what is going on


@contextmanager
def doing(output: Output, what: str) -> Iterator[None]:
    """Says `what` is going on when it takes longer than a second."""
    timer = asyncio.get_running_loop().call_later(_PATIENCE_S, output.waiting, "%s", f"{what} ...")
    try:
        yield
    finally:
        timer.cancel()
