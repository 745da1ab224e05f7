"""The tenant's connection to a peer: requests go through, and what was in the way is told in one word."""

import ssl
from collections.abc import Iterator, Mapping

import msgspec

from keylime.errors import OwnCertificateFailed, PeerUnreachable, WrongPeerKey, WrongServerCertificate
from keylime.http.agent_connection import AgentConnection
from keylime.http.replies import Reply
from keylime.http.trouble import ConnectFailed, speaks_plain_http
from keylime.http.wire import Closed
from keylime.pki.tls_failures import is_no_tls
from keylime_tenant.config import Address
from keylime_tenant.peer import Trouble


class Connection:
    """A `Peer` at an address. `asks_plainly`: who hangs up on TLS is asked whether he speaks plain HTTP."""

    def __init__(self, address: Address, connection: AgentConnection, *, asks_plainly: bool) -> None:
        self._address = address
        self._connection = connection
        self._asks_plainly = asks_plainly

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: msgspec.Struct | None = None,
    ) -> Reply:
        """The answer. Raises PeerUnreachable."""
        return await self._connection.request(method, path, query=query, body=body)

    async def trouble(self, error: PeerUnreachable) -> Trouble:
        """What was in the way of a request that has raised `error`."""
        is_hang_up = _is_hang_up(error)
        if is_no_tls(str(error)) or (is_hang_up and await self._is_plain()):
            return Trouble.NO_TLS
        if isinstance(error, OwnCertificateFailed):
            return Trouble.OWN_CERTIFICATE
        if is_hang_up:
            return Trouble.HANG_UP
        if _is_tls_failure(error):
            return Trouble.TRUST
        return Trouble.SILENCE if _is_silence(error) else Trouble.NETWORK

    async def close(self) -> None:
        """Closes it."""
        await self._connection.close()

    async def _is_plain(self) -> bool:
        return self._asks_plainly and await speaks_plain_http(self._address.host, self._address.port)


def _is_tls_failure(error: BaseException) -> bool:
    """Whether certificates, not the network, are the reason of `error`."""
    kinds = (ssl.SSLError, WrongPeerKey, WrongServerCertificate)
    # How it waits for the other end, and was waiting when time was over.
    waits = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
    return any(isinstance(cause, kinds) and not isinstance(cause, waits) for cause in _causes(error))


def _is_hang_up(error: BaseException) -> bool:
    """Whether the peer took the connection and dropped it."""
    kinds = (Closed, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)
    return any(isinstance(cause, kinds) for cause in _causes(error))


def _is_silence(error: BaseException) -> bool:
    """Whether nobody took the connection in the time that we gave: the system's own time is longer."""
    return any(
        isinstance(cause, ConnectFailed)
        and isinstance(cause.cause, TimeoutError)
        and cause.cause.errno is None
        for cause in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
