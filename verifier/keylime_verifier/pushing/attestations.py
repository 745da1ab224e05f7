"""Attestations of agents that attest by themselves: negotiated, received, shown. One method for each call."""

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

from keylime.errors import KeylimeError, ServiceUnavailable
from keylime.identifiers import AgentId
from keylime.messages.push_attestation import RESOURCE_TYPE
from keylime.messages.push_document import ReceivedResource
from keylime.messages.verifier import OperationalState
from keylime_verifier.agents.pushing import AttestationLimits
from keylime_verifier.agents.records import AgentRecord
from keylime_verifier.polling.rows import UnreadableRecord
from keylime_verifier.pushing.attestation_rows import (
    AWAITING,
    COMPLETE,
    EVALUATING,
    MAX_ITEMS_SIZE,
    Attestation,
    encode_items,
)
from keylime_verifier.pushing.attestation_store import AttestationStore
from keylime_verifier.pushing.collected import read_evidence
from keylime_verifier.pushing.judging import Judging, ReceivedEvidence, TooMuchEvidence
from keylime_verifier.pushing.kept_references import KeptReferences
from keylime_verifier.pushing.known_agents import CallingAgent
from keylime_verifier.pushing.negotiation import EVIDENCE, choose, read_offer
from keylime_verifier.pushing.problems import Problem, Unacceptable, problem
from keylime_verifier.pushing.sessions import (
    CHALLENGE_SIZE,
    CLOCK_SLACK_S,
    Token,
    TokenFault,
    judge_token,
    key_hash,
    read_token,
)

log = logging.getLogger("keylime.verifier")

_BUSY_S = 5.0

ResultT = TypeVar("ResultT")


class Unauthenticated(KeylimeError):
    """The token is not one that counts; the text is for the agent."""

    def __init__(self, fault: TokenFault) -> None:
        super().__init__(fault)


class NotTheOwner(KeylimeError):
    """The token is another agent's."""


class PushRefused(KeylimeError):
    """An attestation is refused, with status, code and sentence of API 3.0, and perhaps when to come back."""

    def __init__(
        self, status: int, code: str, detail: str, *problems: Problem, retry_after_s: float | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.problems = problems
        self.retry_after_s = retry_after_s


class Attestations:
    """The attestations of all verifiers that share the database."""

    def __init__(
        self,
        store: AttestationStore,
        references: KeptReferences,
        judging: Judging,
        limits: AttestationLimits,
        *,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._references = references
        self._judging = judging
        self._limits = limits
        self._now = now

    async def whose(self, token_text: str) -> AgentId:
        """Whose token it is. Raises Unauthenticated."""
        agent_id = await self._store.agent_of(_token(token_text).session_id)
        await self.authenticate(agent_id, token_text)
        return agent_id

    async def attended(
        self,
        agent_id: AgentId,
        token_text: str,
        act: Callable[[CallingAgent, bool], Awaitable[ResultT]],
        is_done: Callable[[ResultT], bool],
    ) -> ResultT:
        """What comes of `act` for the agent `agent_id`, which shows a token.

        It is tried with what is remembered of the agent. Only what has come of that and `is_done` counts,
        because it was looked at when it was written; else all is read, and nothing remembered is used.

        Raises Unauthenticated, NotTheOwner, PushRefused, and what `act` raises.
        """
        remembered = self._recognised(agent_id, token_text)
        if remembered is not None:
            try:
                done = await act(remembered, True)
                if is_done(done):
                    return done
            except ServiceUnavailable:  # something may have been done
                raise
            except KeylimeError as error:  # which may be about what is not so any more
                log.debug("agent %s: what is remembered of it was of no use: %s", agent_id, error)
        return await act(await self.authenticate(agent_id, token_text), False)

    def _recognised(self, agent_id: AgentId, token_text: str) -> CallingAgent | None:
        """What is remembered of the agent, if that would let it in."""
        token, remembered = read_token(token_text), self._store.remembered(agent_id)
        if token is None or remembered is None or remembered.session is None or remembered.record is None:
            return None
        if remembered.session.session_id != token.session_id:
            return None
        try:
            _demand_own(agent_id, remembered, token, self._now())
        except (Unauthenticated, NotTheOwner):
            return None
        return remembered

    async def authenticate(self, agent_id: AgentId, token_text: str) -> CallingAgent:
        """What is known of the agent `agent_id`, which shows a token.

        Raises Unauthenticated, NotTheOwner and PushRefused.
        """
        token = _token(token_text)
        try:
            found = await self._store.look(agent_id, token.session_id)
        except UnreadableRecord as error:
            raise PushRefused(503, "unavailable", str(error), retry_after_s=_BUSY_S) from error
        _demand_own(agent_id, found, token, self._now())
        log.debug("Authentication token validated for agent '%s'", agent_id)
        return found

    async def negotiate(
        self, agent_id: AgentId, found: CallingAgent, resource: ReceivedResource, *, is_remembered: bool
    ) -> Attestation:
        """A new attestation, with what is asked for.

        Raises PushRefused, and Outdated of what `is_remembered`.
        """
        record, now = _attesting(found), self._now()
        self._demand_turn(found, now)
        _demand_type(resource)
        try:
            offered = read_offer(resource.attributes)
            reference, _ = await self._references.of(record, found.policies)
            checkpoint = record.progress.checkpoint.under_policy(
                reference.runtime_policy.content_hash, reference.succeeded
            )
            chosen = choose(offered, reference, checkpoint, secrets.token_bytes(CHALLENGE_SIZE))
            if len(encode_items(chosen.items).encode()) > MAX_ITEMS_SIZE // 2:
                raise Unacceptable(problem(EVIDENCE, "has capabilities that are too long"))
        except Unacceptable as error:
            raise PushRefused(422, "invalid_resource_data", str(error), *error.problems) from error
        attestation = Attestation(
            agent_id=agent_id,
            number=found.next_number or 0,
            generation=record.generation,
            boot_time=offered.boot_time,
            received_at=now,
            expires_at=now + self._limits.challenge_s if chosen.items else None,
            items=chosen.items,
        )
        supersedes = found.latest is not None and found.latest.stage == AWAITING
        remembered = found if is_remembered else None
        if not await self._store.negotiate(attestation, remembered, supersedes=supersedes):
            raise PushRefused(409, "conflict", "Another attestation was negotiated at the same time.")
        return attestation

    def _demand_turn(self, found: CallingAgent, now: float) -> None:
        """Raises PushRefused while the one before is under way, or only just over."""
        latest = found.latest
        if latest is None or latest.evidence_at is None:
            return
        if latest.evidence_at > now + CLOCK_SLACK_S:  # of before the database's clock was set back
            return
        until = latest.evidence_at + self._limits.verdict_s
        if latest.stage == EVALUATING and now < until:
            detail = "The evidence of the last attestation is being verified."
            raise PushRefused(503, "verification_in_progress", detail, retry_after_s=until - now)
        remaining_s = self.pause_s(latest, now)
        if remaining_s > 0:
            detail = f"The next attestation is expected in {remaining_s} seconds."
            raise PushRefused(429, "premature_attestation", detail, retry_after_s=remaining_s)

    def pause_s(self, attestation: Attestation, now: float | None = None) -> int:
        """In how many seconds the next attestation is expected."""
        since = attestation.evidence_at or attestation.received_at
        moment = self._now() if now is None else now
        return max(0, round(since + self._limits.interval_s - moment))

    async def receive(
        self,
        agent_id: AgentId,
        found: CallingAgent,
        number: int | None,
        resource: ReceivedResource,
        *,
        is_remembered: bool,
    ) -> Attestation:
        """The attestation with its evidence, which is judged from now on.

        Raises PushRefused, and Outdated of what `is_remembered`.
        """
        record, now = _attesting(found), self._now()
        latest = _latest(found, number)
        if latest.stage != AWAITING:
            raise PushRefused(403, "evidence_immutable", "The attestation has its evidence already.")
        if latest.expires_at is None:
            detail = "Nothing was asked for, as no policy makes a demand of this agent."
            raise PushRefused(403, "challenges_expired", detail)
        if not latest.received_at - CLOCK_SLACK_S <= now < latest.expires_at:
            raise PushRefused(403, "challenges_expired", "The challenge of the attestation has expired.")
        _demand_type(resource)
        try:
            collected = read_evidence(resource.attributes, latest.items)
        except Unacceptable as error:
            raise PushRefused(422, "invalid_resource_data", str(error), *error.problems) from error
        try:
            room = self._judging.demand_room(collected.size)
        except TooMuchEvidence as error:
            raise PushRefused(503, "verification_in_progress", str(error), retry_after_s=_BUSY_S) from error
        try:
            # What an agent was asked before it was stopped, reactivated or changed proves nothing any more.
            is_current = latest.generation == record.generation
            stage = EVALUATING if is_current else COMPLETE
            remembered = found if is_remembered else None
            received = await self._store.receive(latest, collected.items, now, stage, remembered)
            if received is None:
                raise PushRefused(403, "evidence_immutable", "The attestation has its evidence already.")
        except BaseException:
            room.close()
            raise
        if is_current:
            evidence = ReceivedEvidence(
                record=record,
                policies=found.policies,
                number=latest.number,
                boot_time=latest.boot_time,
                collected=collected,
            )
            self._judging.begin(evidence, room)
        else:
            room.close()
        return received

    async def show(self, agent_id: AgentId, number: int | None) -> Attestation:
        """One attestation, the latest without a number. Raises PushRefused."""
        found = await self._store.of_agent(agent_id, number)
        if not found:
            raise PushRefused(404, "not_found", "There is no such attestation.")
        return found[-1]

    async def show_all(self, agent_id: AgentId) -> list[Attestation]:
        """The attestations of an agent that are kept. Raises PushRefused."""
        found = await self._store.of_agent(agent_id)
        if found is None:
            raise PushRefused(404, "not_found", f"There is no agent {agent_id} that attests by itself.")
        return found


def _token(text: str) -> Token:
    """A token as it was shown. Raises Unauthenticated for what can be none, which costs nothing."""
    token = read_token(text)
    if token is None:
        raise Unauthenticated("Invalid authentication token")
    return token


def _demand_own(agent_id: AgentId, found: CallingAgent, token: Token, now: float) -> None:
    """Raises Unauthenticated and NotTheOwner unless the token is one of the agent's."""
    session = found.session
    fault = judge_token(token, session, now)
    if session is None or fault is not None:
        raise Unauthenticated(fault or "Invalid authentication token")
    if session.agent_id != agent_id:
        raise NotTheOwner(f"Agent {session.agent_id} cannot access resource {agent_id} (ownership required)")
    if found.record is not None and session.key_hash != key_hash(found.record.enrolment.ak_tpm):
        raise Unauthenticated("Invalid authentication token")  # it was proven with another key


def _demand_type(resource: ReceivedResource) -> None:
    """Raises PushRefused for what is no attestation, as from an agent that could collect nothing."""
    if resource.type != RESOURCE_TYPE:
        raise PushRefused(400, "invalid_request", f"The resource must be of type '{RESOURCE_TYPE}'.")


def _attesting(found: CallingAgent) -> AgentRecord:
    """The record of an agent that may attest. Raises PushRefused."""
    record = found.record
    if record is None or found.next_number is None:
        raise PushRefused(404, "not_found", "There is no agent with this id that attests by itself.")
    if record.progress.operational_state is OperationalState.TENANT_FAILED:
        detail = "An operator has ended the attestation of this agent."
        raise PushRefused(403, "agent_attestations_disabled", detail)
    return record


def _latest(found: CallingAgent, number: int | None) -> Attestation:
    """The attestation that evidence is for. Raises PushRefused."""
    latest = found.latest
    if latest is None or (number is not None and number > latest.number):
        raise PushRefused(404, "not_found", "There is no such attestation.")
    if number is not None and number < latest.number:
        raise PushRefused(403, "old_attestation", "There is a later attestation.")
    return latest
