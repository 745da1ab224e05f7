"""Connections that `keylime-setup` tries: who is there, with which certificates, and how we are seen."""

import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any

from cryptography import x509

from keylime.errors import ConfigError, CredentialError
from keylime.pki.certificates import parse_certificate
from keylime.setup.authority import authority_of

_LIMIT_S = 10.0
_PAUSE_S = 0.2


class NoWayError(ConfigError):
    """The network has no route to a host."""


def own_address_towards(host: str) -> str:
    """The address of this machine that `host` sees. Raises ConfigError when nobody is called that.

    Raises NoWayError when there is no way to it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    except socket.gaierror as error:
        raise ConfigError(
            f"{host} is neither an address nor a name that is known here: {error.strerror}"
        ) from error
    except OSError as error:
        raise NoWayError(f"there is no way from here to {host}: {error.strerror or error}") from error


def presented_chain(host: str, port: int) -> Sequence[x509.Certificate]:
    """What a TLS server presents to somebody who does not know it yet, leaf first: nothing is believed here.

    Raises ConfigError when there is none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=_LIMIT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            return [parse_certificate(der) for der in _unverified_chain(connection)]
    except CredentialError as error:
        raise ConfigError(f"what {host}:{port} presents cannot be read: {error}") from error
    except OSError as error:
        raise ConfigError(f"no TLS server answers at {host}:{port}: {error.strerror or error}") from error


def _unverified_chain(connection: ssl.SSLSocket) -> list[bytes]:
    public = getattr(connection, "get_unverified_chain", None)
    if public is not None:  # from Python 3.13 on
        return [bytes(der) for der in public()]
    inner: Any = getattr(connection, "_sslobj", None)
    return [ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in inner.get_unverified_chain() or ()]


def presented_authority(host: str, port: int) -> tuple[x509.Certificate, x509.Certificate]:
    """The certificate of a server, and that of the authority it says it has. Raises ConfigError."""
    chain = presented_chain(host, port)
    try:
        return chain[0], authority_of(chain)
    except (CredentialError, IndexError) as error:
        raise ConfigError(
            f"the server at {host}:{port}: {error}; copy its CA's certificate and name the file with --ca"
        ) from error


def demand_answer(host: str, port: int, remedy: str, *, patience_s: float = 0.0) -> None:
    """Returns when somebody accepts a connection. Raises ConfigError when that takes too long."""
    end = time.monotonic() + patience_s
    while True:
        try:
            with socket.create_connection((host, port), timeout=_LIMIT_S):
                return
        except OSError as error:
            if time.monotonic() >= end:
                raise ConfigError(
                    f"nobody answers at {host}:{port} ({error.strerror or error}); {remedy}"
                ) from error
        time.sleep(_PAUSE_S)
