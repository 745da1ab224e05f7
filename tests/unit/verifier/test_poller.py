"""The polling engine and its journal under failures at every point where one can happen (S1, S5)."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import cast

import pytest

from keylime.appraisal.challenge import Challenge
from keylime.appraisal.reference import AcceptedAlgorithms, Reference
from keylime.appraisal.severity import SeverityPolicy
from keylime.database.engine import DatabaseUnavailable
from keylime.errors import CredentialError, PeerUnreachable
from keylime.identifiers import AgentId
from keylime.messages.agent import QuoteReply
from keylime.messages.verifier import OperationalState
from keylime.policy.runtime import EMPTY_POLICY, parse_runtime_policy
from keylime.policy.tpm_policy import TpmPolicy
from keylime.tpm.keys import parse_attestation_key
from keylime_verifier.agent_client import AgentClient
from keylime_verifier.journal import Journal
from keylime_verifier.lifecycle import Cadence
from keylime_verifier.poller import Poller
from keylime_verifier.records import AgentRecord, PolicyVersions, Progress, Secrets, StoredRevocation
from keylime_verifier.store import AgentStore
from tests.fakes.attesting_agent import BANK, Machine, attestation_key, payload_key, public_pem
from tests.unit.verifier.test_status import ENROLMENT

AGENT = AgentId("a1")
CADENCE = Cadence(quote_interval_s=0.001, retry_interval_s=0.001, max_retries=3, exponential_backoff=False)
SEVERITIES = SeverityPolicy(("info", "emergency"), [{"event_id": ".*", "severity_label": "emergency"}])
RECORD = AgentRecord("first", ENROLMENT, Progress(supported_version="2.5"))
PUBKEY = public_pem(payload_key())


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

    async def secrets_of(self, agent_id: AgentId) -> Secrets | None:
        self.fail.passing("secrets")
        return Secrets(None, "")

    async def read_v(self, agent_id: AgentId) -> bytes | None:
        self.fail.passing("read_v")
        return bytes(32)

    async def record_passes(self, records: Sequence[AgentRecord]) -> list[AgentRecord]:
        if self.batch_gate is not None:
            await self.batch_gate.wait()
        self.fail.passing("batch")
        self.order.append("batch")
        return [record for record in records if not self._update(record)]

    async def record_change(
        self, record: AgentRecord, revocation: StoredRevocation | None, targets: Sequence[tuple[str, str]]
    ) -> bool:
        self.fail.passing("change")
        self.order.append("change")
        if not self._update(record):
            return False
        if revocation is not None:
            self.revocations.append(revocation)
        return True

    def _update(self, record: AgentRecord) -> bool:
        if self.record is None or self.record.incarnation != record.incarnation:
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

    async def quote(self, challenge: Challenge) -> QuoteReply:
        self.quotes += 1
        if self.gate is not None:
            await self.gate.wait()
        self.fail.passing("quote")
        mask = sum(1 << index for index in challenge.pcrs - {16})
        quote = self.machine.quote(challenge.nonce, mask, PUBKEY)
        return QuoteReply(quote=quote, hash_alg=BANK.label, enc_alg="ecc256", sign_alg="ecdsa", pubkey=PUBKEY)

    async def provide_v(self, encrypted_v: str) -> None:
        self.fail.passing("provide_v")
        self.shares += 1

    async def close(self) -> None:
        self.is_closed = True


class Stage:
    """A poller with everything around it in memory."""

    def __init__(self, fail: FailPoint | None = None) -> None:
        self.fail = fail or FailPoint()
        self.machine = Machine(attestation_key())
        self.clients: list[ScriptedClient] = []
        self.store = MemoryStore(self.fail)
        self.journal = Journal(self.store, SEVERITIES, [("agent", "*")], lambda: None)
        self.gate: asyncio.Event | None = None
        self.poller = Poller(
            connect=self._connect,
            build_reference=self._reference,
            read_v=self.store.read_v,
            journal=self.journal,
            cadence=CADENCE,
            severities=SEVERITIES,
            max_concurrent=2,
        )

    def _connect(self, record: AgentRecord) -> AgentClient:
        self.fail.passing("connect")
        client = ScriptedClient(self.fail, self.machine)
        client.gate = self.gate
        self.clients.append(client)
        return cast(AgentClient, client)

    async def _reference(self, record: AgentRecord) -> tuple[Reference, PolicyVersions]:
        self.fail.passing("reference")
        reference = Reference(
            attestation_key=parse_attestation_key(self.machine.ak.tpm2b_public),
            accepted=AcceptedAlgorithms(frozenset({"sha256"}), frozenset({"ecc256"}), frozenset({"ecdsa"})),
            tpm_policy=TpmPolicy.from_wire("{}"),
            runtime_policy=parse_runtime_policy(EMPTY_POLICY),
        )
        return reference, PolicyVersions("empty")

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

    def play(self, act: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            loop = asyncio.create_task(self.poller.run())
            try:
                self.poller.adopt(RECORD)
                await act()
            finally:
                loop.cancel()
                await asyncio.gather(loop, return_exceptions=True)
                await self.poller.close(1.0)
            assert all(client.is_closed for client in self.clients)

        asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


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


def test_the_incarnation_of_an_operators_act_wins() -> None:
    stage = Stage()

    async def act() -> None:
        await until(lambda: stage.count >= 2)
        stage.store.record = replace(RECORD, incarnation="second")
        stage.machine.reset_count = 0  # the next verdict is a failure
        await until(lambda: stage.poller.current(AGENT) is None)
        assert stage.store.record == replace(RECORD, incarnation="second")
        assert stage.store.revocations == []

    stage.play(act)


def test_a_batch_under_way_never_overwrites_the_verdict_after_it() -> None:
    stage = Stage()

    async def act() -> None:
        await until(lambda: stage.count >= 4)
        stage.store.batch_gate = asyncio.Event()
        flush = asyncio.create_task(stage.journal.flush())
        await until(stage.journal._flushing.locked)
        stage.machine.reset_count = 0
        for _ in range(100):
            await asyncio.sleep(0)
        stage.store.batch_gate.set()
        await flush
        await until(lambda: bool(stage.store.revocations))
        await stage.journal.flush()
        assert stage.store.record is not None
        assert stage.store.record.progress.operational_state is OperationalState.INVALID_QUOTE

    stage.play(act)


def test_passes_that_could_not_be_written_are_kept_but_not_beyond_a_verdict() -> None:
    stage = Stage(FailPoint("batch", DatabaseUnavailable("locked"), times=1))

    async def act() -> None:
        await until(lambda: stage.count >= 4)
        with pytest.raises(DatabaseUnavailable):
            await stage.journal.flush()
        await stage.journal.flush()
        assert stage.store.record is not None
        assert stage.store.record.progress.attestation_count >= 4
        stage.fail.times = 1
        await until(lambda: stage.count >= 8)
        with pytest.raises(DatabaseUnavailable):
            await stage.journal.flush()
        stage.machine.reset_count = 0
        await until(lambda: bool(stage.store.revocations))
        await stage.journal.flush()
        assert stage.store.record.progress.operational_state is OperationalState.INVALID_QUOTE

    stage.play(act)


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
