"""`GET /revocations`: which revocations are on their way, have arrived, or were given up."""

from sqlalchemy.ext.asyncio import AsyncEngine

from keylime.http.server import HttpError, Request, Response, Role, Route
from keylime.identifiers import parse_agent_id
from keylime_verifier.delivery_overview import DeliveryFilter, read_overview
from keylime_verifier.outbox import STATES

_DEFAULT_LIMIT = 1000
_MAX_LIMIT = 10_000


class RevocationHandlers:
    """What administrators see of the outbox."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    def routes(self) -> list[Route]:
        """The routes under `/revocations`."""
        return [Route("GET", "/revocations", Role.ADMIN, self.list_revocations)]

    async def list_revocations(self, request: Request) -> Response:
        wanted, limit = _filter(request), _limit(request)
        return Response(results=await read_overview(self._engine, wanted, limit))


def _filter(request: Request) -> DeliveryFilter:
    agent, state = request.query.get("agent"), request.query.get("state")
    if state and state not in STATES:
        raise HttpError(400, f"state is none of {', '.join(STATES)}")
    return DeliveryFilter(agent_id=parse_agent_id(agent) if agent else None, state=state or None)


def _limit(request: Request) -> int:
    text = request.query.get("limit") or str(_DEFAULT_LIMIT)
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= _MAX_LIMIT):
        raise HttpError(400, f"limit is not a number from 1 to {_MAX_LIMIT}")
    return int(text)
