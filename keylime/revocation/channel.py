"""What agents do with ZeroMQ: they subscribe to revocation messages (docs/reference/rest-api.md, 7.2).

One message is one frame: the signed envelope as JSON, without a topic. The channel is neither encrypted nor
authenticated; receivers trust the signature inside and nothing else.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from keylime.errors import ConfigError, MalformedMessage
from keylime.messages.envelope import parse_body
from keylime.messages.revocation import SignedRevocation

log = logging.getLogger(__name__)

MAX_MESSAGE_SIZE = 1024 * 1024  # bytes; libzmq drops the connection of a peer that sends more
HIGH_WATER_MARK = 1000  # messages not yet read by us; more are lost
REDIAL_DELAY_MS = 1000  # how long a connection may be lost before it is dialled anew
_WATCHED_EVENTS = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_SUCCEEDED
_GARBAGE_LOG_INTERVAL = 1000  # messages: of a flood of garbage the first is logged, then every thousandth


def _new_socket(context: zmq.asyncio.Context) -> zmq.asyncio.Socket:
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_SIZE)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 60)
    return socket


class RevocationSubscriber:
    """An asynchronous iterator of the messages from several publishers; connections are made again when lost.

    What is not a signed envelope is skipped. Nothing here is verified yet.
    """

    def __init__(self, endpoints: Sequence[str]) -> None:
        """Connects to `endpoints` (see `endpoint`), reachable or not. Raises ConfigError."""
        self._context = zmq.asyncio.Context()
        self._socket = _new_socket(self._context)
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
