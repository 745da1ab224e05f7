"""Calls of administrators that were refused: each is told to the history, and in the log.

Calls that succeed are told by what they do, in the transaction that does it.
"""

import functools
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from keylime.database.engine import DatabaseUnavailable
from keylime.errors import MalformedMessage, PolicyError, ServiceUnavailable
from keylime.http.exchange import HttpError, Request, Response, Role, reason_phrase
from keylime.http.routing import Handler, Route
from keylime.identifiers import AgentId
from keylime_verifier.agents.events import Actor, Event, EventKind, policy_key
from keylime_verifier.agents.policy_categories import MEASURED_BOOT, RUNTIME
from keylime_verifier.api.acts import actor
from keylime_verifier.database.history import new_token

log = logging.getLogger("keylime.verifier")

_LONGEST = 500  # characters of a reason
_POLICIES = {"allowlists": RUNTIME, "mbpolicies": MEASURED_BOOT}

Tell = Callable[[Event], Awaitable[None]]
"""Adds an event to the history. Raises DatabaseUnavailable."""


def audited(routes: Iterable[Route], tell: Tell) -> tuple[Route, ...]:
    """The routes, of which those that let administrators change something tell of refusals."""
    return tuple(
        replace(route, handler=_audited(route, tell))
        if route.role is Role.ADMIN and route.method not in ("GET", "HEAD")
        else route
        for route in routes
    )


def _audited(route: Route, tell: Tell) -> Handler:
    @functools.wraps(route.handler)
    async def answer(request: Request) -> Response:
        by, parameters, caller = actor(request), dict(request.parameters), str(request.caller)
        handling = route.handler(request)
        del request  # whoever handles it decides how long its body is kept
        try:
            return await handling
        except Exception as error:
            code, reason = _answered(error)
            event = refused_call(route, parameters, by, code, reason)
            log.warning(
                "refused to %s: %s: %d %s", caller, _call(route, parameters), code, ascii(reason)[1:-1]
            )
            try:
                await tell(event)
            except DatabaseUnavailable as away:
                log.debug("%s; the history is not told", away)
            raise

    return answer


def refused_call(route: Route, parameters: dict[str, str], by: Actor, code: int, reason: str) -> Event:
    """What the history is told."""
    kind = _POLICIES.get(route.path.strip("/").partition("/")[0])
    policy = policy_key(kind, parameters["name"]) if kind is not None and "name" in parameters else None
    agent_id = parameters.get("agent_id")
    return Event(
        token=new_token(),
        kind=EventKind.REFUSED,
        agent_id=None if agent_id is None else AgentId(agent_id),
        policy=policy,
        actor=by,
        details={"call": f"{route.method} {route.path}", "code": code, "reason": reason[:_LONGEST]},
    )


def _call(route: Route, parameters: dict[str, str]) -> str:
    path = route.path
    for name, value in parameters.items():
        path = path.replace(f"{{{name}}}", ascii(value)[1:-1])
    return f"{route.method} {path}"


def _answered(error: Exception) -> tuple[int, str]:
    """Code and words of the answer that the server makes of it."""
    if isinstance(error, HttpError):
        return error.code, error.status or reason_phrase(error.code) or ""
    if isinstance(error, ServiceUnavailable):
        return 503, error.public
    if isinstance(error, MalformedMessage | PolicyError):
        return 400, str(error)
    return 500, "a defect, see the log"
