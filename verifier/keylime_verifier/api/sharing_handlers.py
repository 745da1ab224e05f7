"""`GET /verifiers`: which processes share the work, and how much of it each has."""

from collections.abc import Awaitable, Callable

from keylime.http.exchange import Request, Response, Role
from keylime.http.operation import Operation
from keylime.http.routing import Route
from keylime.messages.verifiers import VerifierProcesses

ReadProcesses = Callable[[], Awaitable[VerifierProcesses]]


class SharingHandlers:
    """What administrators see of the verifiers of a database."""

    def __init__(self, read: ReadProcesses) -> None:
        self._read = read

    def routes(self) -> list[Route]:
        """The route of the verifiers."""
        about = Operation(
            "The verifier processes of this database, and how much of the work each has.", VerifierProcesses
        )
        return [Route("GET", "/verifiers", Role.ADMIN, self.list_verifiers, about=about)]

    async def list_verifiers(self, _request: Request) -> Response:
        return Response(results=await self._read())
