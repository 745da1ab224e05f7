"""Calls to one agent over a kept-alive, pinned connection, in the API version that both sides speak."""

import ssl

import msgspec

from keylime.appraisal.challenge import Challenge
from keylime.errors import KeylimeError, MalformedMessage, PeerRefused, PeerUnreachable
from keylime.http.client import Peer, Reply, peer_url, printable
from keylime.messages.agent import QuoteReply, VKeyRequest
from keylime.messages.envelope import parse_body
from keylime.messages.revocation import SignedRevocation
from keylime.messages.versions import (
    SUPPORTED_VERSIONS,
    VERSION_NOT_SUPPORTED,
    AgentVersions,
    negotiate,
    version_key,
)
from keylime.pki.tls import peer_pin

# Statuses after which the same request may well succeed: the agent is busy, starting or behind a proxy.
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504, 599})


# A measurement list of several hundred thousand entries is a normal answer of a busy machine.
MAX_ANSWER = 100 << 20  # bytes


class NoCommonVersion(KeylimeError):
    """The agent speaks no API version that may be used with it."""


class AgentClient:
    """One agent as the verifier talks to it. `version` may rise while it is attested, but never fall."""

    def __init__(
        self,
        ip: str,
        port: int,
        mtls_cert: str | None,
        version: str,
        tls: ssl.SSLContext,
        timeout_s: float,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        """`mtls_cert` is the registered PEM certificate, or "disabled"/None for plain HTTP."""
        pin = None if mtls_cert in (None, "", "disabled") else peer_pin(mtls_cert or "")
        self._peer = Peer(
            peer_url(ip, port, tls=pin is not None),
            tls=None if pin is None else tls,
            pin=pin,
            timeout_s=timeout_s,
            max_body=max_answer,
        )
        self.version = version
        self.is_attested = False

    async def quote(self, challenge: Challenge) -> QuoteReply:
        """The answer to `challenge`, checked for shape.

        Raises PeerUnreachable (try again), PeerRefused (do not), NoCommonVersion, MalformedMessage.
        """
        reply = await self._request("GET", "quotes/integrity", query=challenge.query)
        return parse_body(reply.results, QuoteReply)

    async def provide_v(self, encrypted_v: str) -> None:
        """Delivers the V share. Raises as `quote` does."""
        await self._request("POST", "keys/vkey", body=VKeyRequest(encrypted_v))

    async def notify(self, signed: SignedRevocation) -> None:
        """Delivers a revocation message. Raises as `quote` does."""
        await self._request("POST", "notifications/revocation", body=signed)

    async def close(self) -> None:
        """Drops the connection."""
        await self._peer.close()

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: msgspec.Struct | None = None,
    ) -> Reply:
        reply = await self._peer.request(method, f"/v{self.version}/{path}", query=query, body=body)
        if reply.code == 400 and VERSION_NOT_SUPPORTED in reply.status:
            await self._negotiate()
            reply = await self._peer.request(method, f"/v{self.version}/{path}", query=query, body=body)
        if reply.code in _TRANSIENT:
            raise PeerUnreachable(f"the agent answered {reply.code} {reply.status}")
        if not reply.is_success:
            raise PeerRefused(reply.code, reply.status)
        return reply

    async def _negotiate(self) -> None:
        """Takes the highest common version; with an attested agent only a higher one than before (N19)."""
        try:
            offered = await self._peer.fetch(AgentVersions, "GET", "/version")
        except (PeerRefused, MalformedMessage) as error:
            raise NoCommonVersion(
                f"the agent refuses version {self.version} and names no other: {error}"
            ) from error
        chosen = negotiate(offered.supported_versions or [offered.supported_version], SUPPORTED_VERSIONS)
        if chosen is None:
            names = ", ".join(offered.supported_versions or [offered.supported_version])
            raise NoCommonVersion(f"no API version in common, the agent offers {printable(names)}")
        if self.is_attested and (version_key(chosen) or (0, 0)) < (version_key(self.version) or (0, 0)):
            raise NoCommonVersion(f"an attested agent may not go back from {self.version} to {chosen}")
        self.version = chosen
