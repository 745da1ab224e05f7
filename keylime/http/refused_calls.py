"""Calls of administrators that were refused: each is logged, and told to whoever keeps an audit.

Calls that succeed are told by what they do, in the transaction that does it.
"""

import functools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from keylime import request_id
from keylime.errors import MalformedMessage, PolicyError, ServiceUnavailable
from keylime.http.exchange import HttpError, Request, Response, Role, reason_phrase
from keylime.http.routing import Handler, Route

_LONGEST = 500  # characters of a reason


@dataclass(frozen=True, slots=True)
class RefusedCall:
    """A call that was refused: `caller` is subject and serial number of a certificate."""

    method: str
    path: str  # with the names of its parameters
    parameters: Mapping[str, str]
    caller: str
    request_id: str
    code: int
    reason: str

    def details(self) -> dict[str, Any]:
        """What an audit keeps of it beside agent and caller."""
        return {"call": f"{self.method} {self.path}", "code": self.code, "reason": self.reason[:_LONGEST]}

    def __str__(self) -> str:
        path = self.path
        for name, value in self.parameters.items():
            path = path.replace(f"{{{name}}}", ascii(value)[1:-1])
        return f"{self.method} {path}: {self.code} {ascii(self.reason)[1:-1]}"


Tell: TypeAlias = Callable[[RefusedCall], Awaitable[None]]
"""Keeps a refused call. Raises ServiceUnavailable."""


def audited(routes: Iterable[Route], tell: Tell, log: logging.Logger) -> tuple[Route, ...]:
    """The routes, of which those that let administrators change something tell of refusals."""
    return tuple(
        replace(route, handler=_audited(route, tell, log))
        if route.role is Role.ADMIN and route.method not in ("GET", "HEAD")
        else route
        for route in routes
    )


def _audited(route: Route, tell: Tell, log: logging.Logger) -> Handler:
    @functools.wraps(route.handler)
    async def answer(request: Request) -> Response:
        parameters, caller = dict(request.parameters), str(request.caller)
        handling = route.handler(request)
        del request  # whoever handles it decides how long its body is kept
        try:
            return await handling
        except Exception as error:
            code, reason = _answered(error)
            call = RefusedCall(
                route.method, route.path, parameters, caller, request_id.handled(), code, reason
            )
            log.warning("refused to %s: %s", caller, call)
            try:
                await tell(call)
            except ServiceUnavailable as away:
                log.debug("%s; the history is not told", away)
            raise

    return answer


def _answered(error: Exception) -> tuple[int, str]:
    """Code and words of the answer that the server makes of it."""
    if isinstance(error, HttpError):
        return error.code, error.status or reason_phrase(error.code) or ""
    if isinstance(error, ServiceUnavailable):
        return 503, error.public
    if isinstance(error, MalformedMessage | PolicyError):
        return 400, str(error)
    return 500, "a defect, see the log"
