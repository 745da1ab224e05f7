"""In which order waiting verdicts and passes are written, of all agents and of one."""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from sqlalchemy.exc import DataError

from keylime.appraisal.verdict import Accepted, Rejected
from keylime.database.engine import DatabaseUnavailable
from keylime.findings.finding import Finding
from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime_verifier.agents.events import EventKind, Occurrence
from keylime_verifier.agents.records import AgentRecord, HeldVersions, Progress, StoredRevocation
from keylime_verifier.polling.fencing import Ruling, VerdictRefusal
from keylime_verifier.polling.recorder import Recorder
from keylime_verifier.polling.store import AgentStore
from tests.unit.verifier.test_poller import QUOTE, SEVERITIES, until
from tests.unit.verifier.test_status import ENROLMENT

MINE, THEIRS = AgentId("mine"), AgentId("theirs")
FINDING = Finding("ima.x", {}, recoverable=False, explanation="x")
PASSING = Progress(supported_version="2.5", operational_state=OperationalState.GET_QUOTE)


def agent(agent_id: AgentId, passes: int = 0) -> AgentRecord:
    progress = replace(PASSING, attestation_count=passes)
    return AgentRecord("first", replace(ENROLMENT, agent_id=agent_id), progress)


class NotedWrites(AgentStore):
    """Notes what is written in which order; the first `failing` ones fail, passes wait at the `gate`."""

    def __init__(self) -> None:
        self.failing = 0
        self.gate: asyncio.Event | None = None
        self.refused: set[AgentId] = set()
        self.unstorable: set[AgentId] = set()
        self.away_at: set[AgentId] = set()  # it is not there any more when these are written by themselves
        self.written: list[tuple[str, tuple[AgentId, ...]]] = []
        self.counts: dict[AgentId, list[int]] = {}
        self.learned: list[AgentId] = []
        self.told: list[Occurrence] = []
        self.patient: list[bool] = []

    async def record_passes(
        self,
        records: Sequence[AgentRecord],
        learned: Collection[AgentId] = (),
        events: Mapping[AgentId, Sequence[Occurrence]] = {},
        *,
        can_wait: bool = True,
    ) -> list[VerdictRefusal]:
        if self.gate is not None:
            await self.gate.wait()
        if self.away_at.intersection(record.agent_id for record in records):
            raise DatabaseUnavailable("no answer")
        if self.unstorable.intersection(record.agent_id for record in records):
            raise DatabaseUnavailable("a value is out of range") from DataError("", {}, ValueError())
        self._note("passes", records)
        self.patient.append(can_wait)
        self.learned.extend(learned)
        self.told.extend(event for some in events.values() for event in some)
        return [VerdictRefusal(one, Ruling.TAKEN_OVER) for one in records if one.agent_id in self.refused]

    async def record_change(
        self,
        record: AgentRecord,
        revocation: StoredRevocation | None,
        targets: Sequence[tuple[str, str]],
        *,
        held_to: HeldVersions | None = None,
        events: Sequence[Occurrence] = (),
    ) -> Ruling:
        self._note("verdict", [record])
        self.told.extend(events)
        return Ruling.COUNTS

    def _note(self, what: str, records: Sequence[AgentRecord]) -> None:
        if self.failing:
            self.failing -= 1
            raise DatabaseUnavailable("locked")
        self.written.append((what, tuple(record.agent_id for record in records)))
        for record in records:
            self.counts.setdefault(record.agent_id, []).append(record.progress.attestation_count)


class Desk:
    """A recorder over noted writes, who is told of refusals too."""

    def __init__(self) -> None:
        self.store = NotedWrites()
        self.recorder = Recorder(self.store, SEVERITIES, lambda: [], lambda: None, now=time.time)
        self.recorder.subscribe(self)
        self.refusals: list[AgentId] = []

    def refused(self, refusals: Sequence[VerdictRefusal]) -> None:
        self.refusals.extend(one.record.agent_id for one in refusals)

    def settled(self, agent_id: AgentId) -> None:
        """Nothing to do."""

    async def passes(self, agent_id: AgentId, count: int = 1, *, reboots: bool = False) -> None:
        before, after = agent(agent_id, count - 1), agent(agent_id, count)
        if reboots:
            checkpoint = msgspec.structs.replace(after.progress.checkpoint, reboots=count)
            after = replace(after, progress=replace(after.progress, checkpoint=checkpoint))
        await self.recorder.write(before, after, Accepted(after.progress.checkpoint, QUOTE), None)

    def rejects(self, agent_id: AgentId) -> "asyncio.Task[Ruling]":
        before = agent(agent_id, 1)
        progress = replace(before.progress, operational_state=OperationalState.INVALID_QUOTE)
        outcome = Rejected((FINDING,), before.progress.checkpoint)
        return asyncio.create_task(
            self.recorder.write(before, replace(before, progress=progress), outcome, None)
        )


def test_of_one_agent_nothing_is_written_but_its_own() -> None:
    desk = Desk()

    async def act() -> None:
        for agent_id in (THEIRS, MINE):
            await desk.passes(agent_id)
        await desk.recorder.flush_one(MINE)
        assert desk.store.written == [("passes", (MINE,))]
        assert desk.store.patient == [False]
        await desk.recorder.flush()
        assert desk.store.written[1:] == [("passes", (THEIRS,))]
        assert desk.store.patient == [False, True]

    asyncio.run(act())


def test_of_an_agent_of_which_nothing_waits_nothing_is_written_nor_waited_for() -> None:
    desk = Desk()

    async def act() -> None:
        desk.store.gate = asyncio.Event()
        await desk.passes(THEIRS)
        flush = asyncio.create_task(desk.recorder.flush())
        await until(desk.recorder._flushing.locked)
        await asyncio.wait_for(desk.recorder.flush_one(MINE), 10)
        assert desk.store.written == []
        desk.store.gate.set()
        await flush
        assert desk.store.written == [("passes", (THEIRS,))]

    asyncio.run(act())


def test_the_verdict_about_one_agent_is_tried_before_those_about_others() -> None:
    desk = Desk()

    async def act() -> None:
        desk.store.failing = 2
        writing = [desk.rejects(agent_id) for agent_id in (THEIRS, MINE)]
        await until(lambda: not desk.store.failing and all(map(desk.recorder.waits, (THEIRS, MINE))))
        await desk.recorder.flush_one(MINE)
        assert desk.store.written == [("verdict", (MINE,))]
        assert [desk.recorder.waits(one) for one in (MINE, THEIRS)] == [False, True]
        await desk.recorder.flush()
        assert desk.store.written == [("verdict", (MINE,)), ("verdict", (THEIRS,))]
        assert await asyncio.gather(*writing) == [Ruling.COUNTS, Ruling.COUNTS]

    asyncio.run(act())


def test_a_verdict_that_the_database_does_not_take_waits_on(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()

    async def act() -> None:
        desk.store.failing = 2
        writing = desk.rejects(MINE)
        await until(lambda: desk.store.failing == 1 and desk.recorder.waits(MINE))
        await desk.recorder.flush_one(MINE)
        assert desk.recorder.waits(MINE)
        await desk.recorder.flush_one(MINE)
        assert await writing is Ruling.COUNTS
        assert desk.store.written == [("verdict", (MINE,))]

    asyncio.run(act())
    assert "locked; trying again" in caplog.text


def test_a_pass_that_is_just_being_written_with_others_is_waited_for_and_written_once() -> None:
    desk = Desk()

    async def act() -> None:
        desk.store.gate = asyncio.Event()
        for agent_id in (THEIRS, MINE):
            await desk.passes(agent_id)
        flush = asyncio.create_task(desk.recorder.flush())
        await until(desk.recorder._flushing.locked)
        alone = asyncio.create_task(desk.recorder.flush_one(MINE))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not alone.done()
        desk.store.gate.set()
        await asyncio.gather(flush, alone)
        assert desk.store.written == [("passes", (THEIRS, MINE))]

    asyncio.run(act())


def test_between_parts_of_all_passes_that_of_one_agent_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keylime_verifier.polling.recorder._PASSES_AT_ONCE", 1)
    desk = Desk()

    async def act() -> None:
        desk.store.gate = asyncio.Event()
        others = [AgentId(f"other-{number}") for number in range(3)]
        for agent_id in (*others, MINE):
            await desk.passes(agent_id)
        flush = asyncio.create_task(desk.recorder.flush())
        await until(desk.recorder._flushing.locked)
        alone = asyncio.create_task(desk.recorder.flush_one(MINE))
        for _ in range(10):
            await asyncio.sleep(0)
        desk.store.gate.set()
        await asyncio.gather(flush, alone)
        order = [agent_id for _, (agent_id,) in desk.store.written]
        assert order == [others[0], MINE, *others[1:]]

    asyncio.run(act())


def test_the_later_pass_is_written_last() -> None:
    desk = Desk()

    async def act() -> None:
        desk.store.gate = asyncio.Event()
        await desk.passes(MINE, 1)
        flush = asyncio.create_task(desk.recorder.flush())
        await until(desk.recorder._flushing.locked)
        await desk.passes(MINE, 2)
        alone = asyncio.create_task(desk.recorder.flush_one(MINE))
        desk.store.gate.set()
        await asyncio.gather(flush, alone)
        await desk.recorder.flush()
        assert desk.store.counts == {MINE: [1, 2]}

    asyncio.run(act())


def test_a_pass_of_one_agent_that_is_not_taken_is_kept_with_what_it_has_to_tell() -> None:
    desk = Desk()

    async def act() -> None:
        await desk.passes(MINE, reboots=True)
        desk.store.failing = 1
        with pytest.raises(DatabaseUnavailable):
            await desk.recorder.flush_one(MINE)
        assert desk.store.written == []
        for _ in range(2):
            await desk.recorder.flush()
        assert desk.store.written == [("passes", (MINE,))]
        assert desk.store.learned == [MINE]
        assert [event.kind for event in desk.store.told] == [EventKind.REBOOTED]

    asyncio.run(act())


def test_a_pass_of_one_agent_that_others_poll_by_now_is_told() -> None:
    desk = Desk()

    async def act() -> None:
        desk.store.refused = {MINE}
        await desk.passes(MINE)
        await desk.recorder.flush_one(MINE)
        assert desk.refusals == [MINE]

    asyncio.run(act())


def test_what_a_verdict_writes_is_not_written_again_with_the_next_pass() -> None:
    desk = Desk()

    async def act() -> None:
        await desk.passes(MINE, reboots=True)
        assert await desk.rejects(MINE) is Ruling.COUNTS
        assert [event.kind for event in desk.store.told] == [EventKind.REBOOTED, EventKind.STATE]
        await desk.passes(MINE, 2)
        await desk.recorder.flush()
        assert desk.store.written == [("verdict", (MINE,)), ("passes", (MINE,))]
        assert desk.store.learned == []

    asyncio.run(act())


def test_many_passes_let_others_go_first_for_a_while_in_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act() -> None:
        desk = Desk()
        for number in range(501):
            await desk.passes(AgentId(f"agent-{number}"))
        desk.store.gate = asyncio.Event()
        flushing = asyncio.create_task(desk.recorder.flush())
        await asyncio.sleep(0)  # the first part is at the gate
        monkeypatch.setattr("keylime_verifier.polling.recorder._PATIENT_S", 0.0)
        desk.store.gate.set()
        await flushing
        assert desk.store.patient == [True, False, False]

    asyncio.run(act())


def test_what_a_database_refuses_of_one_agent_holds_up_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        desk = Desk()
        names = [AgentId(f"agent-{number}") for number in range(9)]
        bad = names[3]
        desk.store.unstorable = {bad}
        for count in (1, 2):
            for name in names:
                await desk.passes(name, count)
            await desk.recorder.flush()
        assert desk.store.counts == {name: [1, 2] for name in names if name != bad}
        assert desk.store.written[-1] == ("passes", tuple(name for name in names if name != bad)), "in one"
        assert [name for name in names if desk.recorder.unwritten(name)] == [bad]
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
            f"agent {bad}: the database refuses to store its passes: a value is out of range"
        ]
        desk.store.unstorable.clear()
        await desk.passes(bad, 3)
        await desk.recorder.flush()
        assert desk.store.counts[bad] == [3]
        assert desk.recorder.unwritten(bad) is None

    asyncio.run(act())


def test_that_others_poll_an_agent_is_told_though_the_database_goes_away_meanwhile() -> None:
    async def act() -> None:
        desk = Desk()
        other = AgentId("other")
        desk.store.refused = {MINE}
        desk.store.unstorable = {THEIRS}
        for name in (MINE, other, THEIRS):
            await desk.passes(name)
        write = desk.store.record_passes

        async def until_one_is_refused(records: Sequence[AgentRecord], *args: Any, **more: Any) -> Any:
            try:
                return await write(records, *args, **more)
            finally:
                desk.store.away_at = {other}

        desk.store.record_passes = until_one_is_refused  # type: ignore[method-assign]
        with pytest.raises(DatabaseUnavailable):
            await desk.recorder.flush()
        assert desk.refusals == [MINE]

    asyncio.run(act())


def test_a_refused_pass_is_not_shown_when_others_poll_the_agent() -> None:
    async def act() -> None:
        desk = Desk()
        desk.store.unstorable = {MINE, THEIRS}
        for name in (MINE, THEIRS):
            await desk.passes(name)
        await desk.recorder.flush()
        desk.recorder.forget_refused(others_than={MINE})
        assert desk.recorder.unwritten(MINE) is not None
        assert desk.recorder.unwritten(THEIRS) is None

    asyncio.run(act())


def test_a_defect_in_storing_passes_is_no_end_of_it() -> None:
    async def act() -> None:
        desk = Desk()
        desk.store.learned = None  # type: ignore[assignment]
        await desk.passes(THEIRS)
        await desk.recorder.flush()
        assert desk.recorder.unwritten(THEIRS) is not None
        desk.store.learned = []
        await desk.passes(THEIRS, 2)
        await desk.recorder.flush()
        assert (desk.store.counts[THEIRS][-1], desk.recorder.unwritten(THEIRS)) == (2, None)

    asyncio.run(act())
