"""Why a peer could not be reached, with the certificate to blame where it is one."""

import asyncio
import os
import re
import socket
import ssl
import sys
from datetime import UTC, datetime
from urllib.parse import urlsplit

from keylime.errors import CredentialError, OwnCertificateFailed, PeerUnreachable
from keylime.http.peer_text import printable
from keylime.pki.certificates import parse_certificate
from keylime.pki.lifetimes import Lifetime
from keylime.pki.tls import TlsContext
from keylime.pki.tls_failures import Side, explain, is_about_dates, own_fault

_SOURCE_LINE = re.compile(r" \(_ssl\.c:[0-9]+\)")
_ASK_LIMIT_S = 3.0


class ConnectFailed(Exception):
    """A connection could not be made, or its TLS handshake failed."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


async def unreachable(place: str, url: str, tls: ssl.SSLContext | None, error: Exception) -> PeerUnreachable:
    """The error to raise: OwnCertificateFailed when it is our certificate that has ended.

    `place` is what the peer at `url` is called. It is asked for its certificate when the dates are the cause.
    """
    reason = reason_of(error)
    if not isinstance(tls, TlsContext) or not _has_connected(error):
        return PeerUnreachable(f"{place}: {reason}")
    side, now = Side(tls.own, tls.trusted), datetime.now(UTC)
    if (fault := own_fault(reason, tls.own, now)) is not None:
        return OwnCertificateFailed(f"{place}: {reason}: {fault}")
    peer = await _lifetime_of(url) if is_about_dates(reason) else None
    said = explain(reason, side, now, peer)
    problem = PeerUnreachable(f"{place}: {reason}" + ("" if said is None else f": {said}"))
    problem.is_explained = said is not None
    return problem


def reason_of(error: Exception) -> str:
    """The error in words fit for a log, without the place in the library's sources that OpenSSL's have."""
    return _SOURCE_LINE.sub("", _reason_of(error))


# Whoever has not imported aiohttp cannot have its errors, and shall not pay for knowing them.
_LIBRARY = "aiohttp"


def _reason_of(error: Exception) -> str:
    if isinstance(error, ConnectFailed):
        return f"cannot connect: {printable(_system_reason(error.cause))}"
    if (aiohttp := sys.modules.get(_LIBRARY)) is not None:
        if isinstance(error, aiohttp.ServerFingerprintMismatch):
            return printable(str(getattr(error, "reason", "the certificate is not the pinned one")))
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return f"cannot connect: {printable(str(error.certificate_error))}"
        if isinstance(error, aiohttp.ClientConnectorError):
            return f"cannot connect: {printable(_system_reason(error.os_error))}"
        # Its text has the whole URL, whose path and query may be a secret, and a status that nobody has sent.
        if isinstance(error, aiohttp.ClientResponseError):
            return printable(error.message or type(error).__name__)
    return printable(str(error) or type(error).__name__)


def _has_connected(error: Exception) -> bool:
    """Whether somebody was there to speak TLS with, and not refused by us for another certificate."""
    if isinstance(error, ConnectFailed):
        return isinstance(error.cause, ssl.SSLError)
    if (aiohttp := sys.modules.get(_LIBRARY)) is None:
        return True
    if isinstance(error, aiohttp.ServerFingerprintMismatch):  # WrongServer, too
        return False
    return isinstance(error, aiohttp.ClientSSLError) or not isinstance(error, aiohttp.ClientConnectorError)


def _system_reason(error: OSError) -> str:
    """The system's words; errors of TLS and of name resolution have numbers of their own kind."""
    if isinstance(error, socket.gaierror) and error.strerror:
        return error.strerror
    number = 0 if isinstance(error, ssl.SSLError) else error.errno or 0
    return os.strerror(number) if number > 0 else str(error) or "the connection was closed"


async def speaks_plain_http(host: str, port: int) -> bool:
    """Whether whoever hung up on TLS answers a question in the clear. It is told nothing."""
    try:
        async with asyncio.timeout(_ASK_LIMIT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /version HTTP/1.0\r\n\r\n")
                return (await reader.read(5)).startswith(b"HTTP/")
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError):
        return False


async def _lifetime_of(url: str) -> Lifetime | None:
    """The dates of the certificate that the server at `url` shows, which is trusted with nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    address = urlsplit(url)
    try:
        async with asyncio.timeout(_ASK_LIMIT_S):
            _, writer = await asyncio.open_connection(address.hostname, address.port or 443, ssl=context)
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            writer.transport.abort()
        return Lifetime.of(parse_certificate(shown or b""))
    except (OSError, TimeoutError, CredentialError):
        return None
