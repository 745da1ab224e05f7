"""`GET /revocations`: which revocations are on their way, have arrived, or were given up."""

from collections.abc import Awaitable, Callable

from keylime.http.exchange import HttpError, Request, Response, Role
from keylime.http.operation import Operation, QueryField
from keylime.http.routing import Route
from keylime.identifiers import parse_agent_id
from keylime.messages.deliveries import Deliveries
from keylime_verifier.agents.deliveries import DeliveryFilter, DeliveryState

ReadDeliveries = Callable[[DeliveryFilter, int], Awaitable[Deliveries]]

_DEFAULT_LIMIT = 1000
_MAX_LIMIT = 10_000


class RevocationHandlers:
    """What administrators see of the outbox."""

    def __init__(self, read: ReadDeliveries) -> None:
        self._read = read

    def routes(self) -> list[Route]:
        """The routes under `/revocations`."""
        return [
            Route(
                "GET",
                "/revocations",
                Role.ADMIN,
                self.list_revocations,
                about=Operation(
                    "Revocations and how their delivery stands.",
                    Deliveries,
                    query={
                        "agent": QueryField("Only revocations of the agent with this id."),
                        "state": QueryField(f"Only deliveries that are {' or '.join(DeliveryState)}."),
                        "limit": QueryField(
                            f"How many revocations, 1 to {_MAX_LIMIT}; {_DEFAULT_LIMIT} if it is not given."
                        ),
                    },
                ),
            )
        ]

    async def list_revocations(self, request: Request) -> Response:
        wanted, limit = _filter(request), _limit(request)
        return Response(results=await self._read(wanted, limit))


def _filter(request: Request) -> DeliveryFilter:
    agent, state = request.query.get("agent"), request.query.get("state")
    return DeliveryFilter(
        agent_id=parse_agent_id(agent) if agent else None, state=_state(state) if state else None
    )


def _state(text: str) -> DeliveryState:
    try:
        return DeliveryState(text)
    except ValueError as error:
        raise HttpError(400, f"state is none of {', '.join(DeliveryState)}") from error


def _limit(request: Request) -> int:
    text = request.query.get("limit") or str(_DEFAULT_LIMIT)
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= _MAX_LIMIT):
        raise HttpError(400, f"limit is not a number from 1 to {_MAX_LIMIT}")
    return int(text)
