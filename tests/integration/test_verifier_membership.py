"""Members of a group that stop, come back, and find another database than they left; on both databases."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from keylime.database.clock import DatabaseClock
from keylime.database.migrate import prepare_schema
from keylime.database.transactions import Database
from keylime_verifier.agents.shards import SHARDS, VerifierId
from keylime_verifier.database.history import History
from keylime_verifier.database.schema import SCHEMA
from keylime_verifier.sharing.lineage import Lineage
from keylime_verifier.sharing.lineage_query import read_lineage
from keylime_verifier.sharing.membership import Member, Membership
from keylime_verifier.sharing.process_identity import ProcessIdentity
from tests.fakes.databases import KINDS, SERVERS, DatabaseServer
from tests.fakes.eventual import eventually
from tests.fakes.postgresql import PostgresServer
from tests.fakes.statements import execute, opened, rows_of

LEASE_S = 2.0
LIMIT_S = 100.0


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'group.sqlite'}"
    server: DatabaseServer = request.getfixturevalue(SERVERS[request.param])
    return server.new_database()


@asynccontextmanager
async def nothing_to_let_go(_shards: frozenset[int]) -> AsyncIterator[None]:
    yield


class Group:
    """Members in this process, each of which can be stopped for a while."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._running: dict[str, asyncio.Task[None]] = {}
        self.moves = 0

    def new(self) -> tuple[str, Membership]:
        """Another member, by its id; it has not joined."""
        member = Member.new(VerifierId("site"), None)
        membership = Membership(
            self._database,
            member,
            lease_s=LEASE_S,
            clock=DatabaseClock(),
            let_go=nothing_to_let_go,
            on_moves=self._count,
            tell=History(self._database, 0).tell,
        )
        return member.member_id, membership

    def _count(self) -> None:
        self.moves += 1

    def run(self, name: str, membership: Membership) -> None:
        """It renews its lease from now on."""
        self._running[name] = asyncio.create_task(membership.run())

    async def stop(self, *names: str) -> None:
        """They do nothing until they are run again, like processes that are stopped."""
        tasks = [self._running.pop(name) for name in names]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def change(self, statement: str) -> None:
        await execute(self._database, statement)

    async def shares(self) -> dict[object, int]:
        """How many shards each has."""
        rows = await rows_of(self._database, "SELECT owner, count(*) AS number FROM shards GROUP BY owner")
        return {row.owner: row.number for row in rows}

    async def told(self) -> list[dict[str, object]]:
        """What the history was told of takeovers."""
        rows = await rows_of(self._database, "SELECT details FROM events WHERE kind = 'taken_over'")
        return [json.loads(row.details) for row in rows]

    async def epochs(self) -> set[int]:
        rows = await rows_of(self._database, "SELECT DISTINCT epoch FROM shards")
        return {row.epoch for row in rows}

    async def known(self) -> set[str]:
        """The members that the database has."""
        return {row.member_id for row in await rows_of(self._database, "SELECT member_id FROM members")}

    async def until_shared(self, count: int) -> None:
        """Returns when so many members have all shards among them."""

        async def is_shared() -> bool:
            shares = await self.shares()
            return None not in shares and len(shares) == count and set(shares.values()) == {SHARDS // count}

        await eventually(is_shared, limit_s=LIMIT_S)


def play(url: str, act: Callable[[Group], Awaitable[None]]) -> None:
    async def run() -> None:
        database = opened(url)
        await prepare_schema(database, SCHEMA, migrate=True)
        group = Group(database)
        try:
            await act(group)
        finally:
            await group.stop(*group._running)
            await database.close()

    asyncio.run(run())


def test_a_verifier_alone_has_all_shards_when_it_has_joined(url: str) -> None:
    async def act(group: Group) -> None:
        name, member = group.new()
        await member.join()
        assert await group.shares() == {name: SHARDS}
        assert member.holds_lease

    play(url, act)


def test_who_joins_takes_nothing_from_a_silent_member_before_a_lease_is_over(url: str) -> None:
    async def act(group: Group) -> None:
        silent, first = group.new()
        await first.join()
        await asyncio.sleep(2 * LEASE_S)  # its lease, as anybody would have counted it
        name, second = group.new()
        await second.join()
        assert await group.shares() == {silent: SHARDS}
        group.run(name, second)
        await asyncio.sleep(LEASE_S / 2)
        assert await group.shares() == {silent: SHARDS}

        async def has_all() -> bool:
            return await group.shares() == {name: SHARDS}

        await eventually(has_all, limit_s=LIMIT_S)
        await eventually(group.told, limit_s=LIMIT_S)
        (told,) = await group.told()
        assert (told["shards"], told["of"]) == (SHARDS, SHARDS)

    play(url, act)


def test_a_member_that_has_ended_loses_its_shards_at_once_and_its_row_when_all_have_seen_it(url: str) -> None:
    """Whoever never saw the row would not end the sessions that it left behind."""
    own = ProcessIdentity.own()
    if own is None:
        pytest.skip("this kernel does not tell which processes have ended")
    gone = replace(own, born=own.born + 1)

    async def act(group: Group) -> None:
        dead, first = group.new()
        await first.join()
        await group.change(f"UPDATE members SET process = '{gone}'")  # noqa: S608 - made here
        name, second = group.new()
        await second.join()
        assert await group.shares() == {name: SHARDS}
        assert await group.known() == {name, dead}
        group.run(name, second)

        async def is_forgotten() -> bool:
            return await group.known() == {name}

        await eventually(is_forgotten, limit_s=LIMIT_S)

    play(url, act)


def test_what_keeps_all_from_renewing_their_leases_ends_none(url: str) -> None:
    async def act(group: Group) -> None:
        members = dict([group.new(), group.new()])
        for name, member in members.items():
            await member.join()
            group.run(name, member)
        await group.until_shared(2)
        before, epochs = await group.shares(), await group.epochs()
        for _ in range(2):
            await group.stop(*members)
            await asyncio.sleep(2 * LEASE_S)
            assert not any(member.holds_lease for member in members.values())
            for name, member in members.items():
                group.run(name, member)
            await asyncio.sleep(2 * LEASE_S)
            assert (await group.shares(), await group.epochs()) == (before, epochs)

    play(url, act)


@pytest.mark.parametrize(
    "loss", ["UPDATE members SET renewals = renewals - 1", "DELETE FROM members"], ids=["older", "gone"]
)
def test_who_finds_another_renewal_than_its_own_last_one_begins_new_epochs(url: str, loss: str) -> None:
    async def act(group: Group) -> None:
        name, member = group.new()
        await member.join()
        epochs, moves = await group.epochs(), group.moves
        await group.change(loss)
        group.run(name, member)

        async def has_begun_again() -> bool:
            return not (await group.epochs() & epochs)

        await eventually(has_begun_again, limit_s=LIMIT_S)
        assert await group.shares() == {name: SHARDS}
        await eventually(lambda: group.moves > moves, limit_s=LIMIT_S)
        epochs = await group.epochs()
        await asyncio.sleep(LEASE_S)
        assert await group.epochs() == epochs, "once"

    play(url, act)


def test_no_epoch_comes_a_second_time(url: str) -> None:
    async def act(group: Group) -> None:
        seen: set[int] = set()
        for _ in range(3):
            _, member = group.new()
            await member.join()
            epochs = await group.epochs()
            assert not (epochs & seen)
            seen |= epochs
            await member.leave()

    play(url, act)


def test_the_lineage_of_a_cluster_is_known_to_any_user_unless_it_is_forbidden(
    postgres: PostgresServer,
) -> None:
    url = postgres.new_database()
    forbidden = ("pg_control_system()", "pg_walfile_name(pg_lsn)")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE plain LOGIN")

    async def look() -> Lineage:
        database = opened(url.replace("postgres@", "plain@"))
        lineage = await database.read("look", read_lineage)
        await database.close()
        return lineage

    known = asyncio.run(look())
    assert (known.system is not None, known.timeline) == (True, "00000001")
    with psycopg.connect(url, autocommit=True) as connection:
        for function in forbidden:
            connection.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC".encode())
    assert asyncio.run(look()) == Lineage()
