"""What is asked of a server's certificate after the handshake and before a byte of a request is sent.

The chain is TLS's business, checked before. Agents are not asked: their certificate is pinned.
"""

import asyncio

import aiohttp

from keylime.http.objections import HostDemands
from keylime.pki.server_names import NameCheck


class WrongServer(aiohttp.ServerFingerprintMismatch):
    """The server's certificate is not one that it may have."""

    def __init__(self, reason: str, host: str, port: int) -> None:
        super().__init__(b"", b"", host, port)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class ServerCheck(aiohttp.Fingerprint):
    """The check of the connections to one host; aiohttp calls it for each, where it would compare a pin."""

    def __init__(self, host: str, names: NameCheck) -> None:
        super().__init__(bytes(32))  # never compared
        self._host = host
        self._names = HostDemands(host, names)

    def check(self, transport: asyncio.Transport) -> None:
        """Raises WrongServer; warns once of each certificate with other names."""
        connection = transport.get_extra_info("ssl_object")
        if connection is None:
            return
        host, port, *_ = transport.get_extra_info("peername") or (self._host, 0)
        objection = self._names.objection(connection.getpeercert(binary_form=True) or b"", port)
        if objection is not None:
            raise WrongServer(objection, host, port)
