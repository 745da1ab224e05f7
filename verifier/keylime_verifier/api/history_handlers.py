"""What happened, to one agent (`GET /agents/{agent_id}/history`) or at all (`GET /audit`)."""

from typing import Protocol

from keylime.http.exchange import HttpError, Request, Response, Role
from keylime.http.operation import Operation, QueryField
from keylime.http.routing import Route
from keylime.identifiers import AgentId
from keylime.messages.history import AgentHistory

_MAX_LIMIT = 1000
_MAX_ID = (1 << 63) - 1


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
                        "limit": QueryField(f"How many events at most, 1 to {_MAX_LIMIT}."),
                    },
                    refusals=(404,),
                ),
            ),
            Route(
                "GET",
                "/audit",
                Role.ADMIN,
                self.audit,
                action="read_audit",
                about=Operation(
                    "What administrators did and what was refused to them, and what the verifiers did by "
                    "themselves; oldest first.",
                    AgentHistory,
                    query={
                        "since": QueryField("Only what happened from this time on, in seconds of the epoch."),
                        "after": QueryField("Only events with ids above this one."),
                        "limit": QueryField(f"How many events at most, 1 to {_MAX_LIMIT}."),
                    },
                ),
            ),
        ]

    async def audit(self, request: Request) -> Response:
        after = _number(request, "after", 0, 0, _MAX_ID)
        limit = _number(request, "limit", _MAX_LIMIT, 1, _MAX_LIMIT)
        since = _number(request, "since", 0, 0, _MAX_ID)
        return Response(results=await self._history.audit(since or None, after, limit))

    async def show(self, request: Request) -> Response:
        agent_id = AgentId(request.parameters["agent_id"])  # checked by the router
        after = _number(request, "after", 0, 0, _MAX_ID)
        limit = _number(request, "limit", _MAX_LIMIT, 1, _MAX_LIMIT)
        found = await self._history.of_agent(agent_id, after, limit)
        if found is None:
            raise HttpError(404, "agent id not found")
        return Response(results=found)


def _number(request: Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
        raise HttpError(400, f"{name} is not a number from {least} to {most}")
    return int(text)
