"""The open connections of a server: who the peer is, what may be dropped, and caps on how many there are."""

import asyncio
import enum
import logging
import ssl
from collections.abc import Callable, Iterable
from typing import TypeAlias

from cryptography import x509
from tornado.http1connection import HTTP1ConnectionParameters
from tornado.iostream import IOStream, SSLIOStream

from keylime.http.exchange import Caller, Role

log = logging.getLogger(__name__)

AdminRule: TypeAlias = Callable[[x509.Certificate | None], str | None]


class Phase(enum.Enum):
    """What a connection is busy with."""

    IDLE = enum.auto()  # handshake, or waiting for the headers of a request
    RECEIVING = enum.auto()
    ANSWERING = enum.auto()


class Connection:
    """One accepted connection; tornado carries it along as the context of each of its requests."""

    def __init__(
        self,
        stream: IOStream,
        address: str,
        params: HTTP1ConnectionParameters,
        is_admin: AdminRule,
        table: "ConnectionTable",
    ) -> None:
        self.stream = stream
        self.address = address
        self.params = params  # its own copy: the header time-out changes after the first request
        self.phase = Phase.IDLE
        self.is_retired = False  # its next answer is the last one
        self._is_admin = is_admin
        self._table = table
        self._caller: Caller | None = None

    def __str__(self) -> str:
        return self.address

    @property
    def secure(self) -> bool:
        """Whether the connection is TLS."""
        return isinstance(self.stream, SSLIOStream)

    def caller(self) -> Caller:
        """Who the peer is; its certificate is read once for the whole connection."""
        if self._caller is None:
            name = self._is_admin(self._certificate())
            role = Role.ANONYMOUS if name is None else Role.ADMIN
            self._caller = Caller(role, name, self.address)
        return self._caller

    def idle(self) -> None:
        """Notes that a request is over."""
        self.phase = Phase.IDLE
        self._table.touch(self)

    def close(self) -> None:
        """Drops the connection; whoever waits on it is told by the stream."""
        self.stream.close()

    def _certificate(self) -> x509.Certificate | None:
        stream = self.stream
        # Only a certificate that the handshake has verified counts.
        if not isinstance(stream, SSLIOStream) or stream.closed():
            return None
        if stream.socket.context.verify_mode == ssl.CERT_NONE:
            return None
        der = stream.socket.getpeercert(binary_form=True)
        try:
            return x509.load_der_x509_certificate(der) if der is not None else None
        except (ValueError, x509.InvalidVersion):
            log.warning("the client certificate of %s cannot be parsed and gives no rights", self.address)
            return None


class ConnectionTable:
    """Every open connection, the longest idle first.

    At a cap the longest idle connection makes room, so that a peer which opens connections and says nothing
    displaces its own; when all are answering requests, the newcomer is refused.
    """

    def __init__(self, *, per_address: int, total: int) -> None:
        self._per_address = per_address
        self._total = total
        self._all: dict[Connection, None] = {}
        self._by_address: dict[str, dict[Connection, None]] = {}
        self._emptied: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._all)

    def count(self, phase: Phase) -> int:
        """How many connections are busy with it."""
        return sum(connection.phase is phase for connection in self._all)

    def add(self, connection: Connection) -> bool:
        """Takes `connection` in; False when there is no room for it."""
        siblings = self._by_address.get(connection.address, {})
        if len(siblings) >= self._per_address and not self._evict(siblings):
            return False
        if len(self._all) >= self._total and not self._evict(self._all):
            return False
        self._insert(connection)
        return True

    def touch(self, connection: Connection) -> None:
        """Moves `connection` behind all that have been idle longer."""
        if connection in self._all:
            self.remove(connection)
            self._insert(connection)

    def remove(self, connection: Connection) -> None:
        """Forgets `connection`; harmless when it is not there."""
        self._all.pop(connection, None)
        siblings = self._by_address.get(connection.address)
        if siblings is not None:
            siblings.pop(connection, None)
            if not siblings:
                del self._by_address[connection.address]
        if not self._all and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def retire(self) -> None:
        """Has every connection that is open now end with its next answer."""
        for connection in self._all:
            connection.is_retired = True

    def close_idle(self) -> None:
        """Drops every connection without a request in progress."""
        for connection in [c for c in self._all if c.phase is Phase.IDLE]:
            connection.close()

    async def close_all(self) -> None:
        """Drops every connection; returns when the handshakes and serving loops have noticed."""
        for connection in list(self._all):
            connection.close()
        while self._all:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    def _insert(self, connection: Connection) -> None:
        self._all[connection] = None
        self._by_address.setdefault(connection.address, {})[connection] = None

    def _evict(self, among: Iterable[Connection]) -> bool:
        victim = next((connection for connection in among if connection.phase is not Phase.ANSWERING), None)
        if victim is None:
            return False
        self.remove(victim)
        victim.close()
        return True
