"""The open connections of a server: who the peer is, what may be dropped, and caps on how many there are.

Strangers are counted by the prefixes of their addresses and in sum; administrators, known once the handshake
is over, are counted by themselves and are never dropped for a stranger.
"""

import asyncio
import enum
import logging
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography import x509
from tornado.iostream import SSLIOStream

from keylime.errors import CredentialError
from keylime.http.callers import AdminRule, identification
from keylime.http.exchange import Caller, Role
from keylime.http.sources import source_prefixes
from keylime.http.streams import AnsweringStream
from keylime.pki.certificates import parse_certificate

log = logging.getLogger(__name__)


class ConnectionPhase(enum.Enum):
    """What a connection is busy with."""

    IDLE = enum.auto()  # handshake, or waiting for the headers of a request
    RECEIVING = enum.auto()
    ANSWERING = enum.auto()


class Connection:
    """One accepted connection; tornado carries it along as the context of each of its requests."""

    def __init__(
        self,
        stream: AnsweringStream,
        address: str,
        is_admin: AdminRule,
        table: "ConnectionTable",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._head_by: float | None = (
            None  # by the loop's clock; None while a request is received or answered
        )
        self._watch: asyncio.TimerHandle | None = None
        self.stream = stream
        self.address = address
        self.prefixes = source_prefixes(address)
        self.phase = ConnectionPhase.IDLE
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
            certificate = self._certificate()
            name = self._is_admin(certificate)
            if certificate is None or name is None:
                self._caller = Caller(Role.ANONYMOUS, None, self.address)
            else:
                self._caller = Caller(Role.ADMIN, name, self.address, identification(certificate))
        return self._caller

    @property
    def is_admins(self) -> bool:
        """Whether the peer has shown an administrator's certificate; False before the handshake is over."""
        return self._caller is not None and self._caller.role is Role.ADMIN

    def idle(self, next_within_s: float) -> None:
        """Notes that a request is over; the head of the next one must be there in so many seconds."""
        self.phase = ConnectionPhase.IDLE
        self._table.touch(self)
        self.await_head(next_within_s)

    def await_head(self, within_s: float) -> None:
        """Closes the connection unless the head of a request is there in time, which `head_is_there` says."""
        if self.stream.closed():
            return
        self._head_by = self._loop.time() + within_s
        # One timer for all requests, which looks how much time is left: it is not made for each of them.
        if self._watch is None:
            self._watch = self._loop.call_at(self._head_by, self._look)
        elif self._watch.when() > self._head_by:
            self._watch.cancel()
            self._watch = self._loop.call_at(self._head_by, self._look)

    def head_is_there(self) -> None:
        """A request has begun."""
        self._head_by = None

    def ended(self) -> None:
        """Nobody waits for anything of it any more."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _look(self) -> None:
        self._watch = None
        if self._head_by is None or self.stream.closed():
            return
        if self._loop.time() >= self._head_by:
            self.close()
        else:
            self._watch = self._loop.call_at(self._head_by, self._look)

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
            return parse_certificate(der) if der is not None else None
        except CredentialError:
            log.warning("the client certificate of %s cannot be parsed and gives no rights", self.address)
            return None


@dataclass(frozen=True, slots=True)
class Caps:
    """How many connections there may be: of strangers by prefix and in sum, and of administrators."""

    per_address: int  # or /64
    per_network: int  # /24
    strangers: int
    administrators: int


@dataclass(slots=True)
class _Group:
    """Connections, the longest idle first, and those of each prefix."""

    all: dict[Connection, None] = field(default_factory=dict)
    by_prefix: dict[str, dict[Connection, None]] = field(default_factory=dict)

    def insert(self, connection: Connection) -> None:
        self.all[connection] = None
        for prefix in connection.prefixes:
            self.by_prefix.setdefault(prefix, {})[connection] = None

    def remove(self, connection: Connection) -> None:
        if connection not in self.all:
            return
        del self.all[connection]
        for prefix in connection.prefixes:
            siblings = self.by_prefix[prefix]
            del siblings[connection]
            if not siblings:
                del self.by_prefix[prefix]


class ConnectionTable:
    """Every open connection.

    At a cap the longest idle connection makes room, so that a peer which opens connections and says nothing
    displaces its own: at the cap of a prefix one of that prefix, at that of all strangers one of the prefix
    that has most. When all those are answering requests, the newcomer is refused.
    """

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._strangers = _Group()
        self._administrators = _Group()
        self._emptied: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._strangers.all) + len(self._administrators.all)

    def count(self, phase: ConnectionPhase) -> int:
        """How many connections are busy with it."""
        return sum(connection.phase is phase for connection in self._every())

    def add(self, connection: Connection) -> bool:
        """Takes `connection` in as a stranger's; False when there is no room for it."""
        caps = (self._caps.per_address, self._caps.per_network)
        for prefix, cap in zip(connection.prefixes, caps, strict=False):
            siblings = self._strangers.by_prefix.get(prefix, {})
            if len(siblings) >= cap and not self._evict(siblings):
                return False
        if len(self._strangers.all) >= self._caps.strangers and not self._evict_for(connection):
            return False
        self._strangers.insert(connection)
        return True

    def recognise(self, connection: Connection) -> None:
        """Counts an administrator's connection by itself from now on, as long as there is room for it."""
        if connection not in self._strangers.all or not connection.is_admins:
            return
        group = self._administrators.all
        if len(group) < self._caps.administrators or self._evict(group):
            self._strangers.remove(connection)
            self._administrators.insert(connection)

    def touch(self, connection: Connection) -> None:
        """Moves `connection` behind all that have been idle longer."""
        for group in (self._strangers, self._administrators):
            if connection in group.all:
                group.remove(connection)
                group.insert(connection)

    def remove(self, connection: Connection) -> None:
        """Forgets `connection`; harmless when it is not there."""
        self._strangers.remove(connection)
        self._administrators.remove(connection)
        if not len(self) and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def retire(self) -> None:
        """Has every connection that is open now end with its next answer."""
        for connection in self._every():
            connection.is_retired = True

    def close_idle(self) -> None:
        """Drops every connection without a request in progress."""
        for connection in [c for c in self._every() if c.phase is ConnectionPhase.IDLE]:
            connection.close()

    async def close_all(self) -> None:
        """Drops every connection; returns when the handshakes and serving loops have noticed."""
        for connection in self._every():
            connection.close()
        while len(self):
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    def _every(self) -> list[Connection]:
        return [*self._strangers.all, *self._administrators.all]

    def _evict_for(self, newcomer: Connection) -> bool:
        """Drops one of the prefix that has most; where each has one, the longest idle of all."""
        groups = self._strangers.by_prefix
        widest = dict.fromkeys(connection.prefixes[-1] for connection in self._strangers.all)
        own = len(groups.get(newcomer.prefixes[-1], ()))
        for group in sorted((groups[prefix] for prefix in widest), key=len, reverse=True):
            if len(group) < own:
                return False
            if self._evict(group):
                return True
        return False

    def _evict(self, among: Iterable[Connection]) -> bool:
        victim = next(
            (connection for connection in among if connection.phase is not ConnectionPhase.ANSWERING), None
        )
        if victim is None:
            return False
        self.remove(victim)
        victim.close()
        return True
