"""Making the agent known: register with the registrar, open its credential, prove that."""

import asyncio
import base64
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from keylime.errors import (
    KeylimeError,
    MalformedEvidence,
    MalformedMessage,
    PeerRefused,
    PeerUnreachable,
    TpmError,
)
from keylime.http.client import Peer
from keylime.messages.registrar import ActivateRequest, RegisterReply, RegisterRequest
from keylime.messages.versions import SUPPORTED_VERSIONS, ServerVersions, negotiate
from keylime.tpm.credential import activation_tag, parse_credential_blob

log = logging.getLogger(__name__)

_NEWEST_FIRST = tuple(reversed(SUPPORTED_VERSIONS))
_FORBIDDEN = 403
_TOO_MANY = 429


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between attempts, in seconds, and how often to repeat what was refused."""

    initial_s: float
    max_s: float
    max_refusals: int

    def delay(self, attempt: int, spread: float) -> float:
        """The pause after failure number `attempt` (1, 2, ...), up to a tenth longer with `spread` (0 to 1).

        Agents of a fleet that start together must not come back together.
        """
        return min(self.max_s, self.initial_s * 2.0 ** min(attempt - 1, 30)) * (1 + spread / 10)


class RegistrationRefused(KeylimeError):
    """The registrar does not want this agent; asking again as we are cannot help. The agent stops."""


class Registration:
    """One agent's registration. `activate` opens a credential (id object, encrypted secret) with the TPM."""

    def __init__(
        self,
        peer: Peer,
        agent_id: str,
        request: RegisterRequest,
        activate: Callable[[bytes, bytes], Awaitable[bytes]],
        backoff: Backoff,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._peer = peer
        self._agent_id = agent_id
        self._request = request
        self._activate = activate
        self._backoff = backoff
        self._sleep = sleep

    async def run(self) -> None:
        """Come back registered and active; tries for ever while there is no registrar to answer.

        Raises RegistrationRefused at once on 403, and after the configured number of other refusals.
        """
        failures = refusals = 0
        while True:
            try:
                version = await self._register_and_activate()
            except PeerUnreachable as error:
                reason = str(error)
            except (PeerRefused, MalformedMessage, MalformedEvidence, TpmError) as error:
                refusals += not _is_passing(error)
                reason = str(error)
                if _is_final(error) or refusals > self._backoff.max_refusals:
                    raise RegistrationRefused(
                        f"registration of {self._agent_id} was refused: {reason}"
                    ) from error
            else:
                log.info("agent %s is registered and active (API version %s)", self._agent_id, version)
                return
            failures += 1
            delay = self._backoff.delay(failures, random.random())  # noqa: S311  # spreads load, keeps no secret
            log.warning("registration failed, next attempt in %.0f s: %s", delay, reason)
            await self._sleep(delay)

    async def _register_and_activate(self) -> str:
        versions = await self._versions()
        for version in versions:
            try:
                reply = await self._peer.fetch(
                    RegisterReply, "POST", f"/v{version}/agents/{self._agent_id}", body=self._request
                )
            except PeerRefused as error:
                if version != versions[-1] and _is_unknown_version(error):
                    continue
                raise
            await self._prove(version, reply)
            return version
        raise PeerRefused(404, "the registrar speaks none of the API versions of this agent")

    async def _prove(self, version: str, reply: RegisterReply) -> None:
        try:
            blob = base64.b64decode(reply.blob, validate=True)
        except ValueError as error:
            raise MalformedEvidence("the registrar's credential is not base64") from error
        secret = await self._activate(*parse_credential_blob(blob))
        body = ActivateRequest(activation_tag(secret, self._agent_id))
        await self._peer.fetch(msgspec.Raw, "PUT", f"/v{version}/agents/{self._agent_id}", body=body)

    async def _versions(self) -> tuple[str, ...]:
        """The versions to try, best first: one when the registrar says what it speaks."""
        try:
            remote = await self._peer.fetch(ServerVersions, "GET", "/version")
        except (PeerRefused, MalformedMessage):  # registrars before 2.3 have no such page
            return _NEWEST_FIRST
        if remote.current_version in SUPPORTED_VERSIONS:
            return (remote.current_version,)
        version = negotiate(remote.supported_versions)
        return () if version is None else (version,)


def _is_unknown_version(error: PeerRefused) -> bool:
    return error.code == 404 or (error.code == 400 and "version not supported" in error.status.lower())


def _is_passing(error: KeylimeError) -> bool:
    """Whether this is trouble of the registrar's own that waiting may cure."""
    return isinstance(error, PeerRefused) and (error.code >= 500 or error.code == _TOO_MANY)


def _is_final(error: KeylimeError) -> bool:
    return isinstance(error, PeerRefused) and error.code == _FORBIDDEN
