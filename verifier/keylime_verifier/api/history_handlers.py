"""What happened, to one agent (`GET /agents/{agent_id}/history`) or at all (`GET /audit`)."""

from typing import Protocol

from keylime.http.audit_route import audit_route
from keylime.http.exchange import HttpError, Request, Response, Role
from keylime.http.operation import Operation, QueryField
from keylime.http.query_numbers import MAX_ID, MAX_LIMIT, number
from keylime.http.routing import Route
from keylime.identifiers import AgentId
from keylime.messages.history import AgentHistory


class History(Protocol):
    """What happened, as it was written down."""

    async def of_agent(self, agent_id: AgentId, after: int, limit: int, /) -> AgentHistory | None: ...

    async def audit(self, since: float | None, after: int, limit: int, /) -> AgentHistory: ...


class HistoryHandlers:
    """What administrators see of the history."""

    def __init__(self, history: History) -> None:
        self._history = history

    def routes(self) -> list[Route]:
        """The routes of the history."""
        return [
            Route(
                "GET",
                "/agents/{agent_id}/history",
                Role.ADMIN,
                self.show,
                about=Operation(
                    "What happened to an agent and to the policies that it uses, oldest first.",
                    AgentHistory,
                    query={
                        "after": QueryField("Only events with ids above this one."),
                        "limit": QueryField(f"How many events at most, 1 to {MAX_LIMIT}."),
                    },
                    refusals=(404,),
                ),
            ),
            audit_route(
                self._history.audit,
                "What administrators did and what was refused to them, and what the verifiers did by "
                "themselves; oldest first.",
            ),
        ]

    async def show(self, request: Request) -> Response:
        agent_id = AgentId(request.parameters["agent_id"])  # checked by the router
        after = number(request, "after", 0, 0, MAX_ID)
        limit = number(request, "limit", MAX_LIMIT, 1, MAX_LIMIT)
        found = await self._history.of_agent(agent_id, after, limit)
        if found is None:
            raise HttpError(404, "agent id not found")
        return Response(results=found)
