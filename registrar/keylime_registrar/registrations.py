"""What the registrar does: takes registrations, activates, shows and deletes them. Knows nothing of HTTP."""

import base64
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from keylime.database.engine import DatabaseUnavailable
from keylime.database.ledger import Entry
from keylime.http.sources import source_prefixes
from keylime.identifiers import AgentId
from keylime.messages.registrar import RegisteredAgent, RegisterRequest
from keylime.pki.der import TolerantCertificate
from keylime.tpm.sealing import make_credential
from keylime_registrar.activation import (
    AlreadyActive,
    Outcome,
    Proven,
    TooManyWrongTags,
    UnknownAgent,
    WrongTag,
)
from keylime_registrar.audit import Act, entry
from keylime_registrar.identity import (
    ChallengedTpm,
    IdentityChanged,
    IdentityDemand,
    Registration,
    RegistrationRefused,
    UnknownIssuer,
    check_unchanged,
    hash_tag,
    judge,
)
from keylime_registrar.issuers import Issuers
from keylime_registrar.refusals import TooManyRequests
from keylime_registrar.store import Activation, ActiveRegistration, Origin, Store
from keylime_registrar.submission import read_submission
from keylime_registrar.throttle import Throttle
from keylime_registrar.told_refusals import RefusedRegistration, ToldRefusals
from keylime_registrar.turns import CallTurns, TooManyWaiting

log = logging.getLogger(__name__)

_REQUEST_COST_S = 0.001  # of HTTP and the database, which is not measured for each request
_GUESSING_WAIT_S = 60.0
_QUEUE_WAIT_S = 5.0
_LONGEST_REASON = 500  # characters

Tell: TypeAlias = Callable[[Entry], Awaitable[None]]
"""Adds an event to the audit. Raises DatabaseUnavailable."""


@dataclass(frozen=True, slots=True)
class RegistrationRules:
    """What the operator demands of registrations. `load_anchors` reads the TPM certificate store."""

    tpm_identity: IdentityDemand
    reject_irregular: bool
    warn_of_irregular: bool
    load_anchors: Callable[[], Sequence[TolerantCertificate]]


@dataclass(frozen=True, slots=True)
class Clocks:
    """Wall clock for what is stored, one that never runs back for rates, and CPU time; all in seconds."""

    wall: Callable[[], float]
    steady: Callable[[], float]
    cpu: Callable[[], float] = time.thread_time


class Registrations:
    """The registrar's acts. They raise DatabaseUnavailable besides what their docstrings name."""

    def __init__(
        self,
        store: Store,
        rules: RegistrationRules,
        throttle: Throttle,
        clocks: Clocks,
        issuers: Issuers | None = None,
        tell: Tell | None = None,
    ) -> None:
        self._store = store
        self._turns = CallTurns()
        self._rules = rules
        self._throttle = throttle
        self._clocks = clocks
        self._issuers = issuers
        self._tell = tell
        self._refusals = ToldRefusals()

    async def register(self, agent_id: AgentId, request: RegisterRequest, source: str) -> bytes:
        """The credential for an agent, which becomes active only when it answers.

        Raises RegistrationRefused, IdentityChanged or TooManyRequests; an active registration stays what it
        is in any case.
        """
        async with self._turn(source) as prefixes, self._refusal_told(agent_id, prefixes):
            registration, tpm = await self._judged(agent_id, request, prefixes)
            secret = await self._store.add_pending(registration, Origin.of(prefixes), self._now())
            with self._charged(prefixes):
                blob = make_credential(tpm.ek, tpm.ak_name, secret)
        log.info("agent %s: registration from %s waits for its proof", agent_id, source)
        return blob

    async def activate(self, agent_id: AgentId, tag: str, source: str) -> Outcome:
        """What came of a tag. Raises IdentityChanged, RegistrationConflict or TooManyRequests."""
        async with self._turn(source) as prefixes, self._refusal_told(agent_id, prefixes):
            origin = Origin.of(prefixes)
            activation = await self._store.activate(agent_id, hash_tag(tag), origin, self._now())
        match activation.outcome:
            case Proven():
                _report_activation(agent_id, activation)
                await self._look_for_issuer(agent_id, prefixes)
            case WrongTag():
                log.warning("agent %s: wrong activation tag from %s", agent_id, source)
                await self._tell_refusal(agent_id, prefixes, "wrong_tag", "wrong activation tag")
            case TooManyWrongTags():
                await self._tell_refusal(agent_id, prefixes, "wrong_tag", "too many wrong activation tags")
                raise TooManyRequests(source, _GUESSING_WAIT_S, f"wrong activation tags for agent {agent_id}")
            case AlreadyActive() | UnknownAgent():
                pass
        return activation.outcome

    @asynccontextmanager
    async def _refusal_told(self, agent_id: AgentId, prefixes: tuple[str, ...]) -> AsyncIterator[None]:
        try:
            yield
        except IdentityChanged as error:
            await self._tell_refusal(agent_id, prefixes, "identity_changed", str(error))
            raise
        except RegistrationRefused as error:
            await self._tell_refusal(agent_id, prefixes, "refused", str(error))
            raise

    async def _tell_refusal(
        self, agent_id: AgentId, prefixes: tuple[str, ...], result: str, reason: str
    ) -> None:
        line = self._refusals.line(RefusedRegistration(agent_id, prefixes[-1], result), self._clocks.steady())
        if line is None or self._tell is None:
            return
        details: dict[str, Any] = {"result": result, "reason": reason[:_LONGEST_REASON]}
        details["source"] = prefixes[0]
        if line.repeated:
            details["repeated"] = line.repeated
        if line.left_off:
            details["left_off"] = line.left_off
        try:
            await self._tell(entry(Act.REGISTRATION_REFUSED, agent_id, details))
        except DatabaseUnavailable as error:
            log.debug("%s; the audit is not told", error)

    async def _look_for_issuer(self, agent_id: AgentId, prefixes: tuple[str, ...]) -> None:
        if self._issuers is None or not self._issuers.is_kept:
            return
        active = await self._store.active(agent_id)
        if active is not None:
            with self._charged(prefixes):
                self._issuers.look_at(active.registration)

    async def find(self, agent_id: AgentId) -> RegisteredAgent | None:
        """The active registration of an agent, as administrators see it."""
        active = await self._store.active(agent_id)
        return None if active is None else _shown(active)

    async def is_pending(self, agent_id: AgentId) -> bool:
        """Whether a registration waits for its proof."""
        return await self._store.is_pending(agent_id, self._now())

    async def agent_ids(self) -> list[str]:
        """The ids of all agents that have proven themselves."""
        return await self._store.agent_ids()

    async def delete(self, agent_id: AgentId, administrator: str) -> bool:
        """Forgets an agent; False when it was not known."""
        deleted = await self._store.delete(agent_id, administrator)
        if deleted:
            log.info("agent %s: deleted by %s", agent_id, administrator)
        return deleted

    async def _judged(
        self, agent_id: AgentId, request: RegisterRequest, prefixes: tuple[str, ...]
    ) -> tuple[Registration, ChallengedTpm]:
        with self._charged(prefixes):
            submission = read_submission(agent_id, request)
            self._report_irregular(agent_id, submission.certificates.irregular)
        registration = submission.registration
        has_device_identity = registration.iak_tpm is not None and registration.idevid_tpm is not None
        if has_device_identity:
            log.info("IDevID and IAK received from agent %s", agent_id)
        try:
            with self._charged(prefixes):
                tpm = judge(
                    registration,
                    submission.certificates,
                    submission.certification,
                    demanded=self._rules.tpm_identity,
                    load_anchors=self._rules.load_anchors,
                )
        except UnknownIssuer as error:
            log.error("%s (agent %s)", error, agent_id)
            await self._demand_unchanged(registration)
            raise
        except RegistrationRefused:
            await self._demand_unchanged(registration)  # which, of the two, the agent is told
            raise
        if has_device_identity:
            log.info("AIK verified with IAK of agent %s", agent_id)
        return registration, tpm

    @asynccontextmanager
    async def _turn(self, source: str) -> AsyncIterator[tuple[str, ...]]:
        """A turn for an address that may cause work: its prefixes. Raises TooManyRequests."""
        prefixes = source_prefixes(source)
        now = self._clocks.steady()
        wait_s = self._throttle.wait_s(prefixes, now)
        if wait_s > 0:
            raise TooManyRequests(source, wait_s)
        self._throttle.charge(prefixes, _REQUEST_COST_S, now)
        try:
            async with self._turns.taken(prefixes):
                yield prefixes
        except TooManyWaiting as error:
            raise TooManyRequests(source, _QUEUE_WAIT_S, "registrations and activations at once") from error

    @contextmanager
    def _charged(self, prefixes: tuple[str, ...]) -> Iterator[None]:
        """Charges what is computed meanwhile, without a pause, to a source."""
        began = self._clocks.cpu()
        try:
            yield
        finally:
            self._throttle.charge(prefixes, max(0.0, self._clocks.cpu() - began), self._clocks.steady())

    async def _demand_unchanged(self, registration: Registration) -> None:
        active = await self._store.active(registration.agent_id)
        if active is not None:
            check_unchanged(registration, active.registration)

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
    if activation.new_key is not None:
        log.warning(
            "agent %s has a new key for TLS (SHA-256 %s...), proven by its TPM: a verifier takes it up with "
            "`keylime_tenant -c update -u %s`",
            agent_id,
            activation.new_key[:16],
            agent_id,
        )
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
