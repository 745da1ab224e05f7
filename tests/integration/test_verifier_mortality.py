"""What one process sees of the others, and what it ends, on a clock that the test moves."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from keylime.database.migrate import prepare_schema
from keylime.database.transactions import Database
from keylime_verifier.agents.shards import SHARDS, MemberId, VerifierId
from keylime_verifier.database.schema import SCHEMA, members, shards
from keylime_verifier.sharing.mortality import Mortality
from tests.fakes.eventual import eventually
from tests.fakes.postgresql import PostgresServer, running_postgresql
from tests.fakes.statements import execute, opened

LEASE_S = 100.0
ME, DEAD, ALIVE, OTHER = (MemberId(letter * 32) for letter in "abcd")


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with running_postgresql() as server:
        yield server


class Group:
    """The members as a database shows them; `renewed` ones renew whenever time passes."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = 1000.0
        self.mortality = Mortality(database, VerifierId("ours"), ME, lease_s=LEASE_S, clock=lambda: self.now)

    async def open(self) -> None:
        await prepare_schema(self.database, SCHEMA, migrate=True)
        owners = [ME, DEAD]
        groups = ((ME, "ours"), (DEAD, "ours"), (ALIVE, "ours"), (OTHER, "another"))
        rows = [
            {"member_id": member, "verifier_id": group, "name": "x:1", "process": "", "expires_at": 0}
            for member, group in groups
        ]
        await execute(self.database, sa.insert(members), parameters=rows)
        owned = [
            {"verifier_id": "ours", "shard": shard, "owner": owners[shard % 2], "epoch": 0}
            for shard in range(SHARDS)
        ]
        await execute(self.database, sa.insert(shards), parameters=owned)
        await self.mortality.look()

    async def pass_time(self, seconds: float, *renewed: str) -> None:
        """Time passes in steps, with a look after each."""
        for _ in range(int(seconds // 50)):
            self.now += 50
            renewal = members.c.expires_at + 1
            is_meant = members.c.member_id.in_(renewed)
            await execute(self.database, sa.update(members).where(is_meant).values(expires_at=renewal))
            await self.mortality.look()


def session(url: str, member: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url, application_name=f"site/keylime_verifier:{member}:1", autocommit=True)


def is_open(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def test_sessions_of_the_dead_end_and_of_no_one_else(tmp_path: Path, postgres: PostgresServer) -> None:
    async def scenario() -> None:
        url = postgres.new_database()
        database = opened(url)
        group = Group(database)
        await group.open()
        dead, alive, other, stranger = (session(url, name) for name in (DEAD, ALIVE, OTHER, "not a member"))
        for one in (dead, alive, other, stranger):
            one.execute("BEGIN")
        await group.pass_time(150, ME, ALIVE)
        assert all(is_open(one) for one in (dead, alive, other, stranger))
        await group.pass_time(50, ME, ALIVE)
        await eventually(lambda: not is_open(dead))
        await group.pass_time(350, ME, ALIVE)
        assert is_open(other), "members of another group may have longer leases"
        await group.pass_time(50, ME, ALIVE)
        await eventually(lambda: not is_open(other))
        assert all(is_open(one) for one in (alive, stranger))
        for one in (dead, alive, other, stranger):
            one.close()
        await database.close()

    asyncio.run(scenario())


def test_who_comes_back_can_renew_its_lease(tmp_path: Path, postgres: PostgresServer) -> None:
    """Its transactions begin and end, which those of a process that has stopped do not."""

    async def scenario() -> None:
        url = postgres.new_database()
        database = opened(url)
        group = Group(database)
        await group.open()
        await group.pass_time(400, ME, ALIVE)
        with closing(session(url, DEAD)) as back:
            for _ in range(4):
                back.execute("BEGIN")
                await group.pass_time(50, ME, ALIVE)
                assert is_open(back)
                back.execute("ROLLBACK")
        await database.close()

    asyncio.run(scenario())


def test_an_outage_is_nobodys_death(tmp_path: Path, postgres: PostgresServer) -> None:
    async def scenario() -> None:
        url = postgres.new_database()
        database = opened(url)
        group = Group(database)
        await group.open()
        with session(url, DEAD) as dead:
            dead.execute("BEGIN")
            group.now += 10 * LEASE_S  # for which nobody could renew, and we could not look
            await group.mortality.look()
            await group.pass_time(LEASE_S, ME)  # in which all that live have renewed theirs
            assert is_open(dead)
        await database.close()

    asyncio.run(scenario())


def test_a_lease_and_shards_that_are_not_what_they_should_be_are_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = opened(f"sqlite:///{tmp_path / 'cv.sqlite'}")
        group = Group(database)
        assert "not reached" in str(await group.mortality.lease_problem())
        await group.open()
        assert await group.mortality.lease_problem() is None
        await group.pass_time(100, ALIVE)
        assert await group.mortality.lease_problem() is None
        await group.pass_time(50, ALIVE)
        assert "the lease has ended" in str(await group.mortality.lease_problem())
        await group.pass_time(50, ME, ALIVE)
        assert await group.mortality.lease_problem() is None
        await group.pass_time(400, ME, ALIVE)
        assert await group.mortality.shards_problem() is None, "half of them is our share"
        await group.pass_time(300, ME)
        assert await group.mortality.shards_problem() is None, "the others are missing, but not for long"
        await group.pass_time(100, ME)
        assert "128 shards that nobody looks after" in str(await group.mortality.shards_problem())
        group.now += 10 * LEASE_S
        assert "not reached" in str(await group.mortality.lease_problem())
        await database.close()

    asyncio.run(scenario())
