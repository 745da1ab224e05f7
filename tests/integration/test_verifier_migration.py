"""A database of the first release, with agents and revocations in it, under this one."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import psycopg
import sqlalchemy as sa

from keylime.database.clock import DatabaseClock
from keylime.database.migrate import prepare_schema
from keylime.database.transactions import Database
from keylime.identifiers import AgentId
from keylime_verifier.agents.deliveries import AGENT, DeliveryFilter
from keylime_verifier.agents.records import Secrets, StoredRevocation
from keylime_verifier.agents.shards import SHARDS, MemberId, VerifierId
from keylime_verifier.database.schema import SCHEMA, metadata
from keylime_verifier.polling.store import AgentStore
from keylime_verifier.revocations.outbox import Outbox, insert_revocation
from keylime_verifier.revocations.overview import read_overview
from keylime_verifier.sharing.membership import Member, Membership
from tests.fakes.eventual import eventually
from tests.fakes.plain_enrolment import plain_enrolment
from tests.fakes.postgresql import PostgresServer
from tests.fakes.statements import execute, opened, rows_of

DUMP = Path(__file__).parents[1] / "data/databases/verifier-v0001.sql"


def stored_in_sqlite(directory: Path) -> str:
    with closing(sqlite3.connect(directory / "old.sqlite")) as connection:
        connection.executescript(DUMP.read_text())
    return f"sqlite:///{directory / 'old.sqlite'}"


def stored_in_postgresql(server: PostgresServer) -> str:
    """The dump is plain SQL that PostgreSQL understands as well, but for the order that its keys demand."""
    url = server.new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        lines = DUMP.read_text().replace("BEGIN TRANSACTION;", "").replace("COMMIT;", "")
        tables = sorted(
            (part for part in lines.split(";\n") if "CREATE TABLE" in part),
            key=lambda statement: "FOREIGN KEY" in statement,
        )
        rows = [part for part in lines.split(";\n") if part.strip().startswith("INSERT")]
        for statement in (*tables, "SET session_replication_role = replica", *rows):
            connection.execute(statement.encode())
    return url


def check(url: str) -> None:
    """What holds after the migration, whatever the database is."""

    async def scenario() -> None:
        database = opened(url)
        await prepare_schema(database, SCHEMA, migrate=True)
        store = AgentStore(database)
        ids = await store.list_ids(VerifierId("site-a"))
        records = {record.agent_id: record for record in await store.load(ids)}
        assert {name: record.progress.is_polled for name, record in records.items()} == {
            "agent-1": True,
            "agent-2": False,
            "agent-3": False,
            "agent-4": True,
        }
        assert {record.progress.attestation_count for record in records.values()} == {63, 12, 16, 56}
        stored = await rows_of(database, "SELECT agent_id, shard FROM agents")
        assert {(row.agent_id, row.shard) for row in stored} == {
            (name, record.shard) for name, record in records.items()
        }
        await execute(
            database,
            "INSERT INTO shards VALUES ('site-a', :shard, 'me', 1)",
            parameters=[{"shard": shard} for shard in range(SHARDS)],
        )
        found = await database.read("inspect", columns)
        assert found == {table.name: set(table.columns.keys()) for table in metadata.sorted_tables}
        assert set(await AgentStore(database).versions(MemberId("me"))) == {"agent-1", "agent-4"}
        pending = await Outbox(database, MemberId("me"), None, zeromq_enabled=False).pending()
        about = [(delivery.revocation.agent_id, delivery.target) for delivery in pending]
        assert sorted(about) == [("agent-2", "agent-1"), ("gone", "agent-1")]
        agents = ["agent-1", "agent-2", "agent-3", "agent-4"]
        new = StoredRevocation("new", AgentId("agent-4"), 2_000_000_000, "{}", "")
        await database.write(
            "revoke",
            lambda connection: insert_revocation(connection, new, VerifierId("site-a"), [(AGENT, "*")]),
        )
        later = await Outbox(database, MemberId("me"), None, zeromq_enabled=False).pending()
        news = sorted(delivery.target for delivery in later if delivery.revocation.revocation_id == "new")
        assert news == agents, "and nothing else comes a second time"
        assert len(later) == len(pending) + len(agents)
        await database.close()

    asyncio.run(scenario())


def columns(connection: sa.Connection) -> dict[str, set[str]]:
    inspector = sa.inspect(connection)
    return {
        name: {column["name"] for column in inspector.get_columns(name)}
        for name in inspector.get_table_names()
        if name in metadata.tables
    }


def test_a_database_of_the_first_release_is_carried_over(tmp_path: Path) -> None:
    check(stored_in_sqlite(tmp_path))


def test_a_database_of_the_first_release_is_carried_over_on_postgresql(postgres: PostgresServer) -> None:
    check(stored_in_postgresql(postgres))


LEASE_S = 1.5
# What is newer than all that is looked at here.
BEFORE_EVENTS = (
    "DROP TABLE pushing",
    "DROP TABLE push_attestations",
    "DROP TABLE push_sessions",
    "ALTER TABLE agents DROP COLUMN is_pushing",
    "DROP TABLE events",
    "DROP TABLE event_counter",
    "DROP TABLE event_followers",
    "DROP TABLE policy_versions",
    "ALTER TABLE policies DROP COLUMN version",
    "ALTER TABLE agents DROP COLUMN runtime_parts",
)
# The tables of v0003, as far as what follows them needs them.
BEFORE_RENEWALS = (
    *BEFORE_EVENTS,
    "DROP TABLE progress",
    *(
        f"ALTER TABLE agents ADD COLUMN {name} integer"
        for name in (
            "incarnation",
            "attestation_count",
            "last_received_quote",
            "last_successful_attestation",
        )
    ),
    "DROP INDEX ix_revocations_created_at",
    "ALTER TABLE revocations DROP COLUMN made",
    *(f"ALTER TABLE recipients DROP COLUMN {name}" for name in ("since", "attempts", "told_at")),
    "ALTER TABLE members DROP COLUMN renewals",
    "ALTER TABLE members DROP COLUMN lease",
    "UPDATE keylime_verifier_schema SET version_num = 'v0003'",
    # Its clock, and that of the database when it wrote this, were wrong by years.
    "INSERT INTO members (member_id, verifier_id, name, process, expires_at) "
    "VALUES ('old', 'site', 'host:1', '', 4000000000)",
    "INSERT INTO shards (verifier_id, shard, owner, epoch) VALUES ('site', 0, 'old', 3)",
)


@asynccontextmanager
async def nothing_to_let_go(_shards: frozenset[int]) -> AsyncIterator[None]:
    yield


def check_beside_an_old_verifier(url: str) -> None:
    """One of the release before goes on renewing its lease in its own way, and then ends without a word."""

    async def scenario() -> None:
        database = opened(url)
        await prepare_schema(database, SCHEMA, migrate=True)
        await execute(database, *BEFORE_RENEWALS)
        await prepare_schema(database, SCHEMA, migrate=True)
        membership = Membership(
            database,
            Member.new(VerifierId("site"), None),
            lease_s=LEASE_S,
            clock=DatabaseClock(),
            let_go=nothing_to_let_go,
            on_moves=lambda: None,
        )
        await membership.join()
        running = asyncio.create_task(membership.run())
        for _ in range(20):
            await asyncio.sleep(LEASE_S / 10)
            await execute(database, "UPDATE members SET expires_at = expires_at - 1 WHERE member_id = 'old'")
            assert await owner(database) == "old", "it is alive, whatever its clock says"

        async def is_taken_over() -> bool:
            return await owner(database) != "old"

        await eventually(is_taken_over, limit_s=60)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.close()

    asyncio.run(scenario())


async def owner(database: Database) -> object:
    ((found,),) = await rows_of(database, "SELECT owner FROM shards WHERE shard = 0")
    return found


def test_a_verifier_of_the_release_before_is_respected_while_it_renews_its_lease(tmp_path: Path) -> None:
    check_beside_an_old_verifier(f"sqlite:///{tmp_path / 'old.sqlite'}")


def test_a_verifier_of_the_release_before_is_respected_on_postgresql(postgres: PostgresServer) -> None:
    check_beside_an_old_verifier(postgres.new_database())


# The tables of v0005, when r1 to r4 were revoked. "again" was deleted and added anew after r2.
BEFORE_TOLD = (
    *BEFORE_EVENTS,
    "DROP INDEX ix_revocations_created_at",
    "ALTER TABLE revocations DROP COLUMN made",
    *(f"ALTER TABLE recipients DROP COLUMN {name}" for name in ("since", "attempts", "told_at")),
    "UPDATE keylime_verifier_schema SET version_num = 'v0005'",
    "UPDATE change_counters SET changes = 4 WHERE topic = 'revocations'",
    *(
        f"INSERT INTO revocations VALUES ('r{number}', 'x', {1000 + number}, '', '', 0, 'site', {number})"  # noqa: S608
        for number in range(1, 5)
    ),
    "UPDATE recipients SET through = 4 WHERE agent_id <> 'behind'",
    "UPDATE recipients SET through = 1 WHERE agent_id = 'behind'",
    *(
        f"INSERT INTO deliveries VALUES ('{name}', 'agent', '{target}', '{state}', {attempts}, NULL, 2000)"  # noqa: S608
        for name, target, state, attempts in (
            *((f"r{number}", "told", "delivered", number) for number in (1, 2, 3, 4)),
            ("r2", "partly", "delivered", 1),
            ("r3", "partly", "failed", 3),
            ("r4", "partly", "pending", 2),
            ("r1", "again", "delivered", 1),
            ("r4", "again", "delivered", 1),
            ("r1", "behind", "delivered", 2),
            ("r1", "gone", "delivered", 1),
        )
    ),
    "INSERT INTO deliveries VALUES ('r1', 'zeromq', 'tcp://x', 'delivered', 1, NULL, 2000)",
)
NUMBERS = ("pending", "delivered", "failed", "attempts")


def check_what_was_told(url: str) -> None:
    """Whom the release before has told what is shown as it was, without rows."""

    async def scenario() -> None:
        database = opened(url)
        await prepare_schema(database, SCHEMA, migrate=True)
        for name in ("told", "partly", "again", "behind", "new"):
            await AgentStore(database).add(plain_enrolment(name, "site"), Secrets(None, ""), "2.5", {})
        await execute(database, *BEFORE_TOLD)
        await prepare_schema(database, SCHEMA, migrate=True)
        rows = await rows_of(database, "SELECT target FROM deliveries")
        assert sorted(row.target for row in rows) == ["again", "again", "gone", "partly", "partly", "tcp://x"]
        shown = await read_overview(database, DeliveryFilter(), 100)
        found = {one.target: tuple(getattr(one, name) for name in NUMBERS) for one in shown.targets}
        assert found == {
            "told": (0, 4, 0, 10),
            "partly": (1, 1, 1, 6),
            "again": (0, 2, 0, 2),
            "behind": (3, 1, 0, 2),
            "gone": (0, 1, 0, 1),
            "tcp://x": (0, 1, 0, 1),
        }
        listed = Counter((one.target, one.state) for one in shown.deliveries)
        assert listed == {
            (target, state): count
            for target, numbers in found.items()
            for state, count in zip(NUMBERS[:3], numbers[:3], strict=True)
            if count
        }
        assert {one.updated_at for one in shown.deliveries if one.target == "told"} == {2000}
        await database.close()

    asyncio.run(scenario())


def test_what_the_release_before_has_told_is_carried_over(tmp_path: Path) -> None:
    check_what_was_told(f"sqlite:///{tmp_path / 'old.sqlite'}")


def test_what_the_release_before_has_told_is_carried_over_on_postgresql(postgres: PostgresServer) -> None:
    check_what_was_told(postgres.new_database())
