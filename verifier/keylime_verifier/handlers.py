"""The verifier's API: each handler parses, calls one method, renders. The table says who may call what."""

from keylime.http.server import HttpError, Request, Response, Role, Route
from keylime.identifiers import AgentId
from keylime.messages.verifier import AddAgentRequest, VerifierAgents
from keylime.messages.versions import CURRENT_VERSION, SUPPORTED_VERSIONS, ServerVersions
from keylime_verifier.agents import Agents


class AgentHandlers:
    """`/agents`: what operators do to agents."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    def routes(self) -> list[Route]:
        """The routes under `/agents`, all for administrators."""
        admin = Role.ADMIN
        return [
            Route("GET", "/agents", admin, self.list_agents),
            Route("GET", "/agents/{agent_id}", admin, self.show_agent),
            Route("POST", "/agents/{agent_id}", admin, self.add_agent),
            Route("DELETE", "/agents/{agent_id}", admin, self.delete_agent),
            Route("PUT", "/agents/{agent_id}/reactivate", admin, self.reactivate_agent),
            Route("PUT", "/agents/{agent_id}/stop", admin, self.stop_agent),
        ]

    async def list_agents(self, request: Request) -> Response:
        verifier_id = request.query.get("verifier") or None
        if "bulk" in request.query:
            return Response(results=await self._agents.show_all(verifier_id))
        ids = await self._agents.list_ids(verifier_id)
        # Each id in a list of its own: clients of the field unpack it so.
        return Response(results=VerifierAgents([[agent_id] for agent_id in ids]))

    async def show_agent(self, request: Request) -> Response:
        return Response(results=await self._agents.show(_agent_id(request)))

    async def add_agent(self, request: Request) -> Response:
        if not request.body:
            raise HttpError(400, "Expected non zero content length")
        await self._agents.add(_agent_id(request), request.json(AddAgentRequest))
        return Response()

    async def delete_agent(self, request: Request) -> Response:
        await self._agents.delete(_agent_id(request))
        return Response()

    async def reactivate_agent(self, request: Request) -> Response:
        await self._agents.reactivate(_agent_id(request))
        return Response()

    async def stop_agent(self, request: Request) -> Response:
        await self._agents.stop(_agent_id(request))
        return Response()


async def show_versions(_request: Request) -> Response:
    """`GET /version` and `/versions`, for anyone."""
    return Response(results=ServerVersions(CURRENT_VERSION, list(SUPPORTED_VERSIONS)))


def version_routes() -> list[Route]:
    """The routes outside the version prefix."""
    return [
        Route("GET", "/version", Role.ANONYMOUS, show_versions, versioned=False),
        Route("GET", "/versions", Role.ANONYMOUS, show_versions, versioned=False),
    ]


def _agent_id(request: Request) -> AgentId:
    return AgentId(request.parameters["agent_id"])  # checked by the router
