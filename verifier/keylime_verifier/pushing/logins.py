"""How agents that attest by themselves get tokens: a challenge, and the proof that they hold their AK."""

import logging
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from msgspec.structs import replace

from keylime.errors import KeylimeError
from keylime.identifiers import AgentId
from keylime.messages.push_session import ProofData
from keylime_verifier.polling.meter import Meter
from keylime_verifier.polling.store import AgentStore
from keylime_verifier.pushing.session_store import SessionStore
from keylime_verifier.pushing.sessions import (
    ACTIVE,
    CHALLENGE_SIZE,
    CLOCK_SLACK_S,
    PENDING,
    SALT_SIZE,
    SECRET_SIZE,
    ProofRefused,
    PushSession,
    SessionLimits,
    check_proof,
    key_hash,
    make_token,
    parse_session_id,
)

log = logging.getLogger("keylime.verifier")


class TooManySessions(KeylimeError):
    """Too many sessions were begun and not proven; the next may be in `wait_s` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("too many sessions were begun and not proven")
        self.wait_s = wait_s


class UnknownSession(KeylimeError):
    """There is no session with this id that waits for its proof."""


class OtherAgent(KeylimeError):
    """The session is another agent's."""


class Fault(Enum):
    """Why a proof gives no token."""

    EXPIRED = auto()
    UNKNOWN_AGENT = auto()
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class LoginOutcome:
    """What came of a proof: a token, which nobody but the agent is told, or a fault."""

    session: PushSession
    received_at: float
    token: str | None = None
    fault: Fault | None = None

    def __repr__(self) -> str:
        return f"Proven({self.session!r}, {self.fault})"


class Logins:
    """Sessions, whoever has begun them."""

    def __init__(
        self,
        sessions: SessionStore,
        agents: AgentStore,
        limits: SessionLimits,
        meter: Meter,
        *,
        now: Callable[[], float],
    ) -> None:
        self._sessions = sessions
        self._agents = agents
        self._limits = limits
        self._meter = meter
        self._now = now

    def expiry_of(self, session: PushSession) -> float:
        """Until when a challenge may be answered."""
        return session.created_at + self._limits.challenge_s

    async def begin(self, agent_id: AgentId, prefixes: tuple[str, ...]) -> PushSession:
        """A session with a fresh challenge, whether the agent is known or not. Raises TooManySessions."""
        now = self._now()
        session = PushSession(
            session_id=str(uuid.uuid4()),
            agent_id=agent_id,
            state=PENDING,
            challenge=secrets.token_bytes(CHALLENGE_SIZE),
            created_at=now,
            address=prefixes[0],
            network=prefixes[-1],
        )
        if (too_many := await self._sessions.begin(session, now)) is not None:
            self._meter.session("limited")
            raise TooManySessions(too_many.wait_s)
        self._meter.session("begun")
        return session

    async def prove(self, session_id: str, agent_id: AgentId, proof: ProofData) -> LoginOutcome:
        """What comes of a proof; the challenge is over then.

        Raises UnknownSession and OtherAgent, and keeps it then.
        """
        session = await self._sessions.find(session_id) if parse_session_id(session_id) else None
        if session is None or session.state != PENDING:
            raise UnknownSession("Session not found")
        if session.agent_id != agent_id:
            raise OtherAgent("Agent ID mismatch")
        now = self._now()
        if not session.created_at - CLOCK_SLACK_S <= now < self.expiry_of(session):
            return await self._failed(session, now, Fault.EXPIRED)
        record = await self._agents.find(agent_id)
        if record is None or not record.enrolment.is_pushing:
            return await self._failed(session, now, Fault.UNKNOWN_AGENT)
        try:
            check_proof(proof, session.challenge, record.enrolment)
        except ProofRefused as error:
            log.warning("agent %s: the proof that it holds its AK is refused: %s", agent_id, error)
            return await self._failed(session, now, Fault.REFUSED)
        token, stored = make_token(
            session.session_id, secrets.token_urlsafe(SECRET_SIZE), secrets.token_bytes(SALT_SIZE)
        )
        expires_at = now + self._limits.token_s
        ak_tpm = record.enrolment.ak_tpm
        if not await self._sessions.prove(session, stored, key_hash(ak_tpm), expires_at, ak_tpm):
            raise UnknownSession("Session not found")
        self._meter.session("proven")
        log.info("agent %s: has proven that it holds its AK, and has a new token", agent_id)
        return LoginOutcome(replace(session, state=ACTIVE, token_expires_at=expires_at), now, token.text)

    async def _failed(self, session: PushSession, now: float, fault: Fault) -> LoginOutcome:
        if not await self._sessions.fail(session.session_id):
            raise UnknownSession("Session not found")
        self._meter.session("failed")
        return LoginOutcome(session, now, fault=fault)
