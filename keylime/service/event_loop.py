"""The event loop of programs: uvloop's, which does not take a connection's end for an error."""

import asyncio
import logging
from typing import Any

import uvloop

log = logging.getLogger("keylime.service")

_TLS_MESSAGE = "Fatal error on SSL protocol"
_ENDED = "the handler is closed"


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop for a service. Exceptions that nobody awaits are logged, but for those of ended connections."""
    loop = uvloop.new_event_loop()
    loop.set_exception_handler(_handle)
    return loop


def _handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Whoever used the connection is told by connection_lost. The TLS layer of uvloop (0.23) also reports a
    # write between its end and that call, with a traceback; an OSError in its place it keeps to itself.
    error = context.get("exception")
    if context.get("message") == _TLS_MESSAGE and isinstance(error, RuntimeError) and _ENDED in str(error):
        log.debug("a TLS connection ended while something was sent over it")
        return
    loop.default_exception_handler(context)
