"""What the registrar does: takes registrations, activates, shows and deletes them. Knows nothing of HTTP."""

import base64
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography import x509

from keylime.errors import KeylimeError
from keylime.identifiers import AgentId
from keylime.messages.registrar import RegisteredAgent, RegisterRequest
from keylime.tpm.credential import new_challenge
from keylime_registrar.activation import AlreadyActive, Outcome, Proven, UnknownAgent, WrongTag
from keylime_registrar.identity import (
    RegistrationRefused,
    TpmIdentity,
    challenge,
    check_unchanged,
    hash_tag,
)
from keylime_registrar.store import Activation, ActiveRegistration, Store
from keylime_registrar.submission import read_submission
from keylime_registrar.throttle import Throttle

log = logging.getLogger(__name__)


class TooManyRequests(KeylimeError):
    """An address registers more often than it may; in `wait_s` seconds it may again."""

    def __init__(self, address: str, wait_s: float) -> None:
        super().__init__(f"{address} sends too many registrations and activations")
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator demands of registrations. `load_anchors` reads the TPM certificate store."""

    tpm_identity: TpmIdentity
    reject_irregular: bool
    warn_of_irregular: bool
    load_anchors: Callable[[], Sequence[x509.Certificate]]


@dataclass(frozen=True, slots=True)
class Clocks:
    """Wall clock for what is stored, and one that never runs back for rates; both in seconds."""

    wall: Callable[[], float]
    steady: Callable[[], float]


class Registrations:
    """The registrar's acts. They raise DatabaseUnavailable besides what their docstrings name."""

    def __init__(self, store: Store, rules: Rules, throttle: Throttle, clocks: Clocks) -> None:
        self._store = store
        self._rules = rules
        self._throttle = throttle
        self._clocks = clocks

    async def register(self, agent_id: AgentId, request: RegisterRequest, source: str) -> bytes:
        """The credential for an agent, which becomes active only when it answers.

        Raises RegistrationRefused, IdentityChanged, TooManyPending or TooManyRequests; an active registration
        stays what it is in any case.
        """
        self._admit(source)
        submission = read_submission(agent_id, request)
        self._report_irregular(agent_id, submission.irregular)
        registration = submission.registration
        active = await self._store.active(agent_id)
        if active is not None:
            check_unchanged(registration, active.registration)
        made = challenge(
            registration,
            submission.certification,
            demanded=self._rules.tpm_identity,
            anchors=self._rules.load_anchors() if registration.iak_cert is not None else (),
            secret=new_challenge(),
        )
        await self._store.add_pending(registration, made.tag_hash, source, self._now())
        log.info("agent %s: registration from %s waits for its proof", agent_id, source)
        return made.blob

    async def activate(self, agent_id: AgentId, tag: str, source: str) -> Outcome:
        """What came of a tag. Raises IdentityChanged, RegistrationConflict or TooManyRequests."""
        self._admit(source)
        activation = await self._store.activate(agent_id, hash_tag(tag), source, self._now())
        match activation.outcome:
            case Proven():
                _report_activation(agent_id, activation)
            case WrongTag():
                log.warning("agent %s: wrong activation tag from %s", agent_id, source)
            case AlreadyActive() | UnknownAgent():
                pass
        return activation.outcome

    async def find(self, agent_id: AgentId) -> RegisteredAgent | None:
        """The active registration of an agent, as administrators see it."""
        active = await self._store.active(agent_id)
        return None if active is None else _shown(active)

    async def is_pending(self, agent_id: AgentId) -> bool:
        """Whether a registration waits for its proof."""
        return await self._store.is_pending(agent_id, self._now())

    async def agent_ids(self) -> list[str]:
        """All ids, active or not."""
        return await self._store.agent_ids(self._now())

    async def delete(self, agent_id: AgentId, administrator: str) -> bool:
        """Forgets an agent; False when it was not known."""
        deleted = await self._store.delete(agent_id)
        if deleted:
            log.info("agent %s: deleted by %r", agent_id, administrator)
        return deleted

    def _admit(self, source: str) -> None:
        wait_s = self._throttle.wait_s(source, self._clocks.steady())
        if wait_s > 0:
            raise TooManyRequests(source, wait_s)

    def _now(self) -> int:
        return int(self._clocks.wall())

    def _report_irregular(self, agent_id: AgentId, names: Sequence[str]) -> None:
        if not names:
            return
        if self._rules.reject_irregular:
            raise RegistrationRefused(
                f"{', '.join(names)}: not strict DER, and malformed_cert_action = reject"
            )
        if self._rules.warn_of_irregular:
            log.warning("agent %s: %s not strict DER, kept as it is", agent_id, ", ".join(names))


def _report_activation(agent_id: AgentId, activation: Activation) -> None:
    log.info("agent %s is active (registration %d)", agent_id, activation.regcount)
    if activation.same_tpm:
        log.warning("agent %s has the TPM of %s as well", agent_id, ", ".join(activation.same_tpm))


def _shown(active: ActiveRegistration) -> RegisteredAgent:
    registration = active.registration
    return RegisteredAgent(
        agent_id=registration.agent_id,
        ek_tpm=_text(registration.ek_tpm),
        ekcert=None if registration.ekcert is None else _text(registration.ekcert),
        aik_tpm=_text(registration.aik_tpm),
        ip=registration.ip,
        port=registration.port,
        mtls_cert=registration.mtls_cert,
        regcount=active.regcount,
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
