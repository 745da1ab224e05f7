"""What is asked of an agent after the handshake, before a byte of a request is sent: that it holds its key.

The certificate around the key is the agent's own affair: when it ends and when it is made anew, whoever knows
the key has lost nothing. That the peer holds the key is what the handshake has shown.
"""

import asyncio

import aiohttp

from keylime.http.objections import key_objection


class KeyMismatch(aiohttp.ServerFingerprintMismatch):
    """The peer holds another key than the pinned one."""

    def __init__(self, reason: str, host: str, port: int) -> None:
        super().__init__(b"", b"", host, port)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class KeyCheck(aiohttp.Fingerprint):
    """The check of the connections to one agent; aiohttp calls it for each, as it would compare a pin."""

    def __init__(self, pin: bytes) -> None:
        """`pin` is the SHA-256 of the SubjectPublicKeyInfo."""
        super().__init__(pin)

    def check(self, transport: asyncio.Transport) -> None:
        """Raises KeyMismatch."""
        connection = transport.get_extra_info("ssl_object")
        if connection is None:
            return
        host, port, *_ = transport.get_extra_info("peername") or ("", 0)
        if objection := key_objection(connection.getpeercert(binary_form=True) or b"", self.fingerprint):
            raise KeyMismatch(objection, host, port)
