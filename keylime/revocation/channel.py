"""Revocation messages over ZeroMQ: the verifier publishes, agents subscribe (rest-api 7.2).

One message is one frame: the signed envelope as JSON, without a topic. The channel is neither encrypted nor
authenticated; receivers trust the signature inside and nothing else.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from keylime.errors import ConfigError, MalformedMessage
from keylime.messages.envelope import parse_body
from keylime.messages.revocation import SignedRevocation

log = logging.getLogger(__name__)

MAX_MESSAGE_SIZE = 1024 * 1024  # bytes; libzmq drops the connection of a peer that sends more
HIGH_WATER_MARK = 1000  # messages queued for a slow subscriber, or not yet read by us; more are lost
LINGER_MS = 1000  # how long a closing publisher goes on sending
REPLAY_S = 600.0  # how long a message is repeated for those who subscribe later
MAX_REPLAYED = 256  # messages
_GATHER_S = 0.2  # subscribers that come together are served together
_REPLAY_INTERVAL_S = 5.0  # a subscriber that comes and goes all the time costs the others no more than that
REDIAL_DELAY_MS = 1000  # how long a connection may be lost before it is dialled anew
_WATCHED_EVENTS = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_SUCCEEDED
_GARBAGE_LOG_INTERVAL = 1000  # messages: of a flood of garbage the first is logged, then every thousandth


def endpoint(address: str, port: int) -> str:
    """The ZeroMQ name of a TCP address, IPv4, IPv6 or host name."""
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def _new_socket(context: zmq.asyncio.Context, kind: int) -> zmq.asyncio.Socket:
    socket = context.socket(kind)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_SIZE)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 60)
    return socket


class RevocationPublisher:
    """A bound publisher. Whoever subscribes gets the messages of the last `REPLAY_S` seconds once more.

    ZeroMQ cannot send to one subscriber only: the repetition reaches all, and they drop what they had.
    """

    def __init__(self, address: str, port: int) -> None:
        """Binds to `address` (an IP address, or `*`) and `port` (0: any free one). Raises ConfigError."""
        self._context = zmq.asyncio.Context()
        # XPUB is a PUB that tells of subscriptions; verbose, of each and not only of the first.
        self._socket = _new_socket(self._context, zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._recent: deque[tuple[float, bytes]] = deque(maxlen=MAX_REPLAYED)
        self._repeater: asyncio.Task[None] | None = None
        try:
            self._socket.bind(endpoint(address, port))
        except zmq.ZMQError as error:
            self._socket.close()
            self._context.term()
            raise ConfigError(
                f"[revocations] zmq_ip, zmq_port = {address}, {port}: {error.strerror}"
            ) from error

    @property
    def port(self) -> int:
        """The port it is bound to."""
        return int(self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    async def publish(self, signed: SignedRevocation) -> None:
        """Hands the message to the sender thread; never waits for a subscriber."""
        if self._repeater is None:
            await self._drop_events()  # who subscribed before the first message missed nothing
            self._repeater = asyncio.create_task(self._repeat())
        frame = msgspec.json.encode(signed)
        self._recent.append((time.monotonic(), frame))
        await self._socket.send(frame)

    async def close(self) -> None:
        """Sends what is queued, for one second at most, and frees the port."""
        if self._repeater is not None:
            self._repeater.cancel()
            await asyncio.gather(self._repeater, return_exceptions=True)
        self._socket.close()
        await asyncio.to_thread(self._context.term)

    async def _repeat(self) -> None:
        """Sends recent messages again whenever somebody has subscribed."""
        while True:
            event = await self._socket.recv_multipart()
            if event[0][:1] != b"\x01":  # else somebody unsubscribed, or sends us nonsense
                continue
            await asyncio.sleep(_GATHER_S)
            await self._drop_events()
            for published_at, frame in tuple(self._recent):
                if time.monotonic() - published_at < REPLAY_S:
                    await self._socket.send(frame)
            await asyncio.sleep(_REPLAY_INTERVAL_S)

    async def _drop_events(self) -> None:
        for _ in range(HIGH_WATER_MARK):
            if not await self._socket.poll(0):
                return
            await self._socket.recv_multipart()


class RevocationSubscriber:
    """An asynchronous iterator of the messages from several publishers; connections are made again when lost.

    What is not a signed envelope is skipped. Nothing here is verified yet.
    """

    def __init__(self, endpoints: Sequence[str]) -> None:
        """Connects to `endpoints` (see `endpoint`), reachable or not. Raises ConfigError."""
        self._context = zmq.asyncio.Context()
        self._socket = _new_socket(self._context, zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._monitor = self._socket.get_monitor_socket(_WATCHED_EVENTS)
        self._watcher: asyncio.Task[None] | None = None
        self._garbage = 0
        for name in endpoints:
            try:
                self._socket.connect(name)
            except zmq.ZMQError as error:
                self.close()
                raise ConfigError(f"revocations cannot be received from {name}: {error.strerror}") from error

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SignedRevocation:
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._keep_connected())
        while not self._socket.closed:
            try:
                frames = await self._socket.recv_multipart()
            except (asyncio.CancelledError, zmq.ZMQError):
                if self._socket.closed:  # by close(), which cancels the wait for a message
                    break
                raise
            try:
                return _parse_frames(frames)
            except MalformedMessage as error:
                self._report_garbage(error)
        raise StopAsyncIteration

    async def _keep_connected(self) -> None:
        """Dials again where libzmq gave up: it does so for good after a message that breaks its protocol."""
        lost: set[str] = set()
        while True:
            timeout_ms = REDIAL_DELAY_MS if lost else None
            if not await self._monitor.poll(timeout_ms):
                for name in lost:
                    with suppress(zmq.ZMQError):  # not known any more: libzmq gave up
                        self._socket.disconnect(name)
                    self._socket.connect(name)
                lost.clear()  # from here on libzmq tries again by itself, or tells that it gave up once more
                continue
            event = parse_monitor_message(await self._monitor.recv_multipart())
            name = event["endpoint"].decode("ascii", "replace")
            if event["event"] in (zmq.EVENT_DISCONNECTED, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL):
                lost.add(name)
            else:
                lost.discard(name)

    def _report_garbage(self, error: MalformedMessage) -> None:
        if self._garbage % _GARBAGE_LOG_INTERVAL == 0:
            log.warning(
                "skipped message number %d that is no signed revocation: %s", self._garbage + 1, error
            )
        self._garbage += 1

    def close(self) -> None:
        """Disconnects; an iteration in progress ends."""
        if self._watcher is not None:
            self._watcher.cancel()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        self._context.term()


def _parse_frames(frames: Sequence[bytes]) -> SignedRevocation:
    if len(frames) != 1:
        raise MalformedMessage(f"expected one frame, got {len(frames)}")
    return parse_body(frames[0], SignedRevocation)
