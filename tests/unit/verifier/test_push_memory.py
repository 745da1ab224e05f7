"""What a process remembers of an agent that calls: it spares reading, and nobody is worse off for it."""

import asyncio
import secrets
import tracemalloc
from collections.abc import Callable
from typing import TypeVar, cast

import msgspec
import pytest
from msgspec.structs import replace

from keylime.database.engine import DatabaseUnavailable, OutcomeUnknown
from keylime.errors import KeylimeError, MalformedMessage, PolicyError
from keylime.identifiers import AgentId
from keylime.messages.push_evidence import LogCapabilities, LogParameters, ReceivedLog
from keylime_verifier.agents.pushing import AttestationLimits
from keylime_verifier.agents.records import AgentRecord, Progress
from keylime_verifier.pushing.attestation_rows import EVALUATING, Attestation
from keylime_verifier.pushing.attestation_store import AttestationStore, Outdated
from keylime_verifier.pushing.attestations import Attestations, PushRefused
from keylime_verifier.pushing.judging import Judging
from keylime_verifier.pushing.kept_references import KeptReferences
from keylime_verifier.pushing.known_agents import CallingAgent, KnownAgents
from keylime_verifier.pushing.sessions import ACTIVE, PENDING, SECRET_SIZE, PushSession, key_hash, make_token
from tests.unit.verifier.test_status import ENROLMENT

ValueT = TypeVar("ValueT")
SESSION = "01234567-89ab-4cde-8f01-23456789abcd"
TOKEN, STORED = make_token(SESSION, secrets.token_urlsafe(SECRET_SIZE), bytes(16))
RECORD = AgentRecord("first", replace(ENROLMENT, is_pushing=True), Progress(supported_version="2.6"))
AGENT_ID = RECORD.agent_id
PROVEN = PushSession(
    session_id=SESSION,
    agent_id=AGENT_ID,
    state=ACTIVE,
    challenge=bytes(16),
    created_at=1.0,
    address="203.0.113.1",
    network="203.0.113.0/24",
    key_hash=key_hash(RECORD.enrolment.ak_tpm),
    token_salt=STORED.salt,
    token_hash=STORED.digest,
    token_expires_at=1000.0,
)
REMEMBERED = CallingAgent(PROVEN, RECORD, 1, None)
FOUND = replace(REMEMBERED, record=replace(RECORD, generation="second"))


class Looked(AttestationStore):
    """A store that remembers one thing and finds another."""

    def __init__(self) -> None:
        self.looks = 0

    def remembered(self, agent_id: AgentId) -> CallingAgent | None:
        return REMEMBERED

    async def look(self, agent_id: AgentId, session_id: str) -> CallingAgent:
        self.looks += 1
        return FOUND


class Caller:
    """What is done for an agent, first with what is remembered."""

    def __init__(self, trouble: Callable[[], Exception]) -> None:
        self.store = Looked()
        self.attestations = Attestations(
            self.store,
            cast(KeptReferences, None),
            cast(Judging, None),
            AttestationLimits(interval_s=60, challenge_s=60, verdict_s=60),
            now=lambda: 10.0,
        )
        self._trouble = trouble

    async def _act(self, found: CallingAgent, is_remembered: bool) -> str:
        if is_remembered:
            assert found is REMEMBERED
            raise self._trouble()
        return "" if found.record is None else found.record.generation

    def calls(self) -> str:
        return asyncio.run(self.attestations.attended(AGENT_ID, TOKEN.text, self._act, bool))


@pytest.mark.parametrize(
    "trouble",
    [
        lambda: Outdated("it has changed"),
        lambda: PushRefused(429, "premature_attestation", "too early"),
        lambda: MalformedMessage("type: missing"),
        lambda: PolicyError("the policy text is gone from the database"),
        lambda: KeylimeError("of any other kind"),
    ],
)
def test_nobody_is_refused_by_what_is_remembered(trouble: Callable[[], Exception]) -> None:
    caller = Caller(trouble)
    assert (caller.calls(), caller.store.looks) == ("second", 1)


@pytest.mark.parametrize("kind", [DatabaseUnavailable, OutcomeUnknown])
def test_what_may_have_been_done_is_not_done_again(kind: type[DatabaseUnavailable]) -> None:
    caller = Caller(lambda: kind("away"))
    with pytest.raises(kind):
        caller.calls()
    assert caller.store.looks == 0


@pytest.mark.parametrize(
    "session",
    [
        None,
        replace(PROVEN, agent_id="another"),
        replace(PROVEN, state=PENDING, token_salt=None, token_hash=None, token_expires_at=None),
    ],
)
def test_whoever_shows_what_is_no_token_of_the_agent_changes_nothing(session: PushSession | None) -> None:
    known = KnownAgents()
    known.seen(REMEMBERED)
    known.seen(replace(FOUND, session=session))
    assert known.get(AGENT_ID) is REMEMBERED
    known.seen(FOUND)
    assert known.get(AGENT_ID) is FOUND


def test_a_stranger_crowds_nobody_out() -> None:
    known = KnownAgents(most=1)
    known.seen(REMEMBERED)
    other = replace(RECORD, enrolment=replace(RECORD.enrolment, agent_id=AgentId("other")))
    known.seen(CallingAgent(None, other, 1, None))
    assert (len(known), known.get(AGENT_ID)) == (1, REMEMBERED)


ITEM = ReceivedLog(
    evidence_type="ima_log",
    capabilities=LogCapabilities(
        entry_count=3, supports_partial_access=True, appendable=True, formats=["text/plain"]
    ),
    chosen_parameters=LogParameters(starting_offset=1, format="text/plain"),
)
AWAITED = Attestation(
    agent_id=AGENT_ID,
    number=1,
    generation="first",
    boot_time=1.0,
    received_at=2.0,
    expires_at=3.0,
    items=(ITEM,),
)


def test_what_was_asked_for_is_remembered_until_it_has_come() -> None:
    known = KnownAgents()
    known.seen(REMEMBERED)
    known.negotiated(AWAITED)
    awaiting = replace(REMEMBERED, next_number=2, latest=AWAITED)
    assert known.get(AGENT_ID) == awaiting
    known.judged(RECORD, None)
    assert known.get(AGENT_ID) == awaiting
    size = known.size
    known.received(replace(AWAITED, stage=EVALUATING))
    assert known.get(AGENT_ID) == replace(awaiting, latest=replace(AWAITED, stage=EVALUATING, items=()))
    assert known.size < size
    known.seen(awaiting)
    assert (known.get(AGENT_ID), known.size) == (awaiting, size)


def calling(number: int, metadata: str = "") -> CallingAgent:
    agent_id = AgentId(f"agent-{number}")
    enrolment = replace(RECORD.enrolment, agent_id=agent_id, meta_data=metadata)
    session = replace(PROVEN, agent_id=agent_id)
    return CallingAgent(session, replace(RECORD, enrolment=enrolment), 1, None)


def test_those_that_came_last_are_remembered_as_long_as_there_is_room() -> None:
    known = KnownAgents(most_bytes=100_000)
    for number in range(100):
        known.seen(calling(number))
    assert 10 < len(known) < 50
    assert known.size <= 100_000
    assert known.get(AgentId("agent-99")) is not None
    assert known.get(AgentId("agent-0")) is None
    remembered, before = len(known), known.size
    known.seen(calling(99, metadata="x" * 10_000))
    assert (len(known), known.size) < (remembered, before + 20_000)
    for number in range(100):
        known.forget(AgentId(f"agent-{number}"))
    assert (len(known), known.size) == (0, 0)


def test_who_takes_the_room_of_many_is_not_remembered() -> None:
    known = KnownAgents()
    for number in range(100):
        known.seen(calling(number))
    known.seen(calling(5, metadata="x" * 1_000_000))
    assert (len(known), known.get(AgentId("agent-5"))) == (99, None)


def anew(value: ValueT) -> ValueT:
    """The same, as it is read from a database: it shares nothing with others."""
    return msgspec.json.decode(msgspec.json.encode(value), type=type(value))


def test_all_that_may_be_remembered_takes_less_than_is_told() -> None:
    known = KnownAgents()
    tracemalloc.start()
    try:
        for number in range(500):
            agent = calling(number)
            known.seen(replace(agent, session=anew(agent.session), record=anew(agent.record)))
            known.negotiated(replace(AWAITED, agent_id=f"agent-{number}"))
        assert tracemalloc.get_traced_memory()[0] < known.size < 500 * 7000
    finally:
        tracemalloc.stop()
