"""The publisher of revocation messages: subscribers' connections, within bounds, and what they get.

Anybody may connect to it. What a stranger can cost is therefore bounded from the first byte on: connections
in all, by network and by address; bytes that a subscriber may send; and nothing is kept for one that does
not read: all read from one short log of messages, each from its own place.
"""

import asyncio
import hashlib
import ipaddress
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Self, cast

import msgspec

from keylime.errors import ConfigError
from keylime.messages.revocation import SignedRevocation
from keylime.revocation.publication import REPLAY_S
from keylime.revocation.zmtp import GREETING, ProtocolViolation, SubscriberSession, message_frame

log = logging.getLogger(__name__)

MAX_REPLAYED = 256  # messages that a new subscriber gets
LINGER_S = 1.0  # how long a closing publisher goes on sending
_MAX_KEPT = 10_000  # messages, for subscribers that read slowly
_MAX_KEPT_BYTES = 16 << 20
_HANDSHAKE_S = 10.0
_BACKLOG = 1024
# What a subscriber may send: handshake and topics at once, then heartbeats.
_BURST = 4096  # bytes
_BYTES_PER_S = 64
_PIECE = 64 << 10  # bytes that are handed to a connection at once
_SEND_BUFFER = 128 << 10  # bytes in the kernel, for each connection
_DEAD_MS = 120_000  # a peer that acknowledges nothing for so long is gone
_LOG_INTERVAL_S = 60.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections are kept; a network is a /24 of IPv4, an address of IPv6 counts as its /64."""

    per_address: int = 512
    per_network: int = 2048
    total: int = 8192


@dataclass(frozen=True, slots=True)
class LoggedMessage:
    """A message, by its number in the log, as it is sent."""

    number: int
    published_at: float
    body: bytes
    frame: bytes


class MessageLog:
    """The newest messages: as many as fit, and none that is older than `REPLAY_S`."""

    def __init__(self, most: int = _MAX_KEPT, most_bytes: int = _MAX_KEPT_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._messages: deque[LoggedMessage] = deque()
        self._withdrawn: set[int] = set()
        self._bytes = 0
        self.end = 0
        """The number of the next message."""

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[LoggedMessage]:
        return iter(self._messages)

    @property
    def start(self) -> int:
        """The number of the oldest message."""
        return self.end - len(self._messages)

    def __getitem__(self, number: int) -> LoggedMessage:
        return self._messages[number - self.start]

    def add(self, body: bytes, published_at: float) -> None:
        """Takes a message in, which may push out old ones."""
        self._messages.append(LoggedMessage(self.end, published_at, body, message_frame(body)))
        self._bytes += len(body)
        self.end += 1
        while len(self._messages) > self._most or self._bytes > self._most_bytes:
            self._drop()

    def withdraw(self, digests: Container[bytes]) -> list[bytes]:
        """Takes messages out, by the SHA-256 of their bodies; the digests of those that were in the log."""
        found = []
        for message in self._messages:
            digest = body_digest(message.body)
            if message.number not in self._withdrawn and digest in digests:
                self._withdrawn.add(message.number)
                found.append(digest)
        return found

    def is_withdrawn(self, message: LoggedMessage) -> bool:
        """Whether nobody is to get the message any more."""
        return message.number in self._withdrawn

    def forget_old(self, now: float) -> None:
        """Drops what was published too long ago."""
        while self._messages and now - self._messages[0].published_at >= REPLAY_S:
            self._drop()

    def _drop(self) -> None:
        dropped = self._messages.popleft()
        self._withdrawn.discard(dropped.number)
        self._bytes -= len(dropped.body)


def body_digest(body: bytes) -> bytes:
    """What a message is called between the verifier and its broker."""
    return hashlib.sha256(body).digest()


def listening_socket(address: str, port: int) -> socket.socket:
    """A socket that listens at `address` (an IP address, a host name, or `*`). Raises ConfigError."""
    everywhere = address in ("*", "::")
    try:
        if everywhere and socket.has_dualstack_ipv6():
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True
            )
        host = "0.0.0.0" if address == "*" else address  # noqa: S104
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((str(where[0]), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        # Where it can, Python adds the address to the system's words; ours name the options.
        number = error.errno or 0  # of name resolution: negative
        reason = os.strerror(number) if number > 0 else error.strerror
        raise ConfigError(f"[revocations] zmq_ip, zmq_port = {address}, {port}: {reason}") from error


class RevocationPublisher:
    """Serves subscribers in this process. Whoever subscribes gets the messages of the last minutes first."""

    def __init__(self, listener: socket.socket, limits: ConnectionLimits = ConnectionLimits()) -> None:
        self.port: int = listener.getsockname()[1]
        self.subscribers = SubscriberTable(limits)
        self.messages = MessageLog()
        self._listener = listener
        self._server: asyncio.Server | None = None
        self._complained_at = -_LOG_INTERVAL_S
        self._suppressed = 0

    @classmethod
    async def bound(cls, address: str, port: int, limits: ConnectionLimits = ConnectionLimits()) -> Self:
        """A publisher at work. `port` 0 is any free one. Raises ConfigError."""
        publisher = cls(listening_socket(address, port), limits)
        await publisher.start()
        return publisher

    async def start(self) -> None:
        """Begins to accept connections."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        self._server = await loop.create_server(
            lambda: _Subscriber(self), sock=self._listener, backlog=_BACKLOG
        )

    async def publish(self, signed: SignedRevocation) -> None:
        """Sends the message to all who want it; waits for nobody."""
        self.publish_body(msgspec.json.encode(signed), time.monotonic())

    def publish_body(self, body: bytes, published_at: float) -> None:
        """As `publish`, of an encoded message that is of the time `published_at` (of the monotonic clock)."""
        self.messages.forget_old(time.monotonic())
        self.messages.add(body, published_at)
        for subscriber in self.subscribers:
            subscriber.pump()

    async def close(self) -> None:
        """Frees the port, sends what is left for one second at most, and drops all connections."""
        if self._server is not None:
            self._server.close()
        self._listener.close()
        deadline = time.monotonic() + LINGER_S
        while any(subscriber.is_behind for subscriber in self.subscribers):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.01)
        for subscriber in tuple(self.subscribers):
            subscriber.drop()

    def complain(self, address: str, error: ProtocolViolation) -> None:
        """Tells of a stranger; of many of them once a minute."""
        now = time.monotonic()
        if now - self._complained_at < _LOG_INTERVAL_S:
            self._suppressed += 1
            return
        more = f" ({self._suppressed} more like it before)" if self._suppressed else ""
        log.warning("dropped a connection of %s to the revocation port: %s%s", address, error, more)
        self._complained_at, self._suppressed = now, 0


class _Subscriber(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_allowance",
        "_allowed_at",
        "_deadline",
        "_is_paused",
        "_next",
        "_publisher",
        "_rest",
        "_transport",
        "address",
        "session",
        "source",
    )

    def __init__(self, publisher: RevocationPublisher) -> None:
        self.address = ""
        self.source = ("", "")
        self.session = SubscriberSession()
        self._publisher = publisher
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._is_paused = False
        self._next: int | None = (
            None  # the number of the message that it gets next; None before it subscribes
        )
        self._rest = memoryview(b"")  # of a long message
        self._allowance = float(_BURST)
        self._allowed_at = 0.0

    @property
    def is_behind(self) -> bool:
        """Whether something is still to be sent to it."""
        if self._transport is None or self._next is None:
            return False
        is_waiting = bool(self._rest) or self._next < self._publisher.messages.end
        return is_waiting or self._transport.get_write_buffer_size() > 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        if not peer:  # gone already
            transport.abort()
            return
        self.address = str(peer[0])
        self.source = source_of(self.address)
        _set_options(transport.get_extra_info("socket"))
        transport.set_write_buffer_limits(high=_PIECE)
        loop = asyncio.get_running_loop()
        self._allowed_at = loop.time()
        self._publisher.subscribers.add(self)
        self._deadline = loop.call_later(_HANDSHAKE_S, self.drop)
        transport.write(GREETING)

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        try:
            self._spend(len(data))
            answer = self.session.receive(data)
        except ProtocolViolation as error:
            self._publisher.complain(self.address, error)
            self.drop()
            return
        if answer:
            self._transport.write(answer)
        if self._deadline is not None and self.session.is_ready:
            self._deadline.cancel()
            self._deadline = None
        if self._next is None and self.session.is_subscribed:
            messages = self._publisher.messages
            messages.forget_old(time.monotonic())
            self._next = max(messages.start, messages.end - MAX_REPLAYED)
        self.pump()

    def _spend(self, size: int) -> None:
        now = asyncio.get_running_loop().time()
        self._allowance = min(_BURST, self._allowance + _BYTES_PER_S * (now - self._allowed_at)) - size
        self._allowed_at = now
        if self._allowance < 0:
            raise ProtocolViolation("a subscriber has less to say")

    def pump(self) -> None:
        """Sends what is new to this subscriber, as far as it reads."""
        if self._next is None or self._transport is None or self._transport.is_closing():
            return
        messages = self._publisher.messages
        while not self._is_paused:
            if self._rest:
                piece, self._rest = self._rest[:_PIECE], self._rest[_PIECE:]
                self._transport.write(piece)
                continue
            self._next = max(self._next, messages.start)  # one that is too slow loses the oldest
            if self._next >= messages.end:
                return
            message = messages[self._next]
            self._next += 1
            if self.session.wants(message.body) and not messages.is_withdrawn(message):
                self._rest = memoryview(message.frame)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()

    def drop(self) -> None:
        """Ends the connection now."""
        if self._transport is not None:
            self._transport.abort()
        self._forget()

    def _forget(self) -> None:
        self._publisher.subscribers.remove(self)
        self._rest = memoryview(b"")
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _set_options(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_MS)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)


class SubscriberTable:
    """Every open connection, oldest first, by address and by network.

    At a limit there is room for a newcomer all the same: of the fullest address or network it is one that has
    not subscribed yet, or else the oldest one, that goes. A subscriber dials again and misses nothing by it.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._all: dict[_Subscriber, None] = {}
        self._by_address: dict[str, dict[_Subscriber, None]] = {}
        self._by_network: dict[str, dict[_Subscriber, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[_Subscriber]:
        return iter(tuple(self._all))

    def add(self, subscriber: _Subscriber) -> None:
        """Takes a connection in; another one is dropped when there is no room."""
        address, network = subscriber.source
        siblings = self._by_address.get(address, {})
        neighbours = self._by_network.get(network, {})
        if len(siblings) >= self._limits.per_address:
            _victim(siblings).drop()
        elif len(neighbours) >= self._limits.per_network:
            self._thin_out(neighbours)
        elif len(self._all) >= self._limits.total:
            fullest = max(self._by_network, key=lambda name: len(self._by_network[name]))
            self._thin_out(self._by_network[fullest])
        self._all[subscriber] = None
        self._by_address.setdefault(address, {})[subscriber] = None
        self._by_network.setdefault(network, {})[subscriber] = None

    def remove(self, subscriber: _Subscriber) -> None:
        """Forgets a connection; harmless when it is not there."""
        if subscriber not in self._all:
            return
        del self._all[subscriber]
        address, network = subscriber.source
        for key, table in ((address, self._by_address), (network, self._by_network)):
            del table[key][subscriber]
            if not table[key]:
                del table[key]

    def _thin_out(self, neighbours: Iterable[_Subscriber]) -> None:
        """Drops a connection of the address that has most of them."""
        addresses = {subscriber.source[0] for subscriber in neighbours}
        _victim(self._by_address[max(addresses, key=lambda name: len(self._by_address[name]))]).drop()


def _victim(among: Iterable[_Subscriber]) -> _Subscriber:
    idle = (subscriber for subscriber in among if not subscriber.session.is_subscribed)
    return next(idle, None) or next(iter(among))


def source_of(address: str) -> tuple[str, str]:
    """The names under which the connections of `address` are counted: its own, and its network's."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address, address
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else parsed
    if mapped is not None:
        return str(mapped), str(mapped).rpartition(".")[0]
    network = parsed.packed[:8].hex()
    return network, network
