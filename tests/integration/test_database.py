"""Engines and migrations on SQLite files, and on PostgreSQL where it is installed."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from keylime.database.engine import (
    DatabaseUnavailable,
    database_errors,
    open_engine,
    parse_database_url,
    reading,
)
from keylime.database.migrate import find_problem, prepare_schema
from keylime.database.transactions import open_database
from keylime.errors import ConfigError
from keylime.identifiers import AgentId
from keylime_registrar.activation import Proven, WrongTag
from keylime_registrar.identity import Registration
from keylime_registrar.schema import SCHEMA, metadata
from keylime_registrar.store import ActiveRegistration, Limits, Store
from tests.fakes.postgresql import running_postgresql
from tests.fakes.tcp_proxy import TcpProxy


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a database server for this module."""
    with running_postgresql() as server:
        yield server.url


def on(url: str, act: Callable[[AsyncEngine], Awaitable[None]], directory: Path = Path("/nowhere")) -> None:
    async def scenario() -> None:
        engine = open_engine(parse_database_url(url, work_dir=directory, sqlite_name="test.sqlite"))
        try:
            await act(engine)
        finally:
            await engine.dispose()

    asyncio.run(scenario())


async def tables(engine: AsyncEngine) -> dict[str, set[str]]:
    def inspect(connection: sa.Connection) -> dict[str, set[str]]:
        inspector = sa.inspect(connection)
        names = inspector.get_table_names()
        return {name: {column["name"] for column in inspector.get_columns(name)} for name in names}

    async with engine.connect() as connection:
        return await connection.run_sync(inspect)


async def migrated(engine: AsyncEngine) -> None:
    await prepare_schema(engine, SCHEMA, migrate=True)
    await prepare_schema(engine, SCHEMA, migrate=False)
    found = await tables(engine)
    expected = {table.name: set(table.columns.keys()) for table in metadata.sorted_tables}
    assert {name: found[name] for name in expected} == expected


def test_migrations_make_the_tables_that_queries_are_written_against(tmp_path: Path) -> None:
    on("sqlite", migrated, tmp_path)


def test_migrations_work_on_postgresql(postgres: str) -> None:
    on(postgres, migrated)


def test_a_new_file_and_its_directory_are_private_and_a_readable_file_is_closed(tmp_path: Path) -> None:
    on("sqlite", migrated, tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep").stat().st_mode & 0o777 == 0o700
    file = tmp_path / "new" / "deep" / "test.sqlite"
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    on("sqlite", migrated, tmp_path / "new" / "deep")
    assert file.stat().st_mode & 0o777 == 0o600


def test_sqlite_is_set_up_for_concurrent_use(tmp_path: Path) -> None:
    async def act(engine: AsyncEngine) -> None:
        async with reading(engine) as connection:
            for pragma, value in (("journal_mode", "wal"), ("synchronous", 1), ("foreign_keys", 1)):
                assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar_one() == value

    on("sqlite", act, tmp_path)


def check_transactions(url: str, directory: Path) -> None:
    """What holds for every database: commit, rollback, translated errors, counting without a lost update."""

    async def scenario() -> None:
        database = open_database(parse_database_url(url, work_dir=directory, sqlite_name="test.sqlite"))
        counter = sa.Table("counter", sa.MetaData(), sa.Column("value", sa.Integer, primary_key=True))

        def value(connection: sa.Connection) -> int:
            return int(connection.execute(sa.select(counter.c.value).with_for_update()).scalar_one())

        def add_one(connection: sa.Connection) -> None:
            connection.execute(sa.update(counter).values(value=value(connection) + 1))

        def fail_after_writing(connection: sa.Connection) -> None:
            add_one(connection)
            raise LookupError("changed its mind")

        await database.write("create", lambda connection: counter.create(connection))
        await database.write("fill", lambda connection: connection.execute(sa.insert(counter), {"value": 0}))
        await asyncio.gather(*(database.write("count", add_one) for _ in range(20)))
        with pytest.raises(LookupError):
            await database.write("fail", fail_after_writing)
        assert await database.read("read", value) == 20
        with pytest.raises(DatabaseUnavailable, match=r"^database: cannot double: "):
            await database.write("double", lambda c: c.execute(sa.insert(counter), {"value": 20}))
        await database.write("drop", lambda connection: counter.drop(connection))
        await database.close()

    asyncio.run(scenario())


def test_transactions_commit_roll_back_and_lose_no_update(tmp_path: Path) -> None:
    check_transactions("sqlite", tmp_path)


def test_transactions_do_the_same_on_postgresql(postgres: str) -> None:
    check_transactions(postgres, Path("/nowhere"))


def test_the_registrars_store_works_on_postgresql(postgres: str) -> None:
    async def scenario() -> None:
        database = open_database(parse_database_url(postgres, work_dir=Path("/nowhere"), sqlite_name=""))
        await prepare_schema(database, SCHEMA, migrate=True)
        store, agent_id = Store(database, Limits()), AgentId("agent")
        registration = Registration(agent_id, b"ek", b"ak", ip="10.0.0.1", port=1)
        for count in (1, 2):
            await store.add_pending(registration, b"tag", "192.0.2.1", 1000)
            assert await store.is_pending(agent_id, 1000)
            wrong = await store.activate(agent_id, b"wrong", "192.0.2.1", 1000)
            assert isinstance(wrong.outcome, WrongTag)
            right = await store.activate(agent_id, b"tag", "192.0.2.1", 1000)
            assert (isinstance(right.outcome, Proven), right.regcount) == (True, count)
        assert await store.active(agent_id) == ActiveRegistration(registration, 2)
        assert await store.agent_ids(1000) == ["agent"]
        assert await store.delete(agent_id)
        assert not await store.delete(agent_id)
        await database.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("script", ["read", "write"])
def test_reads_do_not_wait_for_a_write_and_writes_take_turns(tmp_path: Path, script: str) -> None:
    async def act(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.exec_driver_sql("CREATE TABLE counter (value INTEGER)")
            await connection.exec_driver_sql("INSERT INTO counter VALUES (0)")

        async def add_one() -> None:
            async with engine.begin() as connection:
                value = (await connection.exec_driver_sql("SELECT value FROM counter")).scalar_one()
                await asyncio.sleep(0.01)
                await connection.execute(sa.text("UPDATE counter SET value = :value"), {"value": value + 1})

        async def read() -> int:
            async with reading(engine) as connection:
                return int((await connection.exec_driver_sql("SELECT value FROM counter")).scalar_one())

        if script == "write":
            await asyncio.gather(*(add_one() for _ in range(10)))
            assert await read() == 10
            return
        async with engine.begin() as connection:
            await connection.exec_driver_sql("UPDATE counter SET value = 5")
            assert await asyncio.wait_for(read(), 1) == 0

    on("sqlite", act, tmp_path)


def test_processes_that_start_at_once_take_turns(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib\n"
        "from keylime.database.engine import *\n"
        "from keylime.database.migrate import prepare_schema\n"
        "from keylime_registrar.schema import SCHEMA\n"
        f"place = pathlib.Path({str(tmp_path)!r})\n"
        "url = parse_database_url('sqlite', work_dir=place, sqlite_name='test.sqlite')\n"
        "async def main():\n"
        "    engine = open_engine(url)\n"
        "    await prepare_schema(engine, SCHEMA, migrate=True)\n"
        "    await engine.dispose()\n"
        "asyncio.run(main())\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]  # noqa: S603
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "table", ["alembic_version_registrar", "alembic_version_cloud_verifier", "verifiermain"]
)
def test_s12_another_implementations_database_is_refused_unaltered(tmp_path: Path, table: str) -> None:
    file = tmp_path / "test.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute(f"CREATE TABLE {table} (x)")
    connection.close()

    async def act(engine: AsyncEngine) -> None:
        with pytest.raises(ConfigError, match="made by another implementation"):
            await prepare_schema(engine, SCHEMA, migrate=True)
        assert await tables(engine) == {table: {"x"}}

    on("sqlite", act, tmp_path)


def test_s12_a_newer_releases_database_is_refused_unaltered(tmp_path: Path) -> None:
    on("sqlite", migrated, tmp_path)
    with sqlite3.connect(tmp_path / "test.sqlite") as connection:
        connection.execute("UPDATE keylime_registrar_schema SET version_num = 'r9999'")
    connection.close()

    async def act(engine: AsyncEngine) -> None:
        with pytest.raises(
            ConfigError, match=r"schema r9999, which is newer than this release knows \(r0001\)"
        ):
            await prepare_schema(engine, SCHEMA, migrate=True)

    on("sqlite", act, tmp_path)


def test_without_leave_to_migrate_an_empty_database_is_refused(tmp_path: Path) -> None:
    async def act(engine: AsyncEngine) -> None:
        with pytest.raises(ConfigError, match="run `keylime_registrar --migrate`"):
            await prepare_schema(engine, SCHEMA, migrate=False)
        assert await tables(engine) == {}

    on("sqlite", act, tmp_path)


def test_a_database_of_ours_beside_foreign_tables_is_ours() -> None:
    assert find_problem({"verifiermain", "ours"}, "r0001", {"r0001"}, "r0001") is None


def test_a_file_that_is_no_database_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "test.sqlite").write_bytes(b"not a database" * 100)

    async def act(engine: AsyncEngine) -> None:
        with pytest.raises(DatabaseUnavailable, match="file is not a database"):
            await prepare_schema(engine, SCHEMA, migrate=True)

    on("sqlite", act, tmp_path)


def test_a_path_that_cannot_be_opened_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Not a directory"):
        on("sqlite", migrated, tmp_path / "file" / "below")


def test_s2_driver_errors_are_translated_without_the_statement() -> None:
    error = sa.exc.OperationalError(
        "SELECT secret", {"x": "canary"}, sqlite3.OperationalError("disk is full")
    )
    with pytest.raises(DatabaseUnavailable) as caught, database_errors("write"):
        raise error
    assert str(caught.value) == "database: cannot write: disk is full"


async def read_and_lose(engine: AsyncEngine, line: TcpProxy) -> None:
    """The connection falls silent when all has been read."""
    with database_errors("read"):
        async with reading(engine) as connection:
            await connection.execute(sa.text("SELECT 1"))
            line.cut()


async def lose_and_ask(engine: AsyncEngine, line: TcpProxy) -> None:
    """The connection falls silent between two statements."""
    with database_errors("read"):
        async with reading(engine) as connection:
            await connection.execute(sa.text("SELECT 1"))
            line.cut()
            await connection.execute(sa.text("SELECT 1"))


async def write_and_lose(engine: AsyncEngine, line: TcpProxy) -> None:
    """The connection falls silent before the commit."""
    with database_errors("write"):
        async with engine.begin() as connection:
            await connection.execute(sa.text("CREATE TABLE lost (number int)"))
            line.cut()


@pytest.mark.parametrize("work", [read_and_lose, lose_and_ask, write_and_lose])
def test_work_on_a_silent_connection_ends_at_once_when_it_is_cancelled(
    postgres: str, work: Callable[[AsyncEngine, TcpProxy], Coroutine[None, None, None]]
) -> None:
    async def scenario() -> None:
        url = sa.make_url(postgres)
        assert url.port is not None
        async with TcpProxy(url.port) as line:
            engine = open_engine(url.set(drivername="postgresql+psycopg", port=line.port))
            task = asyncio.create_task(work(engine, line))
            await asyncio.wait([task], timeout=0.5)  # by now it waits for an answer
            task.cancel()
            await asyncio.wait([task], timeout=2)
            assert task.cancelled()
            await engine.dispose()

    asyncio.run(scenario())


def test_an_error_that_hides_a_cancellation_does_not_end_it() -> None:
    async def fail_when_cancelled() -> None:
        with database_errors("read"):
            try:
                await asyncio.sleep(3600)
            finally:
                raise OSError("gone")

    async def fail_while_ending() -> str:
        try:
            await asyncio.sleep(3600)
        finally:
            with pytest.raises(DatabaseUnavailable), database_errors("write the rest"):
                raise OSError("gone")
        return "not cancelled"

    async def scenario() -> None:
        for work in (fail_when_cancelled, fail_while_ending):
            task = asyncio.create_task(work())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await fail_when_cancelled()

    asyncio.run(scenario())
