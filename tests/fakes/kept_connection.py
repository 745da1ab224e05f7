"""A client that keeps its connection: requests on an open socket, and what servers show in handshakes."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography import x509

_GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"


@contextmanager
def connected(port: int, tls: ssl.SSLContext | None = None) -> Iterator[socket.socket]:
    """A connection to a port of this machine, over TLS with a context."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
        if tls is None:
            yield plain
        else:
            with tls.wrap_socket(plain) as secure:
                yield secure


def ask(connection: socket.socket, path: str = "/version") -> tuple[int, dict[str, str], str]:
    """Status, headers and body of a GET on an open connection."""
    connection.sendall(_GET % path.encode())
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += _receive(connection)
    return int(first.split()[1]), headers, body.decode()


def _receive(connection: socket.socket) -> bytes:
    chunk = connection.recv(65536)
    if not chunk:
        raise ConnectionResetError("closed before the answer was complete")
    return chunk


def certificate_of(port: int) -> x509.Certificate:
    """The certificate that a new connection is shown."""
    return x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port)).encode())
