"""Which request a line of the log is about: an id that client and server both write down.

The header is `X-Request-Id`. A server takes a client's id as far as it is word characters, and makes one
where nothing is left of it, so no peer can put anything else into a log.
"""

import re
import secrets
from contextvars import ContextVar

HEADER = "X-Request-Id"

_LONGEST = 36
_NOT_WORD = re.compile(r"\W", re.ASCII)

_handled: ContextVar[str] = ContextVar("handled_request", default="")
_errand: ContextVar[str] = ContextVar("errand", default="")


def new() -> str:
    """An id that nobody else has."""
    return secrets.token_hex(8)


def accept(sent: str) -> str:
    """What a peer `sent`, cleaned and cut; one of our own where that leaves nothing."""
    return _NOT_WORD.sub("", sent)[:_LONGEST] or new()


def handle(request_id: str) -> None:
    """From now on this task, and what it starts, is about the request `request_id`."""
    _handled.set(request_id)


def handled() -> str:
    """The request that is being handled, "" outside of any."""
    return _handled.get()


def begin_errand() -> str:
    """Gives all calls that this task makes from now on one id, which is returned."""
    request_id = new()
    _errand.set(request_id)
    return request_id


def for_call() -> str:
    """What to send with a call: the id of the request that it is made for, or of the errand, or a new one."""
    return _handled.get() or _errand.get() or new()
