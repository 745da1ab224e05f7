"""A port of this process whose connections end with it, whatever they were in the middle of.

`asyncio.Server` leaves those that it has accepted to themselves: one whose handshake is under way, or whose
handler has not had its turn yet, would outlive the event loop, and be told of as unclosed in a later test.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from tests.fakes.eventual import eventually

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


class LoopbackPort:
    """Accepts connections until `close`; `number` is the port."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._tls = tls
        self._lines: set[socket.socket] = set()
        self._transports: set[asyncio.BaseTransport] = set()
        self._work: set[asyncio.Task[None]] = set()
        self.number: int = listener.getsockname()[1]

    @classmethod
    async def open(
        cls,
        protocol: Callable[[], asyncio.BaseProtocol],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> "LoopbackPort":
        """Listens from now on; `protocol` makes what serves a connection."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=128)
        listener.setblocking(False)
        opened = cls(listener, protocol, tls)
        asyncio.get_running_loop().add_reader(listener, opened._accept)
        return opened

    def admit_nobody(self) -> None:
        """Nobody is let in any more; who is connected stays so."""
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()

    async def close(self) -> None:
        """Nobody is let in any more, and every connection is cut. Returns when all of them are closed."""
        self.admit_nobody()
        await eventually(self._cut)

    def _cut(self) -> bool:
        """Whether nothing is left to be cut."""
        for transport in self._transports:
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
        left = [line for line in self._lines if line.fileno() >= 0]
        for line in left:
            # With TLS they would wait for a last word of clients that may be stopped, or dying.
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        return not left and not self._work

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):  # who knocked has gone again
            line, _ = self._listener.accept()
            line.setblocking(False)
            self._lines = {one for one in self._lines if one.fileno() >= 0} | {line}
            self._transports = {one for one in self._transports if not one.is_closing()}
            task = asyncio.create_task(self._serve(line))
            self._work.add(task)
            task.add_done_callback(self._work.discard)

    async def _serve(self, line: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.connect_accepted_socket(self._protocol, line, ssl=self._tls)
        except OSError:
            line.close()  # the client did not finish its handshake
        else:
            self._transports.add(transport)


class LoopbackSite:
    """An application of aiohttp on such a port."""

    def __init__(self, runner: web.AppRunner, port: LoopbackPort) -> None:
        self._runner = runner
        self._port = port
        self.port = port.number

    @classmethod
    async def open(
        cls, app: web.Application, *, port: int = 0, tls: ssl.SSLContext | None = None
    ) -> "LoopbackSite":
        """Listens from now on."""
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        assert runner.server is not None
        return cls(runner, await LoopbackPort.open(runner.server, port=port, tls=tls))

    async def close(self) -> None:
        """The port is closed, and so is every connection."""
        self._port.admit_nobody()
        await self._runner.cleanup()
        await self._port.close()


async def listen(
    handler: Handler,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    limit: int = 1 << 16,
) -> LoopbackPort:
    """`handler` gets every connection as streams that read `limit` bytes ahead."""

    def protocol() -> asyncio.BaseProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit), handler)

    return await LoopbackPort.open(protocol, host=host, port=port, tls=tls)


@asynccontextmanager
async def served_by(
    handler: Handler,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    limit: int = 1 << 16,
) -> AsyncIterator[LoopbackPort]:
    """`listen`, until the block ends."""
    opened = await listen(handler, host=host, port=port, tls=tls, limit=limit)
    try:
        yield opened
    finally:
        await opened.close()
