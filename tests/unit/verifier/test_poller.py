"""The polling engine and its recorder under failures at every point where one can happen (S1, S5)."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, cast

import pytest
from msgspec.structs import replace

from keylime.appraisal.challenge import Challenge
from keylime.appraisal.evidence import AgentAnswer
from keylime.appraisal.reference import AcceptedAlgorithms, Reference
from keylime.appraisal.verdict import Accepted, AcceptedQuote, Rejected
from keylime.database.engine import DatabaseUnavailable
from keylime.errors import AnswerPutOff, CredentialError, PeerUnreachable
from keylime.findings.finding import Finding
from keylime.findings.severity import SeverityPolicy
from keylime.http.replies import Admit
from keylime.identifiers import AgentId
from keylime.ima.runtime_policy import EMPTY_POLICY, parse_runtime_policy
from keylime.messages.agent import QuoteReply
from keylime.messages.verifier import OperationalState
from keylime.revocation.message import RevocationKind, is_cleared
from keylime.tpm.keys import parse_attestation_key
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_verifier.agent_client import AgentClient
from keylime_verifier.agents.events import Occurrence
from keylime_verifier.agents.lifecycle import Cadence, Notify
from keylime_verifier.agents.policy_categories import TextHash
from keylime_verifier.agents.records import AgentRecord, HeldVersions, Progress, Secrets, StoredRevocation
from keylime_verifier.polling import recorder
from keylime_verifier.polling.answer_budget import LONG_ANSWERS, ORDINARY_ANSWER, AnswerBudget
from keylime_verifier.polling.fencing import Ruling, VerdictRefusal
from keylime_verifier.polling.polled_agent import HeldReference
from keylime_verifier.polling.poller import Poller
from keylime_verifier.polling.recorder import Recorder
from keylime_verifier.polling.store import AgentStore
from tests.fakes.attesting_agent import BANK, Machine, attestation_key, payload_key, public_pem
from tests.unit.verifier.test_status import ENROLMENT

AGENT = AgentId("a1")
CADENCE = Cadence(
    quote_interval_s=0.001,
    retry_interval_s=0.001,
    max_retries=3,
    exponential_backoff=False,
    silence_interval_s=0.001,
)
SEVERITIES = SeverityPolicy(("info", "emergency"), [{"event_id": ".*", "severity_label": "emergency"}])
RECORD = AgentRecord("first", ENROLMENT, Progress(supported_version="2.5"))
PUBKEY = public_pem(payload_key())
QUOTE = AcceptedQuote(hash_alg="sha256", encryption_alg="rsa", signing_alg="rsassa")


class Trouble(Exception):
    """A defect of ours, as any line could have one."""


class FailPoint:
    """Raises at the chosen place, the first `times` times that it is passed."""

    def __init__(self, place: str = "", error: Exception | None = None, times: int = 2) -> None:
        self.place, self.error, self.times = place, error or Trouble("canary"), times

    def passing(self, place: str) -> None:
        if place == self.place and self.times > 0:
            self.times -= 1
            raise self.error


class MemoryStore(AgentStore):
    """The store's methods that polling uses, in memory."""

    def __init__(self, fail: FailPoint) -> None:
        self.fail = fail
        self.record: AgentRecord | None = RECORD
        self.revocations: list[StoredRevocation] = []
        self.batch_gate: asyncio.Event | None = None
        self.order: list[str] = []
        self.told: list[Occurrence] = []

    async def secrets_of(self, agent_id: AgentId) -> Secrets | None:
        self.fail.passing("secrets")
        return Secrets(None, "")

    async def stands_revoked(self, agent_id: AgentId) -> bool:
        self.fail.passing("stands_revoked")
        return bool(self.revocations) and not is_cleared(self.revocations[-1].message)

    async def read_v(self, agent_id: AgentId) -> bytes | None:
        self.fail.passing("read_v")
        return bytes(32)

    async def record_passes(
        self,
        records: Sequence[AgentRecord],
        learned: Collection[AgentId] = (),
        events: Mapping[AgentId, Sequence[Occurrence]] = {},
        *,
        can_wait: bool = True,
    ) -> list[VerdictRefusal]:
        if self.batch_gate is not None:
            await self.batch_gate.wait()
        self.fail.passing("batch")
        self.order.append("batch")
        self.told.extend(event for some in events.values() for event in some)
        return [VerdictRefusal(record, Ruling.TAKEN_OVER) for record in records if not self._update(record)]

    async def record_change(
        self,
        record: AgentRecord,
        revocation: StoredRevocation | None,
        targets: Sequence[tuple[str, str]],
        *,
        held_to: HeldVersions | None = None,
        events: Sequence[Occurrence] = (),
    ) -> Ruling:
        self.fail.passing("change")
        self.order.append("change")
        self.told.extend(events)
        if not self._update(record):
            return Ruling.ENROLLED_ANEW
        if revocation is not None:
            self.revocations.append(revocation)
        return Ruling.COUNTS

    def _update(self, record: AgentRecord) -> bool:
        if self.record is None or self.record.generation != record.generation:
            return False
        self.record = record
        return True


class ScriptedClient:
    """An agent as the poller calls it: genuine, unless a fail point or a gate says otherwise."""

    def __init__(self, fail: FailPoint, machine: Machine) -> None:
        self.fail = fail
        self.machine = machine
        self.version = "2.5"
        self.is_attested = False
        self.quotes = 0
        self.shares = 0
        self.is_closed = False
        self.gate: asyncio.Event | None = None
        self.size = 1000  # of its answers
        self.put_off = 0
        self.probes = 0

    async def probe(self) -> None:
        self.probes += 1
        self.fail.passing("probe")

    async def quote(self, challenge: Challenge, admit: Admit) -> AgentAnswer:
        self.quotes += 1
        if self.gate is not None:
            await self.gate.wait()
        self.fail.passing("quote")
        mask = sum(1 << index for index in challenge.pcrs - {16})
        quote = self.machine.quote(challenge.nonce, mask, PUBKEY)
        if not admit(self.size):
            self.put_off += 1
            raise AnswerPutOff(self.size)
        return AgentAnswer.of(
            QuoteReply(quote=quote, hash_alg=BANK.label, enc_alg="ecc256", sign_alg="ecdsa", pubkey=PUBKEY)
        )

    async def provide_v(self, encrypted_v: str) -> None:
        self.fail.passing("provide_v")
        self.shares += 1

    async def close(self) -> None:
        self.is_closed = True


class Stage:
    """A poller with everything around it in memory."""

    def __init__(self, fail: FailPoint | None = None, budget: AnswerBudget | None = None) -> None:
        self.fail = fail or FailPoint()
        self.machine = Machine(attestation_key())
        self.clients: list[ScriptedClient] = []
        self.store = MemoryStore(self.fail)
        targets = [("agent", "*")]
        self.recorder = Recorder(self.store, SEVERITIES, lambda: targets, lambda: None, now=time.time)
        self.gate: asyncio.Event | None = None
        self.poller = Poller(
            connect=self._connect,
            build_reference=self._reference,
            read_v=self.store.read_v,
            recorder=self.recorder,
            cadence=CADENCE,
            severities=SEVERITIES,
            max_concurrent=2,
            budget=budget,
        )

    def _connect(self, record: AgentRecord) -> AgentClient:
        self.fail.passing("connect")
        client = ScriptedClient(self.fail, self.machine)
        client.gate = self.gate
        self.clients.append(client)
        return cast(AgentClient, client)

    async def _reference(self, record: AgentRecord) -> tuple[Reference, HeldVersions]:
        self.fail.passing("reference")
        reference = Reference(
            attestation_key=parse_attestation_key(self.machine.ak.tpm2b_public),
            accepted=AcceptedAlgorithms(frozenset({"sha256"}), frozenset({"ecc256"}), frozenset({"ecdsa"})),
            tpm_policy=TpmPolicy.from_wire("{}"),
            runtime_policy=parse_runtime_policy(EMPTY_POLICY),
        )
        return reference, HeldVersions(TextHash("empty"))

    @property
    def count(self) -> int:
        """Successful rounds of the agent."""
        record = self.poller.current(AGENT)
        return 0 if record is None else record.progress.attestation_count

    @property
    def state(self) -> OperationalState | None:
        """Where the agent stands, None when it is not polled."""
        record = self.poller.current(AGENT)
        return None if record is None else record.progress.operational_state

    def play(self, act: Callable[[], Awaitable[None]], *, first: AgentRecord | None = RECORD) -> None:
        async def run() -> None:
            loops = [asyncio.create_task(work) for work in (self.poller.run(), self.recorder.run())]
            try:
                if first is not None:
                    self.poller.adopt(first)
                await act()
            finally:
                for loop in loops:
                    loop.cancel()
                await asyncio.gather(*loops, return_exceptions=True)
                await self.poller.close(1.0)
            assert all(client.is_closed for client in self.clients)

        asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


def test_an_answer_that_is_put_off_is_asked_for_again_when_there_is_room() -> None:
    budget = AnswerBudget()
    stage = Stage(budget=budget)

    async def act() -> None:
        await until(lambda: stage.count > 0)
        (client,) = stage.clients
        with budget.place(0) as other:
            assert other.admit(LONG_ANSWERS)
            client.size = ORDINARY_ANSWER + 1
            await until(lambda: client.put_off > 0)
            count, asked = stage.count, client.quotes
            for _ in range(100):
                await asyncio.sleep(0)
            assert (client.put_off, client.quotes, stage.count) == (1, asked, count)
        await until(lambda: stage.count > count + 2)
        assert (client.put_off, stage.state) == (1, OperationalState.GET_QUOTE)
        await until(lambda: budget.held == 0)

    stage.play(act)


def test_an_agent_that_is_dropped_while_it_waits_for_room_waits_no_more() -> None:
    budget = AnswerBudget()
    stage = Stage(budget=budget)

    async def act() -> None:
        await until(lambda: stage.count > 0)
        (client,) = stage.clients
        with budget.place(0) as other:
            assert other.admit(LONG_ANSWERS)
            client.size = ORDINARY_ANSWER + 1
            await until(lambda: client.put_off > 0)
            stage.poller.drop(AGENT)
            await until(lambda: client.is_closed)
        assert budget.held == 0

    stage.play(act)


def test_what_is_just_being_built_is_kept_if_it_is_of_what_is_stored() -> None:
    stage = Stage()
    reference, versions = asyncio.run(stage._reference(RECORD))
    held = HeldReference()
    held.expect(versions)
    held.keep(reference, versions, held.forgets)
    assert held.reference is reference
    held.expect(versions)
    assert held.reference is reference, "it is what is stored"
    held.expect(HeldVersions(TextHash("another")))
    assert held.reference is None
    held.expect(HeldVersions(TextHash("another")))
    held.keep(reference, versions, held.forgets)
    assert held.reference is None, "it was read before the other one was stored"
    held.keep(reference, versions, held.forgets)
    assert held.reference is reference, "what is stored now is found out by building"


PLACES = ["connect", "reference", "quote", "read_v", "provide_v"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", [Trouble("canary"), CredentialError("x"), DatabaseUnavailable("x")])
def test_s1_an_exception_anywhere_is_counted_and_retried(place: str, error: Exception) -> None:
    stage = Stage(FailPoint(place, error))

    async def act() -> None:
        await until(lambda: stage.fail.times == 0)
        await until(lambda: stage.count >= 3)
        await until(lambda: stage.state is OperationalState.GET_QUOTE)
        assert stage.clients[-1].shares == 1
        assert stage.poller.defects == 2
        assert stage.store.revocations == []

    stage.play(act)


def test_s1_an_exception_while_a_verdict_is_written_is_counted_and_the_round_repeated() -> None:
    stage = Stage(FailPoint("change", Trouble("canary")))

    async def act() -> None:
        await until(lambda: stage.count >= 3)
        assert stage.poller.defects == 2
        assert stage.store.record is not None
        assert stage.store.record.progress.operational_state is not OperationalState.START

    stage.play(act)


def test_s1_a_failing_verdict_that_met_a_defect_is_found_and_told_again() -> None:
    stage = Stage(FailPoint("secrets", Trouble("canary")))
    stage.machine.ak = attestation_key(9)

    async def act() -> None:
        await until(lambda: stage.count >= 2)
        stage.machine.reset_count = 0
        await until(lambda: bool(stage.store.revocations))
        assert stage.poller.defects == 2
        assert len(stage.store.revocations) == 1
        assert stage.poller.current(AGENT) is None

    stage.play(act)


def test_s2_a_verdict_is_offered_to_the_database_until_it_is_taken() -> None:
    stage = Stage(FailPoint("change", DatabaseUnavailable("locked"), times=1))

    async def act() -> None:
        await until(lambda: stage.count >= 3)
        assert stage.poller.defects == 0

    stage.play(act)


def test_s5_dropped_with_a_request_in_flight_nothing_is_written() -> None:
    stage = Stage()
    stage.gate = asyncio.Event()

    async def act() -> None:
        await until(lambda: bool(stage.clients) and stage.clients[0].quotes == 1)
        stage.poller.drop(AGENT)
        assert stage.gate is not None
        stage.gate.set()
        await until(lambda: stage.clients[0].is_closed)
        assert stage.store.order == []

    stage.play(act)


def test_an_agent_that_waits_for_a_slot_can_be_dropped() -> None:
    stage = Stage()
    stage.gate = asyncio.Event()

    async def act() -> None:
        for number in range(2, 6):
            name = AgentId(f"a{number}")
            stage.poller.adopt(replace(RECORD, enrolment=replace(ENROLMENT, agent_id=name)))
        await until(lambda: len(stage.clients) == 2)
        for number in range(1, 6):
            stage.poller.drop(AgentId(f"a{number}"))
        await until(lambda: all(client.is_closed for client in stage.clients))
        stage.gate = None
        stage.poller.adopt(RECORD)
        await until(lambda: stage.count >= 2)

    stage.play(act)


def test_an_agent_that_is_due_later_can_be_dropped_and_adopted_again() -> None:
    stage = Stage()

    async def act() -> None:
        await until(lambda: stage.count >= 1)
        for _ in range(50):
            stage.poller.adopt(RECORD, delay_s=3600)
            stage.poller.drop(AGENT)
        stage.poller.adopt(RECORD)
        await until(lambda: stage.count >= 2)

    stage.play(act)


def test_the_generation_of_an_operators_act_wins() -> None:
    stage = Stage()

    async def act() -> None:
        await until(lambda: stage.count >= 2)
        stage.store.record = replace(RECORD, generation="second")
        stage.machine.reset_count = 0  # the next verdict is a failure
        await until(lambda: stage.poller.current(AGENT) is None)
        assert stage.store.record == replace(RECORD, generation="second")
        assert stage.store.revocations == []

    stage.play(act)


def test_a_batch_under_way_never_overwrites_the_verdict_after_it() -> None:
    stage = Stage()

    async def act() -> None:
        await until(lambda: stage.count >= 4)
        stage.store.batch_gate = asyncio.Event()
        flush = asyncio.create_task(stage.recorder.flush())
        await until(stage.recorder._flushing.locked)
        stage.machine.reset_count = 0
        for _ in range(100):
            await asyncio.sleep(0)
        stage.store.batch_gate.set()
        await flush
        await until(lambda: bool(stage.store.revocations))
        await stage.recorder.flush()
        assert stage.store.record is not None
        assert stage.store.record.progress.operational_state is OperationalState.INVALID_QUOTE

    stage.play(act)


def test_passes_that_could_not_be_written_are_kept_but_not_beyond_a_verdict() -> None:
    stage = Stage(FailPoint("batch", DatabaseUnavailable("locked"), times=1))

    async def act() -> None:
        await until(lambda: stage.count >= 4)
        with pytest.raises(DatabaseUnavailable):
            await stage.recorder.flush()
        await stage.recorder.flush()
        assert stage.store.record is not None
        assert stage.store.record.progress.attestation_count >= 4
        stage.fail.times = 1
        await until(lambda: stage.count >= 8)
        with pytest.raises(DatabaseUnavailable):
            await stage.recorder.flush()
        stage.machine.reset_count = 0
        await until(lambda: bool(stage.store.revocations))
        await stage.recorder.flush()
        assert stage.store.record.progress.operational_state is OperationalState.INVALID_QUOTE

    stage.play(act)


def test_what_waits_is_unwritten_and_the_first_to_be_written() -> None:
    stage = Stage(FailPoint("change", DatabaseUnavailable("locked"), times=0))
    other = replace(RECORD, enrolment=replace(ENROLMENT, agent_id=AgentId("a2")))
    finding = Finding("ima.x", {}, recoverable=False, explanation="x")
    outcome = Rejected((finding,), RECORD.progress.checkpoint)
    state = OperationalState.INVALID_QUOTE
    after = replace(RECORD, progress=replace(RECORD.progress, operational_state=state))
    notice = Notify(RevocationKind.REVOCATION, finding, "emergency")

    async def act() -> None:
        stage.fail.times = 1
        writing = asyncio.create_task(stage.recorder.write(RECORD, after, outcome, notice))
        await until(lambda: stage.fail.times == 0)
        assert stage.recorder.unwritten(AGENT) == after
        assert stage.recorder.waits(AGENT)
        routine = Accepted(RECORD.progress.checkpoint, QUOTE)
        passed = replace(other, progress=replace(other.progress, attestation_count=1))
        assert await stage.recorder.write(other, passed, routine, None) is Ruling.COUNTS
        assert stage.recorder.unwritten(other.agent_id) is None, "the next batch will have it"
        await stage.recorder.flush()
        assert stage.store.order == ["change", "batch"]
        assert await writing is Ruling.COUNTS
        assert stage.recorder.unwritten(AGENT) is None
        assert len(stage.store.revocations) == 1

    asyncio.run(act())


def test_a_pass_that_has_not_been_written_for_long_is_unwritten_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(FailPoint("batch", DatabaseUnavailable("locked"), times=1))
    monkeypatch.setattr(recorder, "_OVERDUE_S", 0.0)
    passed = replace(RECORD, progress=replace(RECORD.progress, attestation_count=1))
    routine = Accepted(RECORD.progress.checkpoint, QUOTE)

    async def act() -> None:
        await stage.recorder.write(RECORD, passed, routine, None)
        with pytest.raises(DatabaseUnavailable):
            await stage.recorder.flush()
        assert stage.recorder.unwritten(AGENT) == passed
        await stage.recorder.flush()
        assert stage.recorder.unwritten(AGENT) is None

    asyncio.run(act())


def test_a_verdict_outlives_the_turn_that_reached_it(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(FailPoint("change", DatabaseUnavailable("locked"), times=10**9))

    async def act() -> None:
        stage.machine.reset_count = 0
        await until(lambda: stage.recorder.waits(AGENT))
        stage.poller.drop(AGENT)

    stage.play(act)
    assert stage.recorder.waits(AGENT)
    stage.recorder.give_up()
    assert f"agent {AGENT}: the verdict" in caplog.text
    assert "was not written before the verifier ended: locked" in caplog.text
    stage.fail.times = 0
    asyncio.run(stage.recorder.flush())
    assert not stage.recorder.waits(AGENT)


def test_that_polling_stops_is_said_also_when_others_see_first_what_was_written(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(FailPoint("change", DatabaseUnavailable("locked"), times=0))
    take = stage.store.record_change

    async def seen_by_others(*args: Any, **kwargs: Any) -> Ruling:
        ruling = await take(*args, **kwargs)
        stage.poller.drop(AGENT)
        return ruling

    async def act() -> None:
        await until(lambda: stage.count >= 2)
        monkeypatch.setattr(stage.store, "record_change", seen_by_others)
        stage.machine.reset_count = 0
        await until(lambda: f"Agent {AGENT} failed, stopping polling: Invalid Quote" in caplog.text)

    stage.play(act)
    assert len(stage.store.revocations) == 1


def test_a_stop_waits_for_a_verdict_that_is_being_written() -> None:
    stage = Stage(FailPoint("change", DatabaseUnavailable("locked"), times=0))

    async def act() -> None:
        await until(lambda: stage.count >= 2)
        stage.fail.times = 1
        stage.machine.reset_count = 0
        await until(lambda: stage.fail.times == 0)

    stage.play(act)
    assert len(stage.store.revocations) == 1


def test_silence_is_an_outcome_and_no_defect() -> None:
    stage = Stage(FailPoint("quote", PeerUnreachable("down")))

    async def act() -> None:
        await until(lambda: stage.count >= 2)
        assert stage.poller.defects == 0

    stage.play(act)


def given_up(number: int = 0) -> AgentRecord:
    enrolment = (
        replace(RECORD.enrolment, agent_id=AgentId(f"silent-{number}")) if number else RECORD.enrolment
    )
    progress = replace(RECORD.progress, operational_state=OperationalState.FAILED)
    return replace(RECORD, enrolment=enrolment, progress=progress)


def test_who_was_given_up_is_asked_for_a_quote_when_something_listens_again() -> None:
    stage = Stage(FailPoint("probe", PeerUnreachable("nothing listens"), times=10**9))

    async def act() -> None:
        stage.poller.adopt(given_up())
        await until(lambda: bool(stage.clients) and stage.clients[-1].probes > 2)
        assert [client.quotes for client in stage.clients] == [0]
        assert stage.state is OperationalState.FAILED
        stage.fail.times = 0
        await until(lambda: stage.count > 2)
        probes = stage.clients[-1].probes
        await until(lambda: stage.count > 4)
        assert stage.clients[-1].probes == probes, "those that answer are not probed"

    stage.play(act, first=None)


def test_a_fleet_that_was_given_up_is_asked_at_a_bounded_rate() -> None:
    stage = Stage()

    async def act() -> None:
        now = asyncio.get_running_loop().time()
        for number in range(1, 1001):
            stage.poller.adopt(given_up(number))
        moments = sorted(due.at - now for due in stage.poller._heap if not due.agent.is_dropped)
        assert len(moments) == 1000
        assert all(later - earlier > 0.009 for earlier, later in itertools.pairwise(moments))
        assert moments[-1] > 9
        stage.poller.adopt(RECORD)  # others do not wait behind them
        await until(lambda: stage.count > 2)

    stage.play(act, first=None)


def test_agents_that_are_adopted_again_and_again_are_not_asked_ever_later() -> None:
    stage = Stage()

    async def act() -> None:
        now = asyncio.get_running_loop().time()
        for number in list(range(1, 101)) * 50:
            stage.poller.adopt(given_up(number))
        moments = [due.at - now for due in stage.poller._heap if not due.agent.is_dropped]
        assert len(moments) == 100
        assert max(moments) < 20

    stage.play(act, first=None)


@pytest.mark.parametrize("steps", range(6))
def test_a_stop_that_comes_together_with_work_is_not_lost(steps: int) -> None:
    stage = Stage()

    async def run() -> None:
        loop = asyncio.create_task(stage.poller.run())
        for _ in range(5):
            await asyncio.sleep(0)
        stage.poller.adopt(RECORD, delay_s=3600)
        for _ in range(steps):
            await asyncio.sleep(0)
        loop.cancel()
        _, pending = await asyncio.wait([loop], timeout=1)
        assert not pending
        await stage.poller.close(1.0)

    asyncio.run(run())
