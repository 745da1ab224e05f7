"""Calls to one agent over a kept-alive, pinned connection, in the API version that both sides speak."""

import asyncio
import contextlib
import os
import ssl

import msgspec

from keylime.appraisal.challenge import Challenge
from keylime.appraisal.evidence import AgentAnswer
from keylime.errors import KeylimeError, MalformedMessage, PeerRefused, PeerUnreachable, UnusableAnswer
from keylime.http.agent_connection import AgentConnection
from keylime.http.peer_text import printable
from keylime.http.replies import Admit, Reply
from keylime.messages.agent import VKeyRequest
from keylime.messages.revocation import SignedRevocation
from keylime.messages.versions import (
    SUPPORTED_VERSIONS,
    VERSION_NOT_SUPPORTED,
    AgentVersions,
    negotiate,
    version_key,
)
from keylime.pki.agent_certificate import PinnedKey, read_agent_tls

# Statuses after which the same request may well succeed: the agent is busy, starting or behind a proxy.
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504, 599})


# A measurement list of several hundred thousand entries is a normal answer of a busy machine.
MAX_ANSWER = 100 << 20  # bytes
# Everything but measurement lists is small.
_MAX_OTHER_ANSWER = 64 << 10


# Agents of the Rust line, which are known by a quote without a boot time, end only when nobody is connected
# any more, or after half a minute: a connection to one must not be what a machine's shutdown waits for.
# Others drop what is idle when they stop, and are spared the handshakes.
_IDLE_AT_MOST_S = 5.0
_LIFE_S = 10.0
_PROBE_S = 3.0
_KEEP_ALIVE_S = 60.0  # a connection that is idle for longer is not worth its memory


class NoCommonVersion(KeylimeError):
    """The agent speaks no API version that may be used with it; `offered` is an older one than it had."""

    def __init__(self, reason: str, offered: str | None = None) -> None:
        super().__init__(reason)
        self.offered = offered


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
        *,
        interval_s: float,
    ) -> None:
        """`mtls_cert` is a certificate (PEM) with the agent's key, or "disabled"/None for plain HTTP.

        It is the one that was registered when the agent was added or last updated; the agent may have made
        another one for its key since, and neither has to be valid today. `interval_s` is how often it is
        asked: a connection that would be idle for long is not kept where that disturbs the agent.
        """
        tls_of_agent = read_agent_tls(mtls_cert)
        pin = tls_of_agent.pin if isinstance(tls_of_agent, PinnedKey) else None
        self._peer = AgentConnection(
            ip,
            port,
            tls=None if pin is None else tls,
            pin=pin,
            timeout_s=timeout_s,
            max_body=_MAX_OTHER_ANSWER,
            keeps_alive=interval_s <= _KEEP_ALIVE_S,
        )
        self._ip, self._port = ip, port
        self._probe_limit_s = min(_PROBE_S, timeout_s)
        self.life_s = _LIFE_S if interval_s < _IDLE_AT_MOST_S else 0.0
        self.version = version
        self.is_attested = False

    async def probe(self) -> None:
        """Returns when something listens at the agent's port. Raises PeerUnreachable after a few seconds.

        It costs neither side a handshake, and a machine that is off no whole time-out.
        """
        place = f"cannot connect to {self._ip} port {self._port}"
        try:
            async with asyncio.timeout(self._probe_limit_s):
                _, writer = await asyncio.open_connection(self._ip, self._port)
        except TimeoutError as error:
            raise PeerUnreachable(f"{place}: no answer within {self._probe_limit_s:g} s") from error
        except OSError as error:
            # Negative where a name was not found: no number of the system's.
            reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)
            raise PeerUnreachable(f"{place}: {printable(reason)}") from error
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def quote(self, challenge: Challenge, admit: Admit | None = None) -> AgentAnswer:
        """The answer to `challenge`, checked for shape. Whether it may be so long is asked of `admit`.

        Raises PeerUnreachable (try again; UnusableAnswer if it answered), PeerRefused (do not),
        NoCommonVersion, MalformedMessage, and AnswerPutOff when `admit` says no.
        """
        reply = await self._request(
            "GET", "quotes/integrity", query=challenge.query, max_body=MAX_ANSWER, admit=admit
        )
        answer = AgentAnswer.from_wire(reply.results)
        if not answer.reply.boottime:
            await self._peer.retire(self.life_s)
        return answer

    async def provide_v(self, encrypted_v: str) -> None:
        """Delivers the V share. Raises as `quote` does."""
        await self._request("POST", "keys/vkey", body=VKeyRequest(encrypted_v), is_routine=False)

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
        max_body: int | None = None,
        admit: Admit | None = None,
        # What comes of it is told elsewhere; when n machines fall, n revocations go to each of them.
        is_routine: bool = True,
    ) -> Reply:
        async def ask() -> Reply:
            return await self._peer.request(
                method,
                f"/v{self.version}/{path}",
                query=query,
                body=body,
                max_body=max_body,
                admit=admit,
                is_routine=is_routine,
            )

        reply = await ask()
        if reply.code == 400 and VERSION_NOT_SUPPORTED in reply.status:
            await self._negotiate()
            reply = await ask()
        if reply.code in _TRANSIENT:
            # It is there: whatever hinders it, also when its TPM gives no quote, is not called silence.
            raise UnusableAnswer(f"the agent answered {reply.code} {reply.status}")
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
            raise NoCommonVersion(
                f"an attested agent may not go back from {self.version} to {chosen}", chosen
            )
        self.version = chosen
