"""A database of the first release, with agents and revocations in it, under this one."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from keylime.database.engine import open_engine, parse_database_url
from keylime.database.migrate import prepare_schema
from keylime.identifiers import AgentId
from keylime_verifier.assembly import SCHEMA
from keylime_verifier.outbox import AGENT, Outbox, insert_revocation
from keylime_verifier.ownership import SHARDS
from keylime_verifier.records import StoredRevocation
from keylime_verifier.schema import metadata
from keylime_verifier.store import AgentStore
from tests.fakes.postgresql import PostgresServer, running_postgresql

DUMP = Path(__file__).parents[1] / "data/databases/verifier-v0001.sql"


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgresql() as server:
        yield server


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
        engine = open_engine(parse_database_url(url, work_dir=Path("/nowhere"), sqlite_name=""))
        await prepare_schema(engine, SCHEMA, migrate=True)
        records = {record.agent_id: record for record in await AgentStore(engine).load("site-a")}
        assert {name: record.progress.is_polled for name, record in records.items()} == {
            "agent-1": True,
            "agent-2": False,
            "agent-3": False,
            "agent-4": True,
        }
        assert {record.progress.attestation_count for record in records.values()} == {63, 12, 16, 56}
        async with engine.begin() as connection:
            stored = (await connection.execute(sa.text("SELECT agent_id, shard FROM agents"))).all()
            assert {(row.agent_id, row.shard) for row in stored} == {
                (name, record.shard) for name, record in records.items()
            }
            for shard in range(SHARDS):
                await connection.execute(
                    sa.text("INSERT INTO shards VALUES ('site-a', :shard, 'me', 1)"), {"shard": shard}
                )
            found = await connection.run_sync(columns)
        assert found == {table.name: set(table.columns.keys()) for table in metadata.sorted_tables}
        assert set(await AgentStore(engine).standings("me")) == {"agent-1", "agent-4"}
        pending = await Outbox(engine, "me", None, zeromq_enabled=False).pending()
        about = [(delivery.revocation.agent_id, delivery.target) for delivery in pending]
        assert sorted(about) == [("agent-2", "agent-1"), ("gone", "agent-1")]
        agents = ["agent-1", "agent-2", "agent-3", "agent-4"]
        new = StoredRevocation("new", AgentId("agent-4"), 2_000_000_000, "{}", "")
        async with engine.begin() as connection:
            await insert_revocation(connection, new, "site-a", [(AGENT, "*")])
        later = await Outbox(engine, "me", None, zeromq_enabled=False).pending()
        news = sorted(delivery.target for delivery in later if delivery.revocation.revocation_id == "new")
        assert news == agents, "and nothing else comes a second time"
        assert len(later) == len(pending) + len(agents)
        await engine.dispose()

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
