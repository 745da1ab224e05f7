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
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError
from tornado.tcpserver import TCPServer

from keylime.errors import ConfigError
from keylime.http.callers import administrator
from keylime.http.connections import AdminRule, Connection, ConnectionTable
from keylime.http.exchange import Caller, HttpError, Request, Response, Role
from keylime.http.routing import Route, Router, Unrouted, method_not_allowed, not_found
from keylime.http.serving import Exchange, Limits
from keylime.messages.versions import SUPPORTED_VERSIONS

__all__ = [
    "Caller",
    "HttpError",
    "Limits",
    "Request",
    "Response",
    "Role",
    "Route",
    "Server",
    "administrator",
    "method_not_allowed",
    "not_found",
    "reserved_port",
]

_CHUNK_SIZE = 64 << 10
_BUFFER_SIZE = 1 << 20
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


class Server(HTTPServerConnectionDelegate):
    """Serves a table of routes on one or more ports. A path that is not in the table does not exist."""

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        limits: Limits | None = None,
        is_admin: AdminRule = administrator,
        unrouted: Unrouted = not_found,
        wrong_method: Unrouted = method_not_allowed,
        versions: Sequence[str] = SUPPORTED_VERSIONS,
    ) -> None:
        self.limits = limits or Limits()
        self.router = Router(routes, versions=versions, unrouted=unrouted, wrong_method=wrong_method)
        self.is_admin = is_admin
        self.draining = False
        self.exchanges: set[Exchange] = set()
        self.connections = ConnectionTable(
            per_address=self.limits.max_connections_per_address,
            total=min(self.limits.max_connections, _affordable_connections()),
        )
        self._listeners: list[_Listener] = []

    def listen(
        self, address: str, port: int, tls: ssl.SSLContext | None = None, *, reuse_port: bool = False
    ) -> int:
        """Starts accepting on `address`; the port bound, which differs from `port` only when that is 0.

        Raises ConfigError when the address cannot be had, for instance because the port is in use.
        """
        with _explained(address, port):
            sockets = _bind(address, port, reuse_port=reuse_port)
        listener = _Listener(self, tls)
        listener.add_sockets(sockets)
        self._listeners.append(listener)
        return int(sockets[0].getsockname()[1])

    def renew(self, *, tls: ssl.SSLContext | None, max_body: int) -> None:
        """Takes new certificates and a new limit, in bytes, from now on; no request is cut off.

        `tls` None leaves the certificates, and a plain port stays one. Connections that are open answer one
        request more at most: the next one comes with a new handshake.
        """
        self.limits = replace(self.limits, max_body=max_body)
        for listener in self._listeners:
            if listener.ssl_options is not None and tls is not None:
                listener.ssl_options = tls  # tornado looks at it once for each connection
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


class _Listener(TCPServer):
    """Accepts the connections of one port; each handshake runs on its own, under a deadline."""

    def __init__(self, server: Server, tls: ssl.SSLContext | None) -> None:
        super().__init__(ssl_options=tls, max_buffer_size=_BUFFER_SIZE, read_chunk_size=_CHUNK_SIZE)
        self._server = server

    async def handle_stream(self, stream: IOStream, address: tuple[object, ...]) -> None:
        """Takes a new connection up (called by tornado)."""
        limits = self._server.limits
        params = HTTP1ConnectionParameters(
            chunk_size=_CHUNK_SIZE,
            max_header_size=limits.max_header,
            header_timeout=limits.header_timeout_s,
            max_body_size=_UNLIMITED,  # the exchange counts, because it can answer 413
            body_timeout=limits.body_timeout_s,
        )
        table = self._server.connections
        connection = Connection(stream, str(address[0]), params, self._server.is_admin, table)
        if not table.add(connection):
            stream.close()
            return
        if isinstance(stream, SSLIOStream) and not await self._handshake(stream):
            stream.close()
            table.remove(connection)
            return
        HTTP1ServerConnection(stream, params, connection).start_serving(self._server)

    async def _handshake(self, stream: SSLIOStream) -> bool:
        try:
            async with asyncio.timeout(self._server.limits.handshake_timeout_s):
                await stream.wait_for_handshake()
        except (TimeoutError, StreamClosedError, OSError):  # ssl.SSLError is an OSError
            return False
        return not self._server.draining


@contextmanager
def _explained(address: str, port: int) -> Iterator[None]:
    """Turns what keeps a port from being bound into a ConfigError."""
    try:
        yield
    except (OSError, OverflowError, UnicodeError) as error:
        # Python's own text repeats the address.
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else str(error)
        raise ConfigError(f"cannot listen on {address}:{port}: {reason}") from error


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


def _affordable_connections() -> int:
    """How many connections the process's file descriptors leave room for."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _UNLIMITED if descriptors == resource.RLIM_INFINITY else max(16, descriptors - _SPARE_DESCRIPTORS)
