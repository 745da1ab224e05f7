"""What is known of agents that call, and what a process remembers of it, so that it need not be read first.

What is remembered is no truth. Whoever writes on its account looks in the same transaction whether it is so.
"""

from collections import OrderedDict
from dataclasses import dataclass, field, replace

from keylime.identifiers import AgentId
from keylime_verifier.agents.policy_categories import PolicyHashes
from keylime_verifier.agents.records import AgentRecord
from keylime_verifier.pushing.attestation_rows import COMPLETE, Attestation
from keylime_verifier.pushing.sessions import ACTIVE, PushSession
from keylime_verifier.pushing.verdict_writes import AttestationEnd

MOST_KNOWN = 10_000
"""Agents, those that came last: some ten kilobytes of each."""


@dataclass(frozen=True, slots=True)
class CallingAgent:
    """What is known of an agent that calls: its session, its record, its latest attestation.

    `next_number` is None of an agent that is not there, or does not attest by itself. The latest attestation
    has its items while it awaits evidence.
    """

    session: PushSession | None
    record: AgentRecord | None
    next_number: int | None
    latest: Attestation | None
    policies: PolicyHashes = field(default_factory=dict)  # which the agent is held to


def still_stands(remembered: CallingAgent, found: CallingAgent) -> bool:
    """Whether nothing that a request is judged by differs; a token may hold longer by now."""
    record, other = remembered.record, found.record
    if record is None or other is None:
        return False
    return (
        (record.generation, record.recalls) == (other.generation, other.recalls)
        and remembered.next_number == found.next_number
        and remembered.policies == found.policies
        and _standing(remembered.latest) == _standing(found.latest)
        and _is_same_token(remembered.session, found.session)
    )


def _standing(latest: Attestation | None) -> tuple[object, ...] | None:
    if latest is None:
        return None
    return (
        latest.number,
        latest.generation,
        latest.stage,
        latest.boot_time,
        latest.received_at,
        latest.expires_at,
        latest.evidence_at,
    )


def _is_same_token(remembered: PushSession | None, found: PushSession | None) -> bool:
    if remembered is None or found is None:
        return False
    ends, until = remembered.token_expires_at, found.token_expires_at
    if ends is None or until is None or until < ends:
        return False
    return replace(found, token_expires_at=ends) == remembered


class KnownAgents:
    """By their ids; those that have not come for longest make room."""

    def __init__(self, most: int = MOST_KNOWN) -> None:
        self._most = most
        self._known: OrderedDict[AgentId, CallingAgent] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, agent_id: AgentId) -> CallingAgent | None:
        """What is remembered of an agent."""
        return self._known.get(agent_id)

    def seen(self, found: CallingAgent) -> None:
        """What was read of an agent that showed a session of its own; others say nothing of who will call."""
        session = found.session
        if found.record is None or session is None or session.state != ACTIVE:
            return
        if session.agent_id != found.record.agent_id:
            return
        self._known[found.record.agent_id] = found
        self._known.move_to_end(found.record.agent_id)
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def forget(self, agent_id: AgentId) -> None:
        """What was remembered of an agent is not so."""
        self._known.pop(agent_id, None)

    def negotiated(self, attestation: Attestation) -> None:
        """An attestation was stored that awaits its evidence."""
        if known := self._known.get(AgentId(attestation.agent_id)):
            self.seen(replace(known, next_number=attestation.number + 1, latest=attestation))

    def received(self, attestation: Attestation) -> None:
        """Its evidence was."""
        if known := self._known.get(AgentId(attestation.agent_id)):
            self.seen(replace(known, latest=replace(attestation, items=())))

    def judged(self, record: AgentRecord, end: AttestationEnd | None) -> None:
        """And what came of that, or of silence: `record` is stored now."""
        known = self._known.get(record.agent_id)
        if known is None:
            return
        latest, session = known.latest, known.session
        if end is not None and latest is not None and latest.number == end.number:
            latest = replace(latest, stage=COMPLETE, evaluation=end.evaluation, completed_at=end.at)
        until = None if end is None else end.token_until
        if until is not None and session is not None and (session.token_expires_at or until) < until:
            session = replace(session, token_expires_at=until)
        self._known[record.agent_id] = replace(known, record=record, latest=latest, session=session)
