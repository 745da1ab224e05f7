"""One TCP connection with or without TLS, as small as it can be had: thousands are open at a time.

A non-blocking socket and the loop's notice that there is something to read: no transport, no stream, no
buffer of its own. What comes in is handed to whoever is waiting for it, piece by piece, and is not kept. A
peer that sends something while nobody waits is heard no more.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from keylime.errors import KeylimeError
from keylime.http.trouble import ConnectFailed

_PIECE = 16 << 10  # bytes: the most that a TLS record holds
_PIECES_AT_ONCE = 16  # until others get their turn

_NOT_NOW = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError, InterruptedError)


class Closed(ConnectionError):
    """The peer has closed the connection, or something has come that nobody waits for."""


class Receiver(Protocol):
    """Who waits for an answer."""

    def feed(self, data: bytes) -> bool:
        """Takes in a piece; whether that was all. Raises a KeylimeError."""

    def end(self) -> bool:
        """The peer sends no more; whether that was all. Raises a KeylimeError."""


class Wire:
    """A connection for one exchange at a time. Made by `connect`; must be closed."""

    __slots__ = ("_done", "_fd", "_has_read", "_loop", "_receiver", "_socket", "_writable", "is_open")

    def __init__(self, connected: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = connected
        self._fd = connected.fileno()
        self._receiver: Receiver | None = None
        self._done: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._has_read = False
        self.is_open = True
        self._loop.add_reader(self._fd, self._read)

    async def exchange(self, request: bytes, receiver: Receiver) -> None:
        """Sends `request`; returns when `receiver` has all it wants.

        Raises what the receiver raises, OSError, and Closed. A peer may answer before it has heard all: then
        it hears no more.
        """
        if not self.is_open:
            raise Closed("the peer has closed the connection")
        self._receiver, self._done = receiver, self._loop.create_future()
        try:
            is_sent = await self._send(request, self._done)
            await self._done
        finally:
            self._receiver = self._done = None
        if not is_sent:
            self.close()

    def session(self) -> ssl.SSLSession | None:
        """What makes the handshake of another connection to this peer shorter, if it gave any."""
        known = self._socket.session if isinstance(self._socket, ssl.SSLSocket) and self._has_read else None
        return known if known is not None and known.has_ticket else None

    def close(self) -> None:
        """Ends the connection; a peer that is owed a close_notify is sent one."""
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_reader(self._fd)
        if self._writable is not None:
            self._loop.remove_writer(self._fd)
        if isinstance(self._socket, ssl.SSLSocket):
            with contextlib.suppress(OSError, ValueError):
                self._socket.unwrap()
        self._socket.close()
        self._settle(Closed("the connection was closed"))

    async def _send(self, data: bytes, done: "asyncio.Future[None]") -> bool:
        """Whether all of `data` is on its way; not if the exchange is over before."""
        rest = memoryview(data)
        while rest and not done.done():
            try:
                rest = rest[self._socket.send(rest) :]
            except _NOT_NOW:
                await self._until_writable()
        return not rest

    async def _until_writable(self) -> None:
        """Returns when more can be sent, or nothing more has to be."""
        self._writable = self._loop.create_future()
        self._loop.add_writer(self._fd, self._wake_sender)
        try:
            await self._writable
        finally:
            self._writable = None
            if self.is_open:
                self._loop.remove_writer(self._fd)

    def _wake_sender(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _read(self) -> None:
        for _ in range(_PIECES_AT_ONCE):
            try:
                data = self._socket.recv(_PIECE)
            except _NOT_NOW:
                return
            except ssl.SSLEOFError:  # servers that end a body by closing may leave out TLS's farewell
                data = b""
            except OSError as error:
                self._end(error)
                return
            self._has_read = True
            if self._receiver is None or self._done is None or self._done.done():
                self.close()  # now: a peer that stops may be waiting for it
                return
            try:
                is_over = self._receiver.feed(data) if data else self._receiver.end()
            except KeylimeError as error:
                self._end(error)
                return
            if is_over:
                self._settle(None)
            if not data:
                self._end(Closed("the peer has closed the connection"))
            if is_over or not data:
                return
        # What TLS holds already is not told by the descriptor.
        self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self.is_open:
            self._read()

    def _end(self, error: Exception) -> None:
        self._settle(error)
        self.close()

    def _settle(self, error: Exception | None) -> None:
        """The exchange under way is over, if there is one."""
        if self._done is None or self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)
        self._wake_sender()


async def connect(
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    session: ssl.SSLSession | None = None,
    limit_s: float | None = None,
) -> tuple[Wire, bytes]:
    """A connection, and the certificate (DER) that the peer has shown in TLS.

    Raises ConnectFailed, also when nobody has taken the connection within `limit_s`. A `session` must be one
    of connections to this peer with this context.
    """
    limit = asyncio.timeout(limit_s)
    try:
        async with limit:
            plain = await _connected(host, port)
    except OSError as error:
        if limit_s is not None and limit.expired():
            raise ConnectFailed(TimeoutError(f"no answer within {limit_s:g} s")) from error
        raise ConnectFailed(error) from error
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is None:
            return Wire(plain), b""
        # A mere close is told from TLS's own by `Wire`, which knows when that matters.
        secure = tls.wrap_socket(
            plain,
            server_hostname=host,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
            session=session,
        )
    except BaseException as error:
        plain.close()
        if isinstance(error, OSError):
            raise ConnectFailed(error) from error
        raise
    try:
        await _shake_hands(secure)
        return Wire(secure), secure.getpeercert(binary_form=True) or b""
    except BaseException as error:
        secure.close()
        if isinstance(error, OSError):
            raise ConnectFailed(error) from error
        raise


async def _connected(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:  # nobody has to be asked for the address of a number
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in found:
        one = socket.socket(family, kind, protocol)
        try:
            one.setblocking(False)
            await loop.sock_connect(one, address)
        except BaseException as error:
            one.close()
            if not isinstance(error, OSError):
                raise
            failure = error
        else:
            return one
    raise failure


async def _shake_hands(secure: ssl.SSLSocket) -> None:
    loop, fd = asyncio.get_running_loop(), secure.fileno()
    while True:
        try:
            secure.do_handshake()
        except ssl.SSLWantReadError:
            await _ready(fd, loop.add_reader, loop.remove_reader)
        except ssl.SSLWantWriteError:
            await _ready(fd, loop.add_writer, loop.remove_writer)
        else:
            return


async def _ready(fd: int, add: Callable[..., object], remove: Callable[[int], object]) -> None:
    """Returns when the descriptor is ready for what `add` has the loop look for."""
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def note() -> None:
        if not ready.done():
            ready.set_result(None)

    add(fd, note)
    try:
        await ready
    finally:
        remove(fd)
