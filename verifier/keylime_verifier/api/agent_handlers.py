"""The verifier's API: each handler parses, calls one method, renders. The table says who may call what."""

import logging
from collections.abc import AsyncIterator
from typing import Protocol

from keylime.http.exchange import HttpError, Request, Response, Role
from keylime.http.operation import Operation, QueryField
from keylime.http.routing import Route
from keylime.identifiers import AgentId
from keylime.messages.verifier import (
    AddAgentRequest,
    AgentStatus,
    UpdateAgentRequest,
    UpdatedAgent,
    VerifierAgents,
)
from keylime.messages.versions import CURRENT_VERSION, SUPPORTED_VERSIONS, ServerVersions
from keylime_verifier.agents.events import Actor
from keylime_verifier.agents.shards import VerifierId
from keylime_verifier.api.acts import actor
from keylime_verifier.api.administration import describe_addition, describe_update
from keylime_verifier.api.push_handlers import Whose, demand_own
from keylime_verifier.api.refusals import translated

log = logging.getLogger("keylime.verifier")


_POLICY_REFUSALS = (401, 404, 409)


class Agents(Protocol):
    """What operators do to agents. Raises RequestRefused."""

    async def list_ids(self, verifier_id: VerifierId | None, /) -> list[AgentId]: ...

    def show_all(self, verifier_id: VerifierId | None, /) -> AsyncIterator[tuple[AgentId, AgentStatus]]: ...

    async def show(self, agent_id: AgentId, /) -> AgentStatus: ...

    async def add(self, agent_id: AgentId, request: AddAgentRequest, /, *, by: Actor) -> str | None: ...

    async def update(
        self, agent_id: AgentId, request: UpdateAgentRequest, /, *, by: Actor
    ) -> tuple[UpdatedAgent, str | None]: ...

    async def delete(self, agent_id: AgentId, /, *, by: Actor) -> None: ...

    async def reactivate(self, agent_id: AgentId, /, *, by: Actor) -> None: ...

    async def stop(self, agent_id: AgentId, /, *, by: Actor) -> None: ...


class AgentHandlers:
    """`/agents`: what operators do to agents."""

    def __init__(self, agents: Agents, whose: Whose) -> None:
        """`whose` tells whose token it is: an agent may read its own status."""
        self._agents = agents
        self._whose = whose

    def routes(self) -> list[Route]:
        """The routes under `/agents`, for administrators; agents may read their own status."""
        admin = Role.ADMIN
        return [
            Route(
                "GET",
                "/agents",
                admin,
                translated(self.list_agents),
                about=Operation(
                    "The ids of all agents, or with `bulk` their status by id.",
                    VerifierAgents,
                    alternative=dict[str, AgentStatus],
                    query={
                        "verifier": QueryField("Only agents of the verifier with this id."),
                        "bulk": QueryField("Whatever its value, the status of each agent."),
                    },
                ),
            ),
            Route(
                "GET",
                "/agents/{agent_id}",
                Role.AGENT_OR_ADMIN,
                translated(self.show_agent),
                about=Operation("The status of one agent.", AgentStatus, refusals=(404,)),
            ),
            Route(
                "POST",
                "/agents/{agent_id}",
                admin,
                translated(self.add_agent),
                about=Operation(
                    "Adds an agent and starts to attest it.", body=AddAgentRequest, refusals=_POLICY_REFUSALS
                ),
            ),
            Route(
                "PUT",
                "/agents/{agent_id}",
                admin,
                translated(self.update_agent),
                about=Operation(
                    "Changes what is named of an agent's enrolment, in one step, and attests it anew.",
                    UpdatedAgent,
                    body=UpdateAgentRequest,
                    refusals=_POLICY_REFUSALS,
                ),
            ),
            Route(
                "DELETE",
                "/agents/{agent_id}",
                admin,
                translated(self.delete_agent),
                about=Operation("Removes an agent and the policies that came with it.", refusals=(404,)),
            ),
            Route(
                "PUT",
                "/agents/{agent_id}/reactivate",
                admin,
                translated(self.reactivate_agent),
                about=Operation("Attests an agent again, from the start.", refusals=(404,)),
            ),
            Route(
                "PUT",
                "/agents/{agent_id}/stop",
                admin,
                translated(self.stop_agent),
                about=Operation("Ends the attestation of an agent.", refusals=(404,)),
            ),
        ]

    async def list_agents(self, request: Request) -> Response:
        asked = request.query.get("verifier")
        verifier_id = VerifierId(asked) if asked else None
        if "bulk" in request.query:
            return await Response.of_many(self._agents.show_all(verifier_id))
        ids = await self._agents.list_ids(verifier_id)
        # Each id in a list of its own: clients of the field unpack it so.
        return Response(results=VerifierAgents([[agent_id] for agent_id in ids]))

    async def show_agent(self, request: Request) -> Response:
        if (denied := await demand_own(request, self._whose)) is not None:
            return denied
        return Response(results=await self._agents.show(_agent_id(request)))

    async def add_agent(self, request: Request) -> Response:
        if not request.body:
            raise HttpError(400, "Expected non zero content length")
        agent_id, body = _agent_id(request), request.json(AddAgentRequest)
        remark = await self._agents.add(agent_id, body, by=actor(request))
        log.info("agent %s: added by %s: %s", agent_id, request.caller, describe_addition(body))
        return Response(status=None if remark is None else f"Success: {remark}")

    async def update_agent(self, request: Request) -> Response:
        if not request.body:
            raise HttpError(400, "Expected non zero content length")
        agent_id, body = _agent_id(request), request.json(UpdateAgentRequest)
        updated, remark = await self._agents.update(agent_id, body, by=actor(request))
        log.info("agent %s: updated by %s: %s", agent_id, request.caller, describe_update(body, updated))
        return Response(results=updated, status=None if remark is None else f"Success: {remark}")

    async def delete_agent(self, request: Request) -> Response:
        agent_id = _agent_id(request)
        await self._agents.delete(agent_id, by=actor(request))
        log.info("agent %s: deleted by %s", agent_id, request.caller)
        return Response()

    async def reactivate_agent(self, request: Request) -> Response:
        agent_id = _agent_id(request)
        await self._agents.reactivate(agent_id, by=actor(request))
        log.info("agent %s: reactivated by %s: it is attested from the start", agent_id, request.caller)
        return Response()

    async def stop_agent(self, request: Request) -> Response:
        agent_id = _agent_id(request)
        await self._agents.stop(agent_id, by=actor(request))
        log.info("agent %s: stopped by %s: it is not polled", agent_id, request.caller)
        return Response()


async def show_versions(_request: Request) -> Response:
    """`GET /version` and `/versions`, for anyone."""
    return Response(results=ServerVersions(CURRENT_VERSION, list(SUPPORTED_VERSIONS)))


async def show_no_versions(_request: Request) -> Response:
    """The same of a verifier that polls nobody: clients of the field take their newest version then."""
    return Response(410)


def version_routes(*, polls: bool = True) -> list[Route]:
    """The routes outside the version prefix."""
    if not polls:
        about = Operation("That this verifier polls no agents.", refusals=(410,))
        paths = ("/version", "/versions")
        return [
            Route("GET", path, Role.ANONYMOUS, show_no_versions, versioned=False, about=about)
            for path in paths
        ]
    return [
        Route(
            "GET",
            "/version",
            Role.ANONYMOUS,
            show_versions,
            versioned=False,
            about=Operation("The API versions of this verifier.", ServerVersions),
        ),
        Route(
            "GET",
            "/versions",
            Role.ANONYMOUS,
            show_versions,
            versioned=False,
            about=Operation("The same as /version.", ServerVersions),
        ),
    ]


async def refuse_push(_request: Request) -> Response:
    """What an agent in push mode is told. It prints the sentence."""
    raise HttpError(
        404,
        "This verifier asks agents itself and does not take attestations that agents push: run the agent "
        "in pull mode (the `keylime_agent` program), and add it with `keylime_tenant -c add`; or let the "
        "verifier take them, `[verifier] mode = both`",
    )


def refusing_routes() -> list[Route]:
    """Where agents that attest by themselves begin, at a verifier that only polls."""
    return [
        Route(
            method,
            f"/{version}/sessions{rest}",
            Role.ANONYMOUS,
            refuse_push,
            versioned=False,
            about=Operation(
                "Tells agents in push mode that this verifier asks agents itself.", refusals=(404,)
            ),
        )
        for version in ("v3.0", "v3")
        for method, rest in (("POST", ""), ("PATCH", "/{session_id}"))
    ]


def _agent_id(request: Request) -> AgentId:
    return AgentId(request.parameters["agent_id"])  # checked by the router
