"""The outbox over real databases: each agent is told what was revoked since it was added, at least once."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from keylime.database.engine import open_engine, parse_database_url
from keylime.database.migrate import prepare_schema
from keylime.identifiers import AgentId
from keylime_verifier.assembly import SCHEMA
from keylime_verifier.delivery_overview import DeliveryFilter, read_overview
from keylime_verifier.outbox import (
    AGENT,
    AGENT_WINDOW,
    DELIVERED,
    FAILED,
    PENDING,
    WEBHOOK,
    Outbox,
    insert_revocation,
)
from keylime_verifier.records import Attempt, Delivery, Enrolment, Secrets, StoredRevocation
from keylime_verifier.schema import deliveries, shards
from keylime_verifier.store import AgentStore
from keylime_verifier.transactions import write
from tests.fakes.postgresql import PostgresServer, running_postgresql

ME = "me"
SITE = "default"
HOOK = "https://hook"
NEVER, ALWAYS = 0, 2**31 - 1  # for prune()


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgresql() as server:
        yield server


def enrolment(agent_id: str) -> Enrolment:
    return Enrolment(
        agent_id=AgentId(agent_id),
        ip="127.0.0.1",
        port=9002,
        mtls_cert=None,
        ak_tpm="",
        verifier_id=SITE,
        verifier_ip=None,
        verifier_port=None,
        has_v=False,
        meta_data="{}",
        tpm_policy="{}",
        runtime_policy="",
        measured_boot_policy=None,
        ima_sign_verification_keys="",
        accept_tpm_hash_algs=(),
        accept_tpm_encryption_algs=(),
        accept_tpm_signing_algs=(),
    )


@dataclass
class Office:
    """An outbox, and a record of what it must and does deliver."""

    engine: AsyncEngine
    outbox: Outbox = field(init=False)
    owed: dict[str, set[str]] = field(default_factory=dict)  # by agent: the ids it is to be told
    told: Counter[tuple[str, str]] = field(default_factory=Counter)  # (agent, id)
    refused: set[tuple[str, str]] = field(default_factory=set)  # with an attempt, and still pending
    made: int = 0

    def __post_init__(self) -> None:
        self.outbox = Outbox(self.engine, ME, None, zeromq_enabled=False)

    async def open(self) -> None:
        await prepare_schema(self.engine, SCHEMA, migrate=True)
        async with write(self.engine, "own everything") as connection:
            rows = [{"verifier_id": SITE, "shard": shard, "owner": ME, "epoch": 1} for shard in range(256)]
            await connection.execute(sa.insert(shards), rows)

    async def add(self, agent_id: str) -> None:
        if agent_id not in self.owed:
            await AgentStore(self.engine).add(enrolment(agent_id), Secrets(None, ""), "2.5", {})
            self.owed[agent_id] = set()

    async def delete(self, agent_id: str) -> None:
        if agent_id in self.owed:
            await AgentStore(self.engine).delete(AgentId(agent_id))
            del self.owed[agent_id]
            self.refused = {pair for pair in self.refused if pair[0] != agent_id}

    async def revoke(self, times: int, *, webhook: bool = False) -> None:
        targets = [(AGENT, "*"), (WEBHOOK, HOOK)] if webhook else [(AGENT, "*")]
        for _ in range(times):
            self.made += 1
            revocation = StoredRevocation(f"r{self.made:05}", AgentId("fallen"), self.made, "{}", "")
            async with write(self.engine, "revoke") as connection:
                await insert_revocation(connection, revocation, SITE, targets)
                await insert_revocation(connection, revocation, SITE, targets)  # as after a lost answer
            for owed in self.owed.values():
                owed.add(revocation.revocation_id)

    async def attempt(self, states: list[str]) -> None:
        """One attempt at everything that is pending, with these outcomes in turn."""
        attempts = []
        for position, delivery in enumerate(await self.window()):
            state = states[position % len(states)]
            tried = replace(delivery, attempts=delivery.attempts + 1)
            attempts.append(Attempt(tried, state, None if state == DELIVERED else "no", self.made))
            pair = (delivery.target, delivery.revocation.revocation_id)
            self.refused.discard(pair)
            if state == PENDING:
                self.refused.add(pair)
            elif delivery.target in self.owed:
                self.owed[delivery.target].discard(pair[1])
                self.told[pair] += 1
        await self.outbox.record_attempts(attempts)

    async def pending(self) -> list[Delivery]:
        return [delivery for delivery in await self.outbox.pending() if delivery.channel == AGENT]

    async def window(self) -> list[Delivery]:
        """What is pending, and what follows it in the backlogs."""
        found = await self.pending()
        taken = Counter(delivery.target for delivery in found)
        for delivery in tuple(found):
            if delivery.number is not None:
                room = AGENT_WINDOW - taken[delivery.target]
                found += await self.outbox.following(AgentId(delivery.target), delivery.number, room)
        return found

    async def check(self) -> None:
        """What the outbox offers is owed, oldest first, within the window; what it shows is the truth."""
        offered: dict[str, list[str]] = {}
        for delivery in await self.window():
            if delivery.target in self.owed:
                offered.setdefault(delivery.target, []).append(delivery.revocation.revocation_id)
        for agent_id, owed in self.owed.items():
            tried = {name for target, name in self.refused if target == agent_id}
            untried = sorted(owed - tried)
            assert set(offered.get(agent_id, [])) == tried | set(untried[: AGENT_WINDOW - len(tried)])
        assert set(offered) == {agent_id for agent_id, owed in self.owed.items() if owed}
        shown = await read_overview(self.engine, DeliveryFilter(), 10_000)
        waiting = {target.target: target.pending for target in shown.targets if target.pending}
        assert {name: waiting.get(name, 0) for name in self.owed} == {
            name: len(owed) for name, owed in self.owed.items()
        }
        listed = Counter(row.target for row in shown.deliveries if row.state == PENDING)
        assert {name: listed[name] for name in self.owed} == {
            name: len(owed) for name, owed in self.owed.items()
        }
        assert shown.left_off == 0


AGENTS = st.sampled_from(["a", "b", "c"])
OUTCOMES = st.lists(st.sampled_from([DELIVERED, PENDING, FAILED]), min_size=1, max_size=5)
STEPS = st.one_of(
    st.tuples(st.just("add"), AGENTS),
    st.tuples(st.just("delete"), AGENTS),
    st.tuples(st.just("revoke"), st.integers(1, AGENT_WINDOW + 4)),
    st.tuples(st.just("attempt"), OUTCOMES),
    st.tuples(st.just("prune"), st.sampled_from([NEVER, ALWAYS])),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(STEPS, max_size=14))
def test_whatever_happens_each_agent_is_owed_what_was_revoked_since_it_was_added(
    steps: list[tuple[str, object]],
) -> None:
    async def play(directory: Path) -> None:
        office = Office(opened(f"sqlite:///{directory / 'outbox.sqlite'}"))
        await office.open()
        await office.add("a")
        for name, argument in steps:
            if name == "prune":
                assert isinstance(argument, int)
                await office.outbox.prune(argument)
            else:
                await getattr(office, name)(argument)
            await office.check()
        while any(office.owed.values()):
            await office.attempt([DELIVERED])
        assert await office.pending() == []
        await office.engine.dispose()

    with TemporaryDirectory() as directory:
        asyncio.run(play(Path(directory)))


def opened(url: str) -> AsyncEngine:
    return open_engine(parse_database_url(url, work_dir=Path("/nowhere"), sqlite_name=""))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, postgres: PostgresServer) -> str:
    return postgres.new_database() if request.param == "postgresql" else f"sqlite:///{tmp_path / 'x.sqlite'}"


def test_a_fleet_that_falls_at_once_costs_a_row_for_each_agent_and_not_for_each_pair(url: str) -> None:
    async def play() -> None:
        office = Office(opened(url))
        await office.open()
        names = [f"agent-{number:03}" for number in range(120)]
        for name in names:
            await office.add(name)
        await office.revoke(len(names), webhook=True)
        async with office.engine.connect() as connection:
            rows = (await connection.execute(sa.select(sa.func.count()).select_from(deliveries))).scalar()
        assert rows == len(names), "those of the webhook"
        offered = await office.pending()
        assert Counter(delivery.target for delivery in offered) == dict.fromkeys(names, 1)
        assert len({id(delivery.revocation) for delivery in offered}) == 1, "each message once"
        # One that refuses everything gets a window full of rows, and then nothing new.
        for _ in range(3):
            await office.attempt([PENDING])
        again = await office.pending()
        assert Counter(delivery.target for delivery in again) == dict.fromkeys(names, AGENT_WINDOW)
        assert {delivery.revocation.revocation_id for delivery in again} == {
            f"r{number:05}" for number in range(1, AGENT_WINDOW + 1)
        }
        assert {delivery.attempts for delivery in again} == {3}
        shown = await read_overview(office.engine, DeliveryFilter(), 7)
        assert sum(target.pending for target in shown.targets) == len(names) * (len(names) + 1)
        assert (len(shown.deliveries), shown.left_off) == (7, len(names) * (len(names) + 1) - 7)
        assert {row.revocation_id for row in shown.deliveries} == {f"r{len(names):05}"}, "the newest"
        one = await read_overview(office.engine, DeliveryFilter(AgentId("fallen"), PENDING), 1)
        assert one.left_off == shown.left_off + 6
        none = await read_overview(office.engine, DeliveryFilter(AgentId("sound"), PENDING), 1)
        assert (none.targets, none.deliveries, none.left_off) == ([], [], 0)
        await office.engine.dispose()

    asyncio.run(play())


def test_what_agents_have_not_been_told_is_not_forgotten(url: str) -> None:
    async def play() -> None:
        office = Office(opened(url))
        await office.open()
        await office.add("a")
        await office.revoke(3)
        assert await office.outbox.prune(ALWAYS) == 0
        await office.attempt([DELIVERED, PENDING, FAILED])
        assert await office.outbox.prune(ALWAYS) == 2
        await office.attempt([DELIVERED])
        assert await office.outbox.prune(ALWAYS) == 1
        await office.engine.dispose()

    asyncio.run(play())


def test_the_late_record_of_another_carrier_takes_nothing_back(url: str) -> None:
    async def play() -> None:
        office = Office(opened(url))
        await office.open()
        await office.add("a")
        await office.revoke(2)
        early = await office.pending()
        await office.attempt([DELIVERED])
        late = [Attempt(replace(delivery, attempts=1), PENDING, "no", 1) for delivery in early]
        await office.outbox.record_attempts(late)
        await office.outbox.record_attempts(late[:1])
        assert await office.pending() == []
        await office.outbox.prune(ALWAYS)
        await office.outbox.record_attempts(late)  # of revocations that are forgotten
        assert await office.pending() == []
        await office.engine.dispose()

    asyncio.run(play())
