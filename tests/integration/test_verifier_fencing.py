"""What the store makes of verdicts that come late, from others, or twice; on both databases."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from keylime.database.migrate import prepare_schema
from keylime.database.transactions import Database
from keylime.messages.verifier import OperationalState
from keylime_verifier.agents.deliveries import AGENT
from keylime_verifier.agents.policy_categories import RUNTIME
from keylime_verifier.agents.records import AgentRecord, HeldVersions, Progress, Secrets, StoredRevocation
from keylime_verifier.agents.shards import SHARDS, MemberId, ShardClaim
from keylime_verifier.database.schema import SCHEMA
from keylime_verifier.polling.fencing import Ruling
from keylime_verifier.polling.store import AgentStore
from tests.fakes.databases import KINDS, SERVERS, DatabaseServer
from tests.fakes.statements import execute, opened, rows_of
from tests.unit.verifier.test_status import ENROLMENT

NAMED = replace(ENROLMENT, runtime_policy="policy", measured_boot_policy=None)
TARGETS = [(AGENT, "*")]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite'}"
    server: DatabaseServer = request.getfixturevalue(SERVERS[request.param])
    return server.new_database()


class Scene:
    """An agent that `mine` was adopted by, and that `they` may take over."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store = AgentStore(database)
        self.held_to = HeldVersions()

    async def begin(self) -> AgentRecord:
        """The agent, as its owner read it."""
        await prepare_schema(self.database, SCHEMA, migrate=True)
        await execute(
            self.database,
            "INSERT INTO shards VALUES (:verifier, :shard, 'me', 7)",
            parameters=[{"verifier": NAMED.verifier_id, "shard": shard} for shard in range(SHARDS)],
        )
        record = await self.store.add(NAMED, Secrets(None, ""), "2.5", {(RUNTIME, "policy"): "{}"})
        assert record.claim == ShardClaim(MemberId("me"), 7)
        self.held_to = (await self.store.versions(MemberId("me")))[record.agent_id].policies
        return record

    async def they_take_over(self) -> None:
        """In the very same epoch, as after a fail-over that lost one."""
        await self.execute("UPDATE shards SET owner = 'they'")

    async def execute(self, statement: str) -> None:
        await execute(self.database, statement)

    async def rows(self, query: str) -> list[tuple[object, ...]]:
        return [tuple(row) for row in await rows_of(self.database, query)]

    async def current(self, record: AgentRecord) -> AgentRecord:
        """As it is stored now."""
        found = await self.store.find(record.agent_id)
        assert found is not None
        return found

    async def reject(self, record: AgentRecord, number: str, *, level: int = 5) -> Ruling:
        """Writes a final rejection, with revocation `number`."""
        agent_id = record.agent_id
        revocation = StoredRevocation(number, agent_id, 2_000_000_000, "{}", "")
        return await self.store.record_change(
            rejected(record, level), revocation, TARGETS, held_to=self.held_to
        )

    async def revocations(self) -> list[object]:
        return [row[0] for row in await self.rows("SELECT revocation_id FROM revocations ORDER BY 1")]

    async def announced(self) -> object:
        return (await self.rows("SELECT changes FROM change_counters WHERE topic = 'agents'"))[0][0]


def passed(record: AgentRecord, count: int) -> AgentRecord:
    progress = replace(record.progress, operational_state=OperationalState.GET_QUOTE, attestation_count=count)
    return replace(record, progress=progress)


def rejected(record: AgentRecord, level: int) -> AgentRecord:
    progress: Progress = replace(
        record.progress,
        operational_state=OperationalState.INVALID_QUOTE,
        severity_level=level,
        last_event_id="ima.x",
        is_polled=False,
    )
    return replace(record, progress=progress)


def play(url: str, act: Callable[[Scene, AgentRecord], Awaitable[None]]) -> None:
    async def run() -> None:
        database = opened(url)
        try:
            scene = Scene(database)
            await act(scene, await scene.begin())
        finally:
            await database.close()

    asyncio.run(run())


def test_passes_of_a_former_owner_are_refused_and_the_new_one_is_told(url: str) -> None:
    async def act(scene: Scene, record: AgentRecord) -> None:
        assert await scene.store.record_passes([passed(record, 1)]) == []
        await scene.they_take_over()
        announced = await scene.announced()
        (refusal,) = await scene.store.record_passes([passed(record, 2)])
        assert (refusal.ruling, refusal.record.agent_id) == (Ruling.TAKEN_OVER, record.agent_id)
        assert await scene.store.record_change(passed(record, 3), None, TARGETS) is Ruling.TAKEN_OVER
        now = await scene.current(record)
        assert (now.progress.attestation_count, now.recalls) == (1, 2)
        assert await scene.announced() != announced
        version = (await scene.store.versions(MemberId("they")))[record.agent_id]
        assert version.row == now.row_version

    play(url, act)


def test_a_rejection_of_a_former_owner_counts_once_and_no_pass_of_the_new_one_covers_it(url: str) -> None:
    async def act(scene: Scene, record: AgentRecord) -> None:
        await scene.they_take_over()
        theirs = await scene.current(record)
        await scene.store.record_passes([passed(theirs, 40)])
        assert await scene.reject(record, "one") is Ruling.COUNTS
        assert await scene.reject(record, "one") is Ruling.KNOWN, "its commit was not confirmed"
        assert await scene.reject(theirs, "two") is Ruling.KNOWN, "they have found it as well"
        assert await scene.store.record_passes([passed(theirs, 41)]) == []
        (refusal,) = await scene.store.record_passes([passed(record, 41)])
        assert refusal.ruling is Ruling.TAKEN_OVER
        assert await scene.store.record_change(passed(theirs, 42), None, TARGETS) is Ruling.RECALLED
        now = await scene.current(record)
        assert now.progress.operational_state is OperationalState.INVALID_QUOTE
        assert (now.progress.attestation_count, now.progress.is_polled) == (40, False)
        assert await scene.revocations() == ["one"]
        assert await scene.reject(theirs, "three", level=6) is Ruling.COUNTS, "graver ones are told"
        assert await scene.revocations() == ["one", "three"]

    play(url, act)


def test_the_owners_rejection_is_written_once_although_its_commit_was_not_confirmed(url: str) -> None:
    async def act(scene: Scene, record: AgentRecord) -> None:
        assert await scene.reject(record, "one") is Ruling.COUNTS
        assert await scene.reject(record, "one") is Ruling.KNOWN
        assert await scene.revocations() == ["one"]
        assert (await scene.current(record)).recalls == 0

    play(url, act)


@pytest.mark.parametrize("is_owner", [True, False])
def test_a_rejection_under_policies_that_have_been_replaced_does_not_count(url: str, is_owner: bool) -> None:
    async def act(scene: Scene, record: AgentRecord) -> None:
        if not is_owner:
            await scene.they_take_over()
        await scene.execute("INSERT INTO policy_texts VALUES ('newer', '{}')")
        await scene.execute("UPDATE policies SET content_hash = 'newer'")
        assert await scene.reject(record, "one") is Ruling.POLICIES_REPLACED
        now = await scene.current(record)
        assert now.progress.operational_state is OperationalState.START
        assert now.recalls == (0 if is_owner else 1)
        assert await scene.revocations() == []

    play(url, act)


def test_a_rejection_of_a_former_enrolment_does_not_count(url: str) -> None:
    async def act(scene: Scene, record: AgentRecord) -> None:
        await scene.store.begin_again(record.agent_id, OperationalState.START)
        assert await scene.reject(record, "one") is Ruling.ENROLLED_ANEW
        await scene.store.delete(record.agent_id)
        assert await scene.reject(record, "one") is Ruling.DELETED
        assert await scene.revocations() == []

    play(url, act)


def test_silence_that_a_former_owner_met_says_nothing(url: str) -> None:
    async def act(scene: Scene, record: AgentRecord) -> None:
        await scene.they_take_over()
        silent = replace(
            record,
            progress=replace(record.progress, operational_state=OperationalState.FAILED, is_polled=False),
        )
        revocation = StoredRevocation("one", record.agent_id, 2_000_000_000, "{}", "")
        assert await scene.store.record_change(silent, revocation, TARGETS) is Ruling.TAKEN_OVER
        assert await scene.revocations() == []
        assert (await scene.current(record)).progress.is_polled

    play(url, act)
