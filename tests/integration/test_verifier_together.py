"""Agents that are added, and verdicts that are reached, at the same time: written in one transaction."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.engine import URL

from keylime.appraisal.verdict import Accepted
from keylime.database.engine import DatabaseUnavailable
from keylime.database.migrate import prepare_schema
from keylime.database.transactions import Database
from keylime.database.write_turn import Urgency
from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime_verifier.agents.policy_categories import RUNTIME
from keylime_verifier.agents.records import AgentRecord, Secrets
from keylime_verifier.agents.shards import SHARDS, MemberId, ShardClaim
from keylime_verifier.database.schema import SCHEMA
from keylime_verifier.polling.additions import AgentExists
from keylime_verifier.polling.fencing import Ruling
from keylime_verifier.polling.recorder import Recorder
from keylime_verifier.polling.store import AgentStore
from tests.fakes.databases import KINDS, SERVERS, DatabaseServer
from tests.fakes.statements import execute, opened, rows_of
from tests.unit.verifier.test_poller import QUOTE, SEVERITIES
from tests.unit.verifier.test_status import ENROLMENT

ResultT = TypeVar("ResultT")
IDS = [f"agent-{number}" for number in range(5)]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite'}"
    server: DatabaseServer = request.getfixturevalue(SERVERS[request.param])
    return server.new_database()


class Counted:
    """A database that counts what is written, and is away for as long as it is told to be."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.written: list[str] = []
        self.is_away = False

    @property
    def url(self) -> URL:
        return self._database.url

    async def write(
        self, action: str, work: Callable[[sa.Connection], ResultT], urgency: Urgency = Urgency.USUAL
    ) -> ResultT:
        self.written.append(action)
        if self.is_away:
            raise DatabaseUnavailable(f"database: cannot {action}: it is away")
        return await self._database.write(action, work, urgency)

    async def read(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        return await self._database.read(action, work)

    async def close(self) -> None:
        await self._database.close()


class Scene:
    """A store, whose shards are all mine."""

    def __init__(self, database: Database) -> None:
        self.database = Counted(database)
        self.store = AgentStore(self.database)

    async def begin(self) -> None:
        await prepare_schema(self.database, SCHEMA, migrate=True)
        shards = [{"verifier": ENROLMENT.verifier_id, "shard": shard} for shard in range(SHARDS)]
        await execute(
            self.database, "INSERT INTO shards VALUES (:verifier, :shard, 'me', 7)", parameters=shards
        )
        self.database.written.clear()

    async def add(self, name: str, policy: str = "{}") -> AgentRecord:
        """An agent with a policy of its own."""
        agent_id = AgentId(name)
        enrolment = replace(
            ENROLMENT, agent_id=agent_id, runtime_policy=name, measured_boot_policy=None, has_v=False
        )
        return await self.store.add(enrolment, Secrets(None, ""), "2.5", {(RUNTIME, name): policy})

    async def add_all(self, names: Sequence[str] = IDS) -> list[AgentRecord]:
        records = await asyncio.gather(*map(self.add, names))
        self.database.written.clear()
        return records

    async def conclude(self, records: Sequence[AgentRecord]) -> list[Ruling | BaseException]:
        """A first pass of each."""
        passed = [
            replace(
                record,
                progress=replace(
                    record.progress, operational_state=OperationalState.GET_QUOTE, attestation_count=1
                ),
            )
            for record in records
        ]
        return await asyncio.gather(
            *(self.store.record_change(one, None, []) for one in passed), return_exceptions=True
        )

    async def states(self) -> dict[object, tuple[object, ...]]:
        query = (
            "SELECT agents.agent_id, operational_state, attestation_count, recalls FROM agents "
            "JOIN progress ON progress.agent_id = agents.agent_id ORDER BY 1"
        )
        return {row[0]: tuple(row[1:]) for row in await rows_of(self.database, query)}


def play(url: str, act: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        database = opened(url)
        try:
            scene = Scene(database)
            await scene.begin()
            await act(scene)
        finally:
            await database.close()

    asyncio.run(run())


def test_agents_that_are_added_together_are_in_one_transaction_and_each_as_it_would_be_alone(
    url: str,
) -> None:
    async def act(scene: Scene) -> None:
        records = await asyncio.gather(*map(scene.add, IDS))
        assert scene.database.written == ["add an agent"]
        assert [record.agent_id for record in records] == IDS
        assert {record.claim for record in records} == {ShardClaim(MemberId("me"), 7)}
        assert [await scene.store.find(AgentId(name)) for name in IDS] == records
        told = await rows_of(scene.database, "SELECT agent_id, through FROM recipients ORDER BY 1")
        assert [tuple(row) for row in told] == [(name, 0) for name in IDS]
        history = await rows_of(scene.database, "SELECT agent_id FROM events ORDER BY 1")
        assert [row[0] for row in history] == IDS

    play(url, act)


def test_one_that_is_there_already_keeps_nobody_else_out(url: str) -> None:
    async def act(scene: Scene) -> None:
        await scene.add(IDS[2])
        added = await asyncio.gather(*map(scene.add, [*IDS, IDS[0]]), return_exceptions=True)
        assert [type(one) for one in added] == [
            *(AgentExists if name == IDS[2] else AgentRecord for name in IDS),
            AgentExists,
        ]
        assert list(await scene.states()) == IDS

    play(url, act)


def test_whoever_brings_a_large_policy_holds_up_nobody(url: str) -> None:
    async def act(scene: Scene) -> None:
        large = '{"x": "' + "x" * (1 << 17) + '"}'
        await asyncio.gather(scene.add(IDS[0]), scene.add(IDS[1], large), scene.add(IDS[2]))
        assert scene.database.written == ["add an agent"] * 2
        assert list(await scene.states()) == IDS[:3]

    play(url, act)


def test_verdicts_that_come_together_are_in_one_transaction_and_each_counts_or_not_by_itself(
    url: str,
) -> None:
    async def act(scene: Scene) -> None:
        records = await scene.add_all()
        await scene.store.delete(AgentId(IDS[1]))
        await scene.store.begin_again(AgentId(IDS[3]), OperationalState.START)
        scene.database.written.clear()
        rulings = await scene.conclude(records)
        assert rulings == [
            Ruling.COUNTS,
            Ruling.DELETED,
            Ruling.COUNTS,
            Ruling.ENROLLED_ANEW,
            Ruling.COUNTS,
        ]
        assert scene.database.written == ["record a verdict"]
        passes = (int(OperationalState.GET_QUOTE), 1, 0)
        begins = (int(OperationalState.START), 0, 0)
        assert await scene.states() == {IDS[0]: passes, IDS[2]: passes, IDS[3]: begins, IDS[4]: passes}

    play(url, act)


def test_verdicts_about_agents_that_were_taken_over_are_refused_and_the_others_count(url: str) -> None:
    async def act(scene: Scene) -> None:
        records = await scene.add_all()
        lost = records[2].shard
        await execute(
            scene.database,
            "UPDATE shards SET owner = 'they' WHERE shard = :lost",
            parameters=[{"lost": lost}],
        )
        rulings = await scene.conclude(records)
        theirs = {record.agent_id for record in records if record.shard == lost}
        assert rulings == [
            Ruling.TAKEN_OVER if record.agent_id in theirs else Ruling.COUNTS for record in records
        ]
        passes = (int(OperationalState.GET_QUOTE), 1, 0)
        recalled = (int(OperationalState.START), 0, 1)
        assert await scene.states() == {name: recalled if name in theirs else passes for name in IDS}

    play(url, act)


def test_verdicts_that_were_not_taken_together_are_tried_one_by_one(url: str) -> None:
    async def act(scene: Scene) -> None:
        records = await scene.add_all()
        scene.database.is_away = True
        assert {type(one) for one in await scene.conclude(records)} == {DatabaseUnavailable}
        assert scene.database.written == ["record a verdict"]
        scene.database.is_away = False
        scene.database.written.clear()
        assert await scene.conclude(records) == [Ruling.COUNTS] * len(records)
        assert scene.database.written == ["record a verdict"] * len(records)
        scene.database.written.clear()
        await scene.conclude(records)
        assert scene.database.written == ["record a verdict"], "after that together again"

    play(url, act)


def test_a_pass_that_cannot_be_stored_holds_up_no_other(url: str) -> None:
    async def act(scene: Scene) -> None:
        records = await scene.add_all()
        recorder = Recorder(scene.store, SEVERITIES, lambda: [], lambda: None, now=time.time)
        for record, count in zip(records, (1, 1, 1 << 70, 1, 1), strict=True):
            passed = replace(record, progress=replace(record.progress, attestation_count=count))
            await recorder.write(record, passed, Accepted(record.progress.checkpoint, QUOTE), None)
        await recorder.flush()
        counts = {name: state[1] for name, state in (await scene.states()).items()}
        assert counts == {name: int(name != IDS[2]) for name in IDS}
        assert recorder.unwritten(AgentId(IDS[2])) is not None

    play(url, act)
