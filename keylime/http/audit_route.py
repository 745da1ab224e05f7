"""`GET /audit`: what was done, by whom, and what was refused; the same for every service that keeps it."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from keylime.http.exchange import Request, Response, Role
from keylime.http.operation import Operation, QueryField
from keylime.http.query_numbers import MAX_ID, MAX_LIMIT, number
from keylime.http.routing import Route
from keylime.messages.history import AgentHistory

ReadAudit: TypeAlias = Callable[[float | None, int, int], Awaitable[AgentHistory]]
"""What happened since a time in epoch seconds, with ids above one, at most so many. Oldest first."""


def audit_route(read: ReadAudit, summary: str) -> Route:
    """The route; `summary` says what a service tells."""

    async def audit(request: Request) -> Response:
        after = number(request, "after", 0, 0, MAX_ID)
        limit = number(request, "limit", MAX_LIMIT, 1, MAX_LIMIT)
        since = number(request, "since", 0, 0, MAX_ID)
        return Response(results=await read(since or None, after, limit))

    return Route(
        "GET",
        "/audit",
        Role.ADMIN,
        audit,
        action="read_audit",
        about=Operation(
            summary,
            AgentHistory,
            query={
                "since": QueryField("Only what happened from this time on, in seconds of the epoch."),
                "after": QueryField("Only events with ids above this one."),
                "limit": QueryField(f"How many events at most, 1 to {MAX_LIMIT}."),
            },
        ),
    )
