"""Making the agent known: register with the registrar, open its credential, prove that."""

import asyncio
import base64
import logging
import random
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from keylime.errors import (
    ConfigError,
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
from keylime.pki.server_names import NameCheck
from keylime.pki.tls import client_context, load_trusted_certificates
from keylime.request_id import begin_errand
from keylime.safe_paths import Owners
from keylime.tpm.credential import activation_tag, parse_credential_blob
from keylime_agent.device_identity import DeviceIdentity

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


@dataclass(frozen=True, slots=True)
class RegistrarTls:
    """Who vouches for the registrar, and whether its names are compared."""

    authority: Path
    names: NameCheck

    def context(self, owners: Owners) -> ssl.SSLContext:
        """What to call it with. Raises ConfigError, also when others than `owners` may change the file."""
        context = client_context(certificate=None, key=None, trusted=())
        try:
            found = load_trusted_certificates(self.authority, owners)
        except ConfigError as error:
            raise ConfigError(f"[agent] registrar_tls_ca_cert: {error}") from error
        for certificate in found:
            context.load_verify_locations(cadata=certificate.public_bytes(Encoding.DER))
        return context


class RefusedByRegistrar(KeylimeError):
    """The registrar does not want this agent; asking again as we are cannot help. The agent stops."""


class RegistrationForbidden(RefusedByRegistrar):
    """The registrar knows the id with another TPM identity: nothing but an administrator can mend that."""


class Registrant:
    """One agent's registration. `activate` opens a credential (id object, encrypted secret) with the TPM.

    `device` is the identity that the device's maker gave it, where it is to be registered as well. One that
    `insists` goes on when it is refused: where nobody can reach a machine, nobody could start it again.
    """

    def __init__(
        self,
        peer: Peer,
        agent_id: str,
        request: RegisterRequest,
        activate: Callable[[bytes, bytes], Awaitable[bytes]],
        backoff: Backoff,
        *,
        device: DeviceIdentity | None = None,
        insists: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._peer = peer
        self._agent_id = agent_id
        self._request = request
        self._activate = activate
        self._backoff = backoff
        self._device = device
        self._insists = insists
        self._sleep = sleep

    async def run(self) -> None:
        """Come back registered and active; tries for ever while there is no registrar to answer.

        Raises RegistrationForbidden at once on 403, and RefusedByRegistrar after the configured number of
        other refusals, unless it insists.
        """
        failures = refusals = 0
        while True:
            begin_errand()  # one for registration and activation
            try:
                version = await self._register_and_activate()
            except PeerUnreachable as error:
                reason = str(error)
            except (PeerRefused, MalformedMessage, MalformedEvidence, TpmError) as error:
                refusals += not _is_passing(error)
                reason = str(error)
                if _is_final(error):
                    reason = self._remedy(reason)
                    if not self._insists:
                        raise RegistrationForbidden(reason) from error
                if not self._insists and refusals > self._backoff.max_refusals:
                    raise RefusedByRegistrar(
                        f"registration of {self._agent_id} was refused: {reason}"
                    ) from error
            else:
                log.info("agent %s is registered and active (API version %s)", self._agent_id, version)
                if self._device is not None:
                    log.info("the registrar has verified IDevID and IAK, and that the IAK vouches for the AK")
                return
            failures += 1
            delay = self._backoff.delay(failures, random.random())  # noqa: S311  # spreads load, keeps no secret
            log.warning("registration failed, next attempt in %.0f s: %s", delay, reason)
            await self._sleep(delay)

    def _remedy(self, reason: str) -> str:
        again = "" if self._insists else "; start the agent again after it (systemctl start keylime_agent)"
        return (
            f"registration of {self._agent_id} was refused: {reason}. If its TPM, agent_data.json or "
            "tpm_*_alg were changed on purpose, an administrator runs "
            f"`keylime_tenant -c regdelete -u {self._agent_id}`{again}"
        )

    async def _register_and_activate(self) -> str:
        versions = await self._versions()
        for version in versions:
            body = self._request if self._device is None else self._device.added_to(self._request, version)
            try:
                reply = await self._peer.fetch(
                    RegisterReply, "POST", f"/v{version}/agents/{self._agent_id}", body=body
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
