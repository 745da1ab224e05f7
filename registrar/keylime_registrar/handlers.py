"""The registrar's HTTP routes: who may call what, and how each outcome is answered.

The protocol is that of docs/reference/rest-api.md, 2.
"""

import base64
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from keylime.errors import MalformedMessage
from keylime.http.audit_route import ReadAudit, audit_route
from keylime.http.exchange import HttpError, Request, Response, Role
from keylime.http.openapi import Api
from keylime.http.operation import Operation
from keylime.http.routing import Route
from keylime.identifiers import AgentId, parse_agent_id
from keylime.messages.registrar import (
    ActivateRequest,
    RegisteredAgent,
    RegisteredAgents,
    RegisterReply,
    RegisterRequest,
)
from keylime.messages.versions import CURRENT_VERSION, SUPPORTED_VERSIONS, ServerVersions
from keylime_registrar.activation import (
    AlreadyActive,
    Outcome,
    Proven,
    TooManyWrongTags,
    UnknownAgent,
    WrongTag,
)
from keylime_registrar.identity import IdentityChanged, RegistrationRefused
from keylime_registrar.refusals import RegistrationConflict, TooManyRequests

log = logging.getLogger(__name__)

MAX_AGENT_BODY = 512 << 10  # bytes, for callers that nobody knows; a registration with long chains has 50 KiB

REGISTRAR_API = Api(
    title="Keylime registrar",
    versions=SUPPORTED_VERSIONS,
    unrouted="Calls for administrators are answered with 400 on the port without TLS. "
    "Answers to unknown paths and methods have no body.",
    administrators="A client certificate of the authority in `trusted_client_ca`.",
)

_INVALID = "Could not register agent with invalid data"
_CHANGED = "Agent re-registration with different TPM identity is forbidden for security reasons"


class Registrations(Protocol):
    """What is done about registrations. Raises what is in `identity` and `refusals`."""

    async def register(self, agent_id: AgentId, request: RegisterRequest, source: str, /) -> bytes: ...

    async def activate(self, agent_id: AgentId, tag: str, source: str, /) -> Outcome: ...

    async def find(self, agent_id: AgentId, /) -> RegisteredAgent | None: ...

    async def is_pending(self, agent_id: AgentId, /) -> bool: ...

    async def agent_ids(self) -> list[str]: ...

    async def delete(self, agent_id: AgentId, administrator: str, /) -> bool: ...


class RequestMeter:
    """What is counted of the requests, for whoever measures it; this one counts nothing."""

    def registration(self, result: str) -> None:
        """A registration came to one of `REGISTRATIONS`."""

    def activation(self, result: str) -> None:
        """An activation came to one of `ACTIVATIONS`."""

    def limited(self) -> None:
        """A source was told to come back later."""

    def agent_certificates_end(self, at: float) -> None:
        """When the first of all agents' TLS certificates ends, in seconds since the epoch; 0 for none."""


REGISTRATIONS = ("challenged", "refused", "identity_changed")
ACTIVATIONS = ("proven", "already_active", "wrong_tag", "unknown_agent", "identity_changed", "conflict")

_Handler = Callable[["Handlers", Request], Awaitable[Response]]


def _limited(handler: _Handler) -> _Handler:
    """Tells who sends too much to come back later."""

    @functools.wraps(handler)
    async def wrapped(self: "Handlers", request: Request) -> Response:
        try:
            return await handler(self, request)
        except TooManyRequests as error:
            log.warning("%s", error)
            self._meter.limited()
            text = "Too many registrations, try again later"
            raise HttpError(429, text, retry_after_s=error.wait_s) from error

    return wrapped


class Handlers:
    """One method for each route. Requests come in parsed and authorised."""

    def __init__(self, registrations: Registrations, meter: RequestMeter | None = None) -> None:
        self._registrations = registrations
        self._meter = meter or RequestMeter()

    def routes(self) -> tuple[Route, ...]:
        """The table of routes and rights. What agents need is open to anyone, on both ports."""
        agents = functools.partial(Route, role=Role.ANONYMOUS, plain_http=True, max_body=MAX_AGENT_BODY)
        admins = functools.partial(Route, role=Role.ADMIN)
        one = "/agents/{agent_id}"
        versions = Operation("The API versions of this registrar.", ServerVersions)
        registers = functools.partial(agents, handler=self.register_agent)
        activates = functools.partial(agents, handler=self.activate_agent)
        return (
            agents("GET", "/version", handler=self.read_versions, versioned=False, about=versions),
            registers("POST", one, about=_registration("Registers the keys of an agent's TPM.")),
            registers("POST", "/agents", about=_registration("The same, with `agent_id` in the body.")),
            activates("PUT", one, about=_activation("Proves that the keys live in one TPM.")),
            activates("PUT", f"{one}/activate", about=_activation("The same as `PUT /agents/{agent_id}`.")),
            activates("POST", f"{one}/activate", about=_activation("The same as `PUT /agents/{agent_id}`.")),
            admins(
                "GET",
                "/agents",
                handler=self.list_agents,
                about=Operation("The ids of all agents that have proven themselves.", RegisteredAgents),
            ),
            admins(
                "GET",
                one,
                handler=self.read_agent,
                about=Operation("The keys and the address of one agent.", RegisteredAgent, refusals=(404,)),
            ),
            admins(
                "DELETE",
                one,
                handler=self.delete_agent,
                about=Operation("Forgets an agent; it may register anew.", refusals=(404,)),
            ),
        )

    async def read_versions(self, _request: Request) -> Response:
        return Response(results=ServerVersions(CURRENT_VERSION, list(SUPPORTED_VERSIONS)))

    @_limited
    async def register_agent(self, request: Request) -> Response:
        message = request.json(RegisterRequest)
        agent_id = _agent_id(request, message.agent_id)
        try:
            blob = await self._registrations.register(agent_id, message, request.caller.address)
        except RegistrationRefused as error:
            self._meter.registration("refused")
            log.warning("agent %s: registration from %s refused: %s", agent_id, request.caller.address, error)
            raise HttpError(400, f"{_INVALID}: {error}") from error
        except IdentityChanged as error:
            self._meter.registration("identity_changed")
            log.warning("agent %s: registration from %s refused: %s", agent_id, request.caller.address, error)
            raise HttpError(403, _CHANGED) from error
        self._meter.registration("challenged")
        return Response(results=RegisterReply(base64.b64encode(blob).decode("ascii")))

    @_limited
    async def activate_agent(self, request: Request) -> Response:
        message = request.json(ActivateRequest)
        agent_id = _agent_id(request, None)
        try:
            outcome = await self._registrations.activate(agent_id, message.auth_tag, request.caller.address)
        except IdentityChanged as error:
            self._meter.activation("identity_changed")
            raise HttpError(403, _CHANGED) from error
        except RegistrationConflict as error:
            self._meter.activation("conflict")
            raise HttpError(
                403,
                f"Agent with UUID '{agent_id}' cannot be registered. This UUID is already in use or a "
                "concurrent registration is in progress.",
            ) from error
        match outcome:
            case Proven():
                self._meter.activation("proven")
                return Response()
            case AlreadyActive():
                self._meter.activation("already_active")
                return Response()
            case WrongTag() | TooManyWrongTags():
                self._meter.activation("wrong_tag")
                # The same words whatever is stored, and never the tag: neither theirs nor ours.
                raise HttpError(400, f"Auth tag for agent '{agent_id}' does not match expected value")
            case UnknownAgent():
                self._meter.activation("unknown_agent")
                raise _not_found(agent_id)

    async def list_agents(self, _request: Request) -> Response:
        return Response(results=RegisteredAgents(await self._registrations.agent_ids()))

    async def read_agent(self, request: Request) -> Response:
        agent_id = _agent_id(request, None)
        found = await self._registrations.find(agent_id)
        if found is not None:
            return Response(results=found)
        if await self._registrations.is_pending(agent_id):
            raise HttpError(404, f"Agent with ID '{agent_id}' has not been activated")
        raise _not_found(agent_id)

    async def delete_agent(self, request: Request) -> Response:
        agent_id = _agent_id(request, None)
        if not await self._registrations.delete(agent_id, str(request.caller)):
            raise _not_found(agent_id)
        return Response()


def reading_route(read: ReadAudit) -> Route:
    """How administrators see what was done."""
    return audit_route(
        read,
        "What was done to registrations, and what was refused to administrators and to agents; oldest first.",
    )


def _registration(summary: str) -> Operation:
    return Operation(summary, RegisterReply, body=RegisterRequest, refusals=(403,))


def _activation(summary: str) -> Operation:
    return Operation(summary, body=ActivateRequest, refusals=(403, 404))


def _agent_id(request: Request, named: str | None) -> AgentId:
    """The id in the path, or where the path has none the one in the body. Raises MalformedMessage."""
    text = request.parameters.get("agent_id", named)
    if text is None:
        raise MalformedMessage("agent_id is missing")
    return parse_agent_id(text)


def _not_found(agent_id: AgentId) -> HttpError:
    return HttpError(404, f"Agent with ID '{agent_id}' not found")
