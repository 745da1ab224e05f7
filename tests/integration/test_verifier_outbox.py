"""The outbox over real databases: each agent is told what was revoked since it was added, at least once."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime.database.migrate import prepare_schema
from keylime.database.transactions import Database
from keylime.identifiers import AgentId
from keylime_verifier.agents.deliveries import (
    AGENT,
    DELIVERED,
    FAILED,
    PENDING,
    WEBHOOK,
    WRONG_KEY,
    ZEROMQ,
    DeliveryFilter,
    DeliveryState,
)
from keylime_verifier.agents.records import Delivery, DeliveryAttempt, Secrets, StoredRevocation
from keylime_verifier.agents.shards import MemberId, VerifierId
from keylime_verifier.database.changes import Topic
from keylime_verifier.database.schema import SCHEMA, change_counters, deliveries, revocations, shards
from keylime_verifier.polling.store import AgentStore
from keylime_verifier.revocations.delivery_rules import AGENT_WINDOW
from keylime_verifier.revocations.outbox import Outbox, insert_revocation
from keylime_verifier.revocations.overview import read_overview
from tests.fakes.databases import KINDS, SERVERS, DatabaseServer
from tests.fakes.plain_enrolment import plain_enrolment
from tests.fakes.statements import execute, opened, rows_of

ME = MemberId("me")
SITE = VerifierId("default")
HOOK = "https://hook"
NEVER, ALWAYS = 0, 2**31 - 1  # for prune()


@dataclass
class Office:
    """An outbox, and a record of what it must and does deliver."""

    database: Database
    outbox: Outbox = field(init=False)
    owed: dict[str, set[str]] = field(default_factory=dict)  # by agent: the ids it is to be told
    told: dict[str, set[str]] = field(default_factory=dict)  # by agent: the ids that it has taken
    refused: set[tuple[str, str]] = field(default_factory=set)  # with an attempt, and still waiting
    strangers: set[tuple[str, str]] = field(default_factory=set)  # of these, where another key was shown
    made: int = 0

    def __post_init__(self) -> None:
        self.outbox = Outbox(self.database, ME, None, zeromq_enabled=False)

    async def open(self) -> None:
        await prepare_schema(self.database, SCHEMA, migrate=True)
        rows = [{"verifier_id": SITE, "shard": shard, "owner": ME, "epoch": 1} for shard in range(256)]
        await execute(self.database, sa.insert(shards), parameters=rows)

    async def add(self, agent_id: str) -> None:
        if agent_id not in self.owed:
            await AgentStore(self.database).add(plain_enrolment(agent_id, SITE), Secrets(None, ""), "2.5", {})
            self.owed[agent_id] = set()

    async def delete(self, agent_id: str) -> None:
        if agent_id in self.owed:
            await AgentStore(self.database).delete(AgentId(agent_id))
            del self.owed[agent_id]
            self.told.pop(agent_id, None)
            self.refused = {pair for pair in self.refused if pair[0] != agent_id}
            self.strangers = {pair for pair in self.strangers if pair[0] != agent_id}

    async def revoke(self, times: int, *, webhook: bool = False) -> None:
        targets = [(AGENT, "*"), (WEBHOOK, HOOK)] if webhook else [(AGENT, "*")]
        for _ in range(times):
            self.made += 1
            revocation = StoredRevocation(f"r{self.made:05}", AgentId("fallen"), self.made, "{}", "")
            await revoke(self.database, revocation, targets)
            await revoke(self.database, revocation, targets)  # as after a lost answer
            for owed in self.owed.values():
                owed.add(revocation.revocation_id)

    async def attempt(self, states: list[DeliveryState]) -> None:
        """One attempt at everything that is pending, with these outcomes in turn."""
        attempts = []
        for position, delivery in enumerate(await self.window()):
            state = states[position % len(states)]
            tried = replace(delivery, attempts=delivery.attempts + 1)
            attempts.append(DeliveryAttempt(tried, state, None if state == DELIVERED else "no", self.made))
            pair = (delivery.target, delivery.revocation.revocation_id)
            self.refused.discard(pair)
            self.strangers.discard(pair)
            if state in (PENDING, WRONG_KEY):
                self.refused.add(pair)
                if state == WRONG_KEY:
                    self.strangers.add(pair)
            elif delivery.target in self.owed:
                self.owed[delivery.target].discard(pair[1])
                if state == DELIVERED:
                    self.told.setdefault(delivery.target, set()).add(pair[1])
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
        shown = await read_overview(self.database, DeliveryFilter(), 10_000)
        kept_back = Counter(target for target, _ in self.strangers)
        waiting = {target.target: (target.pending, target.wrong_key) for target in shown.targets}
        assert {name: waiting.get(name, (0, 0)) for name in self.owed} == {
            name: (len(owed) - kept_back[name], kept_back[name]) for name, owed in self.owed.items()
        }
        listed = Counter((row.target, row.state) for row in shown.deliveries)
        assert {name: listed[name, PENDING] + listed[name, WRONG_KEY] for name in self.owed} == {
            name: len(owed) for name, owed in self.owed.items()
        }
        assert {name: listed[name, WRONG_KEY] for name in self.owed} == {
            name: kept_back[name] for name in self.owed
        }
        kept = {row.revocation_id for row in await rows_of(self.database, sa.select(revocations))}
        assert DELIVERED not in {row.state for row in await rows_of(self.database, sa.select(deliveries))}
        told = {name: self.told.get(name, set()) & kept for name in self.owed}
        delivered = {target.target: target.delivered for target in shown.targets}
        assert {name: delivered.get(name, 0) for name in told} == {
            name: len(ids) for name, ids in told.items()
        }
        listed_ids: dict[str, set[str]] = {name: set() for name in told}
        for row in shown.deliveries:
            if row.state == DELIVERED:
                listed_ids[row.target].add(row.revocation_id)
        assert listed_ids == told
        assert shown.left_off == 0
        for state in DeliveryState:
            only = await read_overview(self.database, DeliveryFilter(state=state), 10_000)
            assert [row for row in shown.deliveries if row.state == state] == only.deliveries


AGENTS = st.sampled_from(["a", "b", "c"])
OUTCOMES = st.lists(st.sampled_from([DELIVERED, PENDING, WRONG_KEY, FAILED]), min_size=1, max_size=5)
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
        assert await office.pending() == [], "nor anything for those that were deleted meanwhile"
        await office.database.close()

    with TemporaryDirectory() as directory:
        asyncio.run(play(Path(directory)))


async def revoke(
    database: Database, revocation: StoredRevocation, targets: Sequence[tuple[str, str]]
) -> None:
    await database.write(
        "revoke", lambda connection: insert_revocation(connection, revocation, SITE, targets)
    )


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'x.sqlite'}"
    server: DatabaseServer = request.getfixturevalue(SERVERS[request.param])
    return server.new_database()


def test_a_fleet_that_falls_at_once_costs_a_row_for_each_agent_and_not_for_each_pair(url: str) -> None:
    async def play() -> None:
        office = Office(opened(url))
        await office.open()
        names = [f"agent-{number:03}" for number in range(120)]
        for name in names:
            await office.add(name)
        await office.revoke(len(names), webhook=True)
        rows = await rows_of(office.database, sa.select(deliveries))
        assert len(rows) == len(names), "those of the webhook"
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
        shown = await read_overview(office.database, DeliveryFilter(), 7)
        assert sum(target.pending for target in shown.targets) == len(names) * (len(names) + 1)
        assert (len(shown.deliveries), shown.left_off) == (7, len(names) * (len(names) + 1) - 7)
        assert {row.revocation_id for row in shown.deliveries} == {f"r{len(names):05}"}, "the newest"
        one = await read_overview(office.database, DeliveryFilter(AgentId("fallen"), PENDING), 1)
        assert one.left_off == shown.left_off + 6
        none = await read_overview(office.database, DeliveryFilter(AgentId("sound"), PENDING), 1)
        assert (none.targets, none.deliveries, none.left_off) == ([], [], 0)
        await office.database.close()

    asyncio.run(play())


def test_a_fleet_that_takes_everything_leaves_no_rows_and_all_of_it_is_shown(url: str) -> None:
    async def play() -> None:
        office = Office(opened(url))
        await office.open()
        names = [f"agent-{number:02}" for number in range(30)]
        for name in names:
            await office.add(name)
        await office.revoke(len(names))
        await office.attempt([PENDING, DELIVERED])
        while any(office.owed.values()):
            await office.attempt([DELIVERED])
            await office.check()
        assert await rows_of(office.database, sa.select(deliveries)) == []
        shown = await read_overview(office.database, DeliveryFilter(), 10)
        assert {target.target: target.delivered for target in shown.targets} == dict.fromkeys(names, 30)
        assert sum(target.attempts for target in shown.targets) > 30 * 30, "with those in vain"
        assert (len(shown.deliveries), shown.left_off) == (10, 30 * 30 - 10)
        assert {row.updated_at for row in shown.deliveries} == {office.made}
        about = await read_overview(office.database, DeliveryFilter(AgentId("fallen"), DELIVERED), 10)
        assert about.left_off == shown.left_off
        await office.database.close()

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
        await office.database.close()

    asyncio.run(play())


def test_agents_are_read_in_parts_and_none_is_missed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = 3
    monkeypatch.setattr("keylime_verifier.polling.store._LISTED_AT_ONCE", at_once)
    longest: list[int] = []

    def executed(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT") and "FROM agents" in statement:
            longest.append(statement.count("LIMIT"))

    async def play() -> None:
        office = Office(opened(url))
        await office.open()
        names = sorted(f"agent-{number}" for number in range(2 * at_once))
        store = AgentStore(office.database)
        for count, name in enumerate(names):
            assert (await store.list_ids(), set(await store.versions(ME))) == (
                names[:count],
                {*names[:count]},
            )
            await office.add(name)
        sa.event.listen(sa.Engine, "before_cursor_execute", executed)
        try:
            assert await store.list_ids(SITE) == names
            assert list(await store.versions(ME)) == names
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", executed)
        assert longest == [1] * 6, "three parts each, of which the last is empty"
        assert [await store.any_more_than(limit, SITE) for limit in (5, 6)] == [True, False]
        assert not await store.any_more_than(0, VerifierId("another site"))
        await office.database.close()

    asyncio.run(play())


BROKER = "tcp://here"


def test_what_was_published_lately_is_known_after_a_restart_but_nothing_of_ended_enrolments(
    url: str,
) -> None:
    async def play() -> None:
        office = Office(opened(url))
        await office.open()
        outbox = Outbox(office.database, ME, BROKER, zeromq_enabled=True)
        now = int(time.time())

        async def publish(agent_id: str, at: int, *brokers: str) -> None:
            name = f"{agent_id} {at - now}"
            revocation = StoredRevocation(name, AgentId(agent_id), at, name, "")
            targets = [(ZEROMQ, broker) for broker in brokers]
            await revoke(office.database, revocation, targets)
            done = [
                DeliveryAttempt(Delivery(revocation, ZEROMQ, broker, 1), DELIVERED, None, at)
                for broker in brokers[:1]
            ]
            await outbox.record_attempts(done)

        for name in ("sound", "deleted", "again"):
            await office.add(name)
            await publish(name, now - 500, BROKER)
        await office.delete("deleted")
        await office.delete("again")
        await office.add("again")
        await publish("again", now - 400, "tcp://elsewhere")
        await publish("sound", now - 300, BROKER, "tcp://elsewhere")
        await publish("sound", now - 200, "tcp://elsewhere", BROKER)
        await publish("sound", now - 700, BROKER)
        found = await outbox.recently_published(SITE)
        assert [signed.msg for signed, _ in found] == ["sound -500", "again -400", "sound -300"]
        assert all(
            0 <= age_s - expected < 100 for (_, age_s), expected in zip(found, (500, 400, 300), strict=True)
        )
        assert await outbox.recently_published(VerifierId("another site")) == []
        await office.database.close()

    asyncio.run(play())


def test_the_last_word_about_an_agent_is_the_one_that_was_said_last(url: str) -> None:
    """Whatever the clock was then: else a machine that is well again would go on being distrusted."""

    async def play() -> None:
        office = Office(opened(url))
        await office.open()
        await office.add("a")
        store, now = AgentStore(office.database), int(time.time())
        for kind, at, stands in (
            ("revocation", now, True),
            ("cleared", now + 366 * 86400, False),
            ("revocation", now + 5, True),
            ("cleared", now - 86400, False),
        ):
            text = f'{{"type": "{kind}", "agent_id": "a"}}'
            revocation = StoredRevocation(f"{kind} {at}", AgentId("a"), at, text, "")
            await revoke(office.database, revocation, [(ZEROMQ, BROKER)])
            assert await store.stands_revoked(AgentId("a")) is stands
        await office.database.close()

    asyncio.run(play())


def test_warnings_of_agents_that_are_gone_anew_or_well_again_are_over(url: str) -> None:
    async def play() -> None:
        office = Office(opened(url))
        await office.open()
        outbox = Outbox(office.database, ME, BROKER, zeromq_enabled=True)
        now = int(time.time())

        async def publish(agent_id: str, kind: str, at: int, state: DeliveryState = DELIVERED) -> None:
            text = f'{{"type": "{kind}", "agent_id": "{agent_id}", "at": {at - now}}}'
            revocation = StoredRevocation(f"{agent_id} {kind} {at - now}", AgentId(agent_id), at, text, "")
            await revoke(office.database, revocation, [(ZEROMQ, BROKER)])
            if state != PENDING:
                delivery = Delivery(revocation, ZEROMQ, BROKER, 1)
                await outbox.record_attempts([DeliveryAttempt(delivery, state, None, at)])

        async def over() -> list[tuple[str, int]]:
            found = [json.loads(signed.msg) for signed in await outbox.over(SITE)]
            return sorted((one["agent_id"], one["at"]) for one in found)

        for name in ("well", "relapsed", "fallen", "deleted", "again"):
            await office.add(name)
            await publish(name, "revocation", now - 500)
        assert await over() == []
        await publish("well", "comm_error", now - 450, PENDING)
        await publish("well", "cleared", now - 400)
        await publish("relapsed", "cleared", now - 400)
        await publish("relapsed", "revocation", now - 300)
        await office.delete("deleted")
        await office.delete("again")
        await office.add("again")
        await publish("again", "revocation", now - 100)
        await publish("well", "revocation", now - 700)
        await publish("well", "cleared", now - 90)
        assert await over() == [
            ("again", -500),
            ("deleted", -500),
            ("relapsed", -500),
            ("well", -500),
            ("well", -450),
        ]
        assert await outbox.over(VerifierId("another site")) == []
        repeated = [json.loads(signed.msg) for signed, _ in await outbox.recently_published(SITE)]
        assert [(one["agent_id"], one["type"], one["at"]) for one in repeated] == [
            ("fallen", "revocation", -500),
            ("well", "cleared", -400),
            ("relapsed", "cleared", -400),
            ("relapsed", "revocation", -300),
            ("again", "revocation", -100),
            ("well", "cleared", -90),
        ]
        await office.database.close()

    asyncio.run(play())


async def _go_back(database: Database, number: int) -> None:
    """As when a standby takes over that has not got what came after the revocation with this number."""
    topic = change_counters.c.topic == Topic.REVOCATIONS.value
    await execute(
        database,
        sa.delete(revocations).where(revocations.c.number > number),
        sa.update(change_counters).where(topic).values(changes=number),
    )


def test_numbers_that_a_promoted_standby_uses_again_hide_nothing(url: str) -> None:
    async def told(office: Office, delivery: Delivery) -> bool:
        tried = replace(delivery, attempts=delivery.attempts + 1)
        return await office.outbox.record_attempts([DeliveryAttempt(tried, DELIVERED, None, 1)])

    async def play() -> None:
        office = Office(opened(url))
        await office.open()
        await office.add("a")
        await office.revoke(3)
        lost = await office.window()
        await _go_back(office.database, 0)
        office.owed["a"].clear()
        await office.revoke(3)
        for delivery in lost:
            await told(office, delivery)  # they arrived, but nobody has them any more
        await office.check()
        await office.revoke(1)
        # A carrier that goes on where it was before.
        (after,) = await office.outbox.following(AgentId("a"), 3, 1)
        assert not await told(office, after)
        await office.check()
        # The verdict of one that was lost is written once more: its revocation has another number now.
        (renumbered, *_) = (delivery for delivery in lost if delivery.number == 3)
        await _go_back(office.database, 0)
        office.owed["a"].clear()
        await revoke(office.database, renumbered.revocation, [(AGENT, "*")])
        office.owed["a"].add(renumbered.revocation.revocation_id)
        await office.revoke(2)
        assert not await told(office, renumbered)
        await office.check()
        await office.attempt([DELIVERED])
        await office.check()
        assert office.owed["a"] == set()
        await office.database.close()

    asyncio.run(play())


def test_the_late_record_of_another_carrier_takes_nothing_back(url: str) -> None:
    async def play() -> None:
        office = Office(opened(url))
        await office.open()
        await office.add("a")
        await office.revoke(2)
        early = await office.pending()
        await office.attempt([DELIVERED])
        late = [DeliveryAttempt(replace(delivery, attempts=1), PENDING, "no", 1) for delivery in early]
        await office.outbox.record_attempts(late)
        await office.outbox.record_attempts(late[:1])
        assert await office.pending() == []
        await office.outbox.prune(ALWAYS)
        await office.outbox.record_attempts(late)  # of revocations that are forgotten
        assert await office.pending() == []
        await office.database.close()

    asyncio.run(play())
