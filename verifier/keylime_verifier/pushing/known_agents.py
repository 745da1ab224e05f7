"""What is known of agents that call, and what a process remembers of it, so that it need not be read first.

What is remembered is no truth. Whoever writes on its account looks in the same transaction whether it is so.
"""

from collections import OrderedDict

import msgspec
from msgspec.structs import replace

from keylime.identifiers import AgentId
from keylime_verifier.agents.policy_categories import PolicyHashes
from keylime_verifier.agents.records import AgentRecord
from keylime_verifier.pushing.attestation_rows import COMPLETE, Attestation, decode_items, encode_items
from keylime_verifier.pushing.sessions import ACTIVE, PushSession
from keylime_verifier.pushing.verdict_writes import AttestationEnd

MOST_KNOWN = 10_000
"""Agents, those that came last."""
MOST_BYTES = 64 * 2**20
"""What they may take together; some five kilobytes each."""
_MOST_OF_ONE = 2**18
_SMALLEST = 1500  # an agent without its record and what it is asked for
_A_POLICY = 300


class CallingAgent(msgspec.Struct, frozen=True):
    """What is known of an agent that calls: its session, its record, its latest attestation.

    `next_number` is None of an agent that is not there, or does not attest by itself. The latest attestation
    has its items while it awaits evidence.
    """

    session: PushSession | None
    record: AgentRecord | None
    next_number: int | None
    latest: Attestation | None
    policies: PolicyHashes = msgspec.field(default_factory=dict)  # which the agent is held to


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


class _Known(msgspec.Struct, frozen=True):
    found: CallingAgent  # its latest attestation has no items
    items: str  # those, as they are stored, which is a fraction of what they take when they are read
    record_size: int  # bytes

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _SMALLEST + _A_POLICY * len(self.found.policies) + self.record_size + len(self.items)


class KnownAgents:
    """By their ids; those that have not come for longest make room. Whoever takes a lot is not remembered."""

    def __init__(self, most: int = MOST_KNOWN, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._known: OrderedDict[AgentId, _Known] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    @property
    def size(self) -> int:
        """About how many bytes all of it takes."""
        return self._bytes

    def get(self, agent_id: AgentId) -> CallingAgent | None:
        """What is remembered of an agent."""
        known = self._known.get(agent_id)
        if known is None:
            return None
        latest = known.found.latest
        if latest is None or not known.items:
            return known.found
        return replace(known.found, latest=replace(latest, items=decode_items(known.items)))

    def seen(self, found: CallingAgent) -> None:
        """What was read of an agent that showed a session of its own; others say nothing of who will call."""
        session, latest = found.session, found.latest
        if found.record is None or session is None or session.state != ACTIVE:
            return
        if session.agent_id != found.record.agent_id:
            return
        if latest is None or not latest.items:
            self._keep(found.record, found, "")
        else:
            self._keep(found.record, *_without_items(found, latest))

    def _keep(self, record: AgentRecord, found: CallingAgent, items: str) -> None:
        agent_id = record.agent_id
        before = self._known.get(agent_id)
        if before is not None and before.found.record is record:
            record_size = before.record_size
        else:
            record_size = 2 * len(msgspec.json.encode(record))
        self.forget(agent_id)
        known = _Known(found, items, record_size)
        if known.size > _MOST_OF_ONE:
            return
        self._known[agent_id] = known
        self._bytes += known.size
        while len(self._known) > self._most or self._bytes > self._most_bytes:
            self._bytes -= self._known.popitem(last=False)[1].size

    def forget(self, agent_id: AgentId) -> None:
        """What was remembered of an agent is not so."""
        known = self._known.pop(agent_id, None)
        if known is not None:
            self._bytes -= known.size

    def negotiated(self, attestation: Attestation) -> None:
        """An attestation was stored that awaits its evidence."""
        known = self._known.get(AgentId(attestation.agent_id))
        if known is not None and known.found.record is not None:
            found = replace(known.found, next_number=attestation.number + 1)
            self._keep(known.found.record, *_without_items(found, attestation))

    def received(self, attestation: Attestation) -> None:
        """Its evidence was."""
        known = self._known.get(AgentId(attestation.agent_id))
        if known is not None and known.found.record is not None:
            latest = replace(attestation, items=())
            self._keep(known.found.record, replace(known.found, latest=latest), "")

    def judged(self, record: AgentRecord, end: AttestationEnd | None) -> None:
        """And what came of that, or of silence: `record` is stored now."""
        known = self._known.get(record.agent_id)
        if known is None:
            return
        latest, session = known.found.latest, known.found.session
        if end is not None and latest is not None and latest.number == end.number:
            latest = replace(latest, stage=COMPLETE, evaluation=end.evaluation, completed_at=end.at)
        until = None if end is None else end.token_until
        if until is not None and session is not None and (session.token_expires_at or until) < until:
            session = replace(session, token_expires_at=until)
        found = replace(known.found, record=record, latest=latest, session=session)
        self._keep(record, found, known.items)


def _without_items(found: CallingAgent, latest: Attestation) -> tuple[CallingAgent, str]:
    return replace(found, latest=replace(latest, items=())), encode_items(latest.items)
