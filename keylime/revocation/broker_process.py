"""The verifier's side of its ZeroMQ broker: starts the process, hands messages to it, starts it again.

A message counts as published when the broker has acknowledged it. While there is no broker nobody but the
publishing itself waits. A new broker is told what was published before it, also by a verifier that has ended,
so that subscribers, who dial again, miss nothing.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager

import msgspec

from keylime.errors import KeylimeError, PeerUnreachable
from keylime.messages.revocation import SignedRevocation
from keylime.revocation.broker import ACKNOWLEDGEMENT, HEADER, WITHDRAWAL
from keylime.revocation.publisher import LINGER_S, MAX_REPLAYED, MessageLog, body_digest, listening_socket
from keylime.service.background import SupervisedLoop, accompanied

log = logging.getLogger(__name__)

_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 30.0
_STEADY_S = 60.0  # a broker that ran for so long is replaced without a long pause
_PING_INTERVAL_S = 15.0
_SILENCE_LIMIT_S = 60.0  # a broker that takes nothing for so long is replaced
_LONGEST_END_S = LINGER_S + 0.5
_LOOK_LIMIT_S = 5.0
# The broker is no service of its own: it must not speak to the service manager.
_NOT_PASSED_ON = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class _Link:
    """One broker process, and the stream to it."""

    def __init__(self, process: "subprocess.Popen[bytes]", control: socket.socket) -> None:
        self.process = process
        self._control = control
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._sent = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._control)

    async def send(self, body: bytes, published_at: float) -> None:
        """Returns when the broker has taken the message. Raises PeerUnreachable."""
        if self._writer is None or self._writer.is_closing():
            raise PeerUnreachable("the ZeroMQ broker has ended")
        self._sent += 1
        number = self._sent
        taken = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(HEADER.pack(number, published_at, len(body)) + body)
            await taken
        finally:
            del self._waiting[number]

    async def read(self) -> None:
        """Takes acknowledgements until the broker ends."""
        reader = self._reader
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while reader is not None:
                (number,) = ACKNOWLEDGEMENT.unpack(await reader.readexactly(ACKNOWLEDGEMENT.size))
                taken = self._waiting.get(number)
                if taken is not None and not taken.done():
                    taken.set_result(None)

    def close(self) -> None:
        """Lets the broker know that this is the end."""
        if self._writer is not None:
            self._writer.close()
        self._control.close()
        for taken in self._waiting.values():
            if not taken.done():
                taken.set_exception(PeerUnreachable("the ZeroMQ broker has ended"))


class BrokerProcess:
    """The broker at one address and port, which stay bound as long as this object is open."""

    def __init__(
        self,
        listener: socket.socket,
        recent: Sequence[tuple[SignedRevocation, float]] = (),
        before_start: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`recent` was published by a process before this one: oldest first, each so many seconds ago.

        `before_start` is awaited, for some seconds at most, before a broker is told what is recent: it may
        withdraw some of it.
        """
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._link: _Link | None = None
        self._is_up = asyncio.Event()
        self._turn = asyncio.Lock()  # one message is on its way, the others wait where they are stored
        self._recent = MessageLog(most=MAX_REPLAYED)
        for signed, age_s in recent:
            self._recent.add(msgspec.json.encode(signed), time.monotonic() - age_s)
        self._before_start = before_start
        self._delay_s = _FIRST_DELAY_S

    @property
    def has_recent(self) -> bool:
        """Whether there is anything that a new subscriber would get."""
        self._recent.forget_old(time.monotonic())
        return len(self._recent) > 0

    async def withdraw(self, over: Iterable[SignedRevocation]) -> None:
        """Has these messages repeated to nobody any more, neither by this broker nor by the next."""
        found = self._recent.withdraw({body_digest(msgspec.json.encode(signed)) for signed in over})
        if found and self._link is not None:
            with contextlib.suppress(PeerUnreachable):  # the next one is not told of them
                await self._link.send(b"".join(found), WITHDRAWAL)

    @property
    def pid(self) -> int | None:
        """The process that serves now; None while there is none."""
        return None if self._link is None else self._link.process.pid

    async def publish(self, signed: SignedRevocation) -> None:
        """Returns when the broker has the message, for which it may have to be started first.

        Raises PeerUnreachable when it ends meanwhile.
        """
        body = msgspec.json.encode(signed)
        async with self._turn:
            await self._is_up.wait()
            if self._link is None:
                raise PeerUnreachable("the ZeroMQ broker has ended")
            published_at = time.monotonic()
            await self._link.send(body, published_at)
            self._recent.forget_old(published_at)
            self._recent.add(body, published_at)

    async def run(self) -> None:
        """Keeps a broker running, for ever. Ends by cancellation, and so does the broker then."""
        while True:
            started_at = time.monotonic()
            reason = await self._run_once()
            if time.monotonic() - started_at > _STEADY_S:
                self._delay_s = _FIRST_DELAY_S
            log.error("the ZeroMQ broker ended (%s), starting another in %g s", reason, self._delay_s)
            await asyncio.sleep(self._delay_s)
            self._delay_s = min(2 * self._delay_s, _LONGEST_DELAY_S)

    async def _run_once(self) -> str:
        """The life of one broker; how it ended."""
        link = self._spawn()
        try:
            await link.open()
            reading = asyncio.create_task(link.read())
            try:
                return await self._attend(link, reading) or await self._cause_of_end(link)
            finally:
                reading.cancel()
        finally:
            self._is_up.clear()
            self._link = None
            link.close()
            await asyncio.shield(_end(link.process))

    async def _attend(self, link: _Link, reading: "asyncio.Task[None]") -> str | None:
        """Why this broker must be replaced; None when it has ended by itself."""
        try:
            async with asyncio.timeout(_SILENCE_LIMIT_S):
                await _unless(reading, self._greet(link))
            self._link = link
            self._is_up.set()
            log.debug("the ZeroMQ broker is process %d", link.process.pid)
            while not reading.done():
                await asyncio.wait([reading], timeout=_PING_INTERVAL_S)
                async with asyncio.timeout(_SILENCE_LIMIT_S):
                    await _unless(reading, link.send(b"", 0.0))
        except TimeoutError:
            return f"it was not heard of for {_SILENCE_LIMIT_S:g} s"
        except PeerUnreachable:
            pass
        return None

    async def _greet(self, link: _Link) -> None:
        """Tells a new broker what an old one knew; returns when it is at work."""
        if self._before_start is not None:
            try:
                async with asyncio.timeout(_LOOK_LIMIT_S):
                    await self._before_start()
            except (TimeoutError, KeylimeError) as error:
                reason = str(error) or "the database does not answer"
                log.warning("what the ZeroMQ broker repeats may be out of date: %s", reason)
        self._recent.forget_old(time.monotonic())
        for message in tuple(self._recent):
            if not self._recent.is_withdrawn(message):
                await link.send(message.body, message.published_at)
        await link.send(b"", 0.0)

    async def _cause_of_end(self, link: _Link) -> str:
        code = await asyncio.to_thread(_wait, link.process, _LONGEST_END_S)
        if code is None:
            return "it closed the stream"
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def _spawn(self) -> _Link:
        ours, theirs = socket.socketpair()
        try:
            environ = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
            descriptors = theirs.fileno(), self._listener.fileno()
            process = subprocess.Popen(  # noqa: S603
                # -P and -s: nothing is imported from the working directory or a home.
                [sys.executable, "-s", "-P", "-m", "keylime.revocation.broker", *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                env=environ,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return _Link(process, ours)


@asynccontextmanager
async def running_broker(
    address: str,
    port: int,
    recent: Sequence[tuple[SignedRevocation, float]] = (),
    before_start: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[BrokerProcess]:
    """A broker that listens at `address` and `port` (0: any free one). Raises ConfigError.

    It repeats what is `recent`, see `BrokerProcess` for this and for `before_start`.
    At the end what it has taken is sent, for a second at most, and the port is free.
    """
    with listening_socket(address, port) as listener:
        broker = BrokerProcess(listener, recent, before_start)
        async with accompanied(SupervisedLoop("ZeroMQ broker", broker.run).run()):
            yield broker


async def _unless(reading: "asyncio.Task[None]", work: Coroutine[None, None, None]) -> None:
    """Does `work`; raises PeerUnreachable as soon as nobody is there to answer it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task, reading], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise PeerUnreachable("the ZeroMQ broker has ended")
        task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _end(process: "subprocess.Popen[bytes]") -> None:
    """Returns when the process has ended, by force if it takes too long."""
    if await asyncio.to_thread(_wait, process, _LONGEST_END_S) is None:
        process.kill()
        await asyncio.to_thread(process.wait)


def _wait(process: "subprocess.Popen[bytes]", limit_s: float) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(limit_s)
    return None
