"""The HTTP server that registrar, verifier and agent share: TLS, limits, deadlines, rights, clean stop.

Tornado reads and writes HTTP/1.1. What a request is judged by stands in `routing`, how it is carried through
in `serving`; this module holds the ports and connections. No body, query string or header value is logged.
"""

import asyncio
import os
import resource
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters, HTTP1ServerConnection
from tornado.httputil import HTTPConnection, HTTPMessageDelegate, HTTPServerConnectionDelegate
from tornado.netutil import add_accept_handler, ssl_wrap_socket

from keylime.errors import ConfigError
from keylime.http.bodies import Bodies
from keylime.http.callers import AdminRule, RoleRule, administrator
from keylime.http.connections import Caps, Connection, ConnectionTable
from keylime.http.exchange import Caller, HttpError, Request, Response, Role
from keylime.http.handshakes import HandshakeLog
from keylime.http.routing import Route, Router, Unrouted, method_not_allowed, not_found
from keylime.http.serving import Exchange, ServerLimits
from keylime.http.streams import AnsweringStream, AnsweringTlsStream, HandshakePace
from keylime.messages.versions import SUPPORTED_VERSIONS

__all__ = [
    "Caller",
    "HttpError",
    "Request",
    "Response",
    "Role",
    "RoleRule",
    "Route",
    "Server",
    "ServerLimits",
    "administrator",
    "bound_port",
    "method_not_allowed",
    "not_found",
    "reserved_port",
]

_CHUNK_SIZE = 64 << 10
# What a connection may hold beside the body of its request: a head, or what comes while an answer is written.
_READ_SIZE = 16 << 10  # the most that a TLS record holds
_BUFFER_SIZE = 128 << 10
_UNLIMITED = 1 << 62
_SPARE_DESCRIPTORS = 128
_BACKLOG = 1024


@contextmanager
def reserved_port(address: str, port: int) -> Iterator[int]:
    """Keeps a port for several processes that listen with `reuse_port`; which one that is when `port` is 0.

    Raises ConfigError when somebody else has it, another set of such processes included.
    """
    with _explained(address, port), ExitStack() as opened:
        with ExitStack() as probes:
            for probe in _bind(address, port, reuse_port=False, listen=False):
                probes.callback(probe.close)
                port = probe.getsockname()[1]
        for kept in _bind(address, port, reuse_port=True, listen=False):
            opened.callback(kept.close)
        held = opened.pop_all()
    with held:
        yield port


@contextmanager
def bound_port(address: str, port: int) -> Iterator[Sequence[socket.socket]]:
    """Sockets for `Server.listen_on`, which have the port already and refuse connections until then.

    Raises ConfigError when the address cannot be had, for instance because the port is in use.
    """
    with _explained(address, port):
        sockets = _bind(address, port, reuse_port=False, listen=False)
    try:
        yield sockets
    finally:
        for one in sockets:
            one.close()


class Server(HTTPServerConnectionDelegate):
    """Serves a table of routes on one or more ports. A path that is not in the table does not exist."""

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        limits: ServerLimits | None = None,
        is_admin: AdminRule = administrator,
        unrouted: Unrouted = not_found,
        wrong_method: Unrouted = method_not_allowed,
        versions: Sequence[str] = SUPPORTED_VERSIONS,
    ) -> None:
        self.limits = limits or ServerLimits()
        self.router = Router(routes, versions=versions, unrouted=unrouted, wrong_method=wrong_method)
        self.is_admin = is_admin
        self.draining = False
        self.exchanges: set[Exchange] = set()
        self.answering = 0  # requests whose handlers are at work now
        self.stranger_bodies = Bodies(self.limits.stranger_bodies)
        self.admin_bodies = Bodies(self.limits.admin_bodies)
        self.connections = ConnectionTable(_caps(self.limits))
        self._listeners: list[_Listener] = []

    def listen(
        self, address: str, port: int, tls: ssl.SSLContext | None = None, *, reuse_port: bool = False
    ) -> int:
        """Starts accepting on `address`; the port bound, which differs from `port` only when that is 0.

        Raises ConfigError when the address cannot be had, for instance because the port is in use.
        """
        with _explained(address, port):
            sockets = _bind(address, port, reuse_port=reuse_port)
        return self._serve(sockets, tls)

    def listen_on(self, bound: Sequence[socket.socket], tls: ssl.SSLContext | None = None) -> int:
        """Starts accepting on sockets of `bound_port`, which the server closes then; the port.

        Raises ConfigError when another program has begun to listen there meanwhile.
        """
        address, port, *_ = bound[0].getsockname()
        with _explained(address, port):
            for one in bound:
                one.listen(_BACKLOG)
        return self._serve(bound, tls)

    def _serve(self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None) -> int:
        self._listeners.append(_Listener(self, sockets, tls))
        return int(sockets[0].getsockname()[1])

    def renew(self, *, tls: ssl.SSLContext | None, max_body: int) -> None:
        """Takes new certificates and a new limit, in bytes, from now on; no request is cut off.

        `tls` None leaves the certificates, and a plain port stays one. Connections that are open answer one
        request more at most: the next one comes with a new handshake.
        """
        self.limits = replace(self.limits, max_body=max_body)
        for listener in self._listeners:
            if listener.tls is not None and tls is not None:
                listener.tls = tls
        self.connections.retire()

    async def stop(self, drain_s: float = 3.0) -> None:
        """Stops accepting, lets requests finish for up to `drain_s` seconds, then drops what is left."""
        self.draining = True
        for listener in self._listeners:
            listener.stop()
        self.connections.close_idle()
        if self.exchanges:
            await asyncio.wait([exchange.over for exchange in self.exchanges], timeout=drain_s)
        tasks = [exchange.task for exchange in self.exchanges if exchange.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.connections.close_all()

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """What will take the next request of a connection (called by tornado)."""
        if not isinstance(request_conn, HTTP1Connection) or not isinstance(request_conn.context, Connection):
            raise TypeError(f"not a connection of this server: {request_conn!r}")
        return Exchange(self, request_conn, request_conn.context)

    def on_close(self, server_conn: object) -> None:
        """A connection has ended (called by tornado)."""
        if isinstance(server_conn, HTTP1ServerConnection) and isinstance(server_conn.context, Connection):
            self.connections.remove(server_conn.context)
            server_conn.context.ended()


class _Listener:
    """Accepts the connections of one port; each handshake runs on its own, under a deadline."""

    def __init__(self, server: Server, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None) -> None:
        self.tls = tls  # of the connections to come
        self._server = server
        self._sockets = sockets
        self._pace = HandshakePace()
        self._failures = HandshakeLog()
        self._removers = [add_accept_handler(one, self._accept) for one in sockets]
        self._tasks: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Accepts no more; connections that are open are left as they are."""
        for remove in self._removers:
            remove()
        for one in self._sockets:
            one.close()

    def _accept(self, accepted: socket.socket, address: tuple[object, ...]) -> None:
        stream = self._open(accepted)
        if stream is None:
            return
        limits = self._server.limits
        params = HTTP1ConnectionParameters(
            chunk_size=_CHUNK_SIZE,
            max_header_size=limits.max_header,
            max_body_size=_UNLIMITED,  # the exchange counts, because it can answer 413
        )
        stream.max_head, stream.linger_s = limits.max_header, limits.linger_s
        connection = Connection(stream, str(address[0]), self._server.is_admin, self._server.connections)
        if not self._server.connections.add(connection):
            stream.close()
        elif isinstance(stream, AnsweringTlsStream):
            serving = self._serve_after_handshake(stream, connection, params)
            task = asyncio.get_running_loop().create_task(serving)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._serve(connection, params)

    def _open(self, accepted: socket.socket) -> AnsweringStream | None:
        try:
            if self.tls is None:
                return AnsweringStream(accepted, max_buffer_size=_BUFFER_SIZE, read_chunk_size=_READ_SIZE)
            wrapped = ssl_wrap_socket(accepted, self.tls, server_side=True, do_handshake_on_connect=False)
            stream = AnsweringTlsStream(wrapped, max_buffer_size=_BUFFER_SIZE, read_chunk_size=_READ_SIZE)
            stream.pace = self._pace
            return stream
        except OSError:  # the peer is gone already
            accepted.close()
            return None

    async def _serve_after_handshake(
        self, stream: AnsweringTlsStream, connection: Connection, params: HTTP1ConnectionParameters
    ) -> None:
        if await self._handshake(stream, connection.address):
            connection.caller()
            self._server.connections.recognise(connection)
            self._serve(connection, params)
        else:
            stream.close()
            self._server.connections.remove(connection)

    def _serve(self, connection: Connection, params: HTTP1ConnectionParameters) -> None:
        connection.await_head(self._server.limits.header_timeout_s)
        HTTP1ServerConnection(connection.stream, params, connection).start_serving(self._server)

    async def _handshake(self, stream: AnsweringTlsStream, address: str) -> bool:
        tls = self.tls
        try:
            async with asyncio.timeout(self._server.limits.handshake_timeout_s):
                await stream.wait_for_handshake()
        except OSError as error:  # as are TimeoutError, ssl.SSLError and StreamClosedError
            self._failures.failed(tls, address, error)
            return False
        return not self._server.draining


@contextmanager
def _explained(address: str, port: int) -> Iterator[None]:
    """Turns what keeps a port from being bound into a ConfigError."""
    try:
        yield
    except (OSError, OverflowError, UnicodeError) as error:
        reason = _reason(error)
        raise ConfigError(f"cannot listen on {address}:{port}: {reason}") from error


def _reason(error: OSError | OverflowError | UnicodeError) -> str:
    if isinstance(error, socket.gaierror):  # its numbers mean nothing to os.strerror
        return f"{error.strerror or 'the name is not known'}; give an address of this machine"
    # Python's own text repeats the address.
    number = getattr(error, "errno", None) or 0
    return os.strerror(number) if number > 0 else str(error)


def _bind(address: str, port: int, *, reuse_port: bool, listen: bool = True) -> list[socket.socket]:
    """Sockets for every address that a host name has, all on the same port."""
    sockets: list[socket.socket] = []
    with ExitStack() as opened:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, place in dict.fromkeys(found):
            bound = (place[0], sockets[0].getsockname()[1], *place[2:]) if sockets else place
            made = _socket(bound, family, reuse_port=reuse_port)
            opened.callback(made.close)
            if listen:
                made.listen(_BACKLOG)
            sockets.append(made)
        opened.pop_all()
    return sockets


def _socket(address: tuple[Any, ...], family: int, *, reuse_port: bool) -> socket.socket:
    """A bound socket that does not listen yet: connections go to those that do."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def _caps(limits: ServerLimits) -> Caps:
    """What the limits allow, as far as there are file descriptors; administrators have a part of these."""
    affordable = _affordable_connections()
    administrators = min(limits.max_admin_connections, affordable // 4)
    return Caps(
        per_address=limits.max_connections_per_address,
        per_network=limits.max_connections_per_network,
        strangers=min(limits.max_connections, affordable - administrators),
        administrators=administrators,
    )


def _affordable_connections() -> int:
    """How many connections the process's file descriptors leave room for."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _UNLIMITED if descriptors == resource.RLIM_INFINITY else max(16, descriptors - _SPARE_DESCRIPTORS)
