"""Engines and migrations on SQLite files, and on PostgreSQL where it is installed."""

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from keylime import patience
from keylime.database.engine import (
    DatabaseUnavailable,
    OutcomeUnknown,
    PartlyDone,
    database_errors,
    open_server,
    parse_database_url,
    reading,
)
from keylime.database.file import prepare_file
from keylime.database.limits import transaction
from keylime.database.many import delete_many, insert_many, update_many
from keylime.database.migrate import find_problem, prepare_schema
from keylime.database.sessions import FRESH_S
from keylime.database.transactions import Database, open_database
from keylime.errors import ConfigError
from keylime.identifiers import AgentId
from keylime_registrar.activation import Proven, WrongTag
from keylime_registrar.identity import Registration, tag_hash
from keylime_registrar.schema import SCHEMA, metadata
from keylime_registrar.store import ActiveRegistration, Origin, PendingLimits, Store
from tests.fakes.postgresql import running_postgresql
from tests.fakes.statements import execute, rows_of
from tests.fakes.tcp_proxy import TcpProxy


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a database server for this module."""
    with running_postgresql() as server:
        yield server.url


def on(url: str, act: Callable[[Database], Awaitable[None]], directory: Path = Path("/nowhere")) -> None:
    async def scenario() -> None:
        database = open_database(parse_database_url(url, work_dir=directory, sqlite_name="test.sqlite"))
        try:
            await act(database)
        finally:
            await database.close()

    asyncio.run(scenario())


def on_server(url: str, act: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    async def scenario() -> None:
        engine = open_server(parse_database_url(url, work_dir=Path("/nowhere"), sqlite_name=""))
        try:
            await act(engine)
        finally:
            await engine.dispose()

    asyncio.run(scenario())


async def tables(database: Database) -> dict[str, set[str]]:
    def inspect(connection: sa.Connection) -> dict[str, set[str]]:
        inspector = sa.inspect(connection)
        names = inspector.get_table_names()
        return {name: {column["name"] for column in inspector.get_columns(name)} for name in names}

    return await database.read("inspect", inspect)


def trace(directory: Path) -> dict[str, tuple[object, ...]]:
    """All that a start could change about the files in `directory` and about itself."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (directory, *sorted(directory.rglob("*"))):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (content, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
    return found


async def migrated(database: Database) -> None:
    await prepare_schema(database, SCHEMA, migrate=True)
    await prepare_schema(database, SCHEMA, migrate=False)
    found = await tables(database)
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
    async def act(database: Database) -> None:
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 1), ("foreign_keys", 1)):
            assert await rows_of(database, f"PRAGMA {pragma}") == [(value,)]

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


def check_room(server_url: str) -> None:
    """Two registrars at once, neither of which waits for the other's rows."""

    def size(connection: sa.Connection) -> int:
        total = sa.select(sa.func.sum(metadata.tables["pending_registrations"].c.size))
        return int(connection.execute(total).scalar_one() or 0)

    async def flood(store: Store, first: int) -> None:
        for number in range(first, first + 120):
            network = f"198.51.{number % 16}.0/24"
            registration = Registration(
                AgentId(f"id-{number % 40}"), b"ek %d" % number, b"ak", mtls_cert="x" * 999
            )
            await store.add_pending(registration, Origin(network, network), 1000 + number % 5)

    async def scenario() -> None:
        url = parse_database_url(server_url, work_dir=Path("/nowhere"), sqlite_name="")
        limits = PendingLimits(capacity=256 << 10, per_agent=64 << 10)
        databases = [open_database(url) for _ in range(2)]
        await prepare_schema(databases[0], SCHEMA, migrate=True)
        stores = [Store(database, limits) for database in databases]
        here = Origin("192.0.2.1/32", "192.0.2.0/24")
        honest = Registration(AgentId("id-1"), b"ek", b"ak")
        tag = tag_hash(await stores[0].add_pending(honest, here, 1000), honest.agent_id)
        with patience.for_long_work(100):  # so much at once, on machines that are busy with more
            await asyncio.gather(*(flood(stores[n % 2], n * 120) for n in range(4)))
        assert 100_000 < await databases[0].read("measure", size) <= limits.capacity * 1.1
        activation = await stores[1].activate(honest.agent_id, tag, here, 1010)
        assert isinstance(activation.outcome, Proven)
        # All the others expire.
        late = Registration(AgentId("late"), b"ek", b"ak")
        await stores[0].add_pending(late, here, 2000)
        assert await databases[1].read("measure", size) < 4096
        await stores[0].delete(honest.agent_id, "operator")
        await stores[0].delete(late.agent_id, "operator")
        for database in databases:
            await database.close()

    asyncio.run(scenario())


def test_r20_the_registrars_store_makes_room_on_postgresql(postgres: str) -> None:
    check_room(postgres)


def check_store(server_url: str) -> None:
    """A registration, proven twice, and a wrong tag."""

    async def scenario() -> None:
        database = open_database(parse_database_url(server_url, work_dir=Path("/nowhere"), sqlite_name=""))
        await prepare_schema(database, SCHEMA, migrate=True)
        store, agent_id = Store(database, PendingLimits()), AgentId("agent")
        registration = Registration(agent_id, b"ek", b"ak", ip="10.0.0.1", port=1)
        here = Origin("192.0.2.1/32", "192.0.2.0/24")
        for count in (1, 2):
            tag = tag_hash(await store.add_pending(registration, here, 1000), agent_id)
            assert tag_hash(await store.add_pending(registration, here, 1001), agent_id) == tag
            assert await store.is_pending(agent_id, 1001)
            assert await store.agent_ids() == ["agent"] * (count - 1)
            wrong = await store.activate(agent_id, b"wrong", here, 1001)
            assert isinstance(wrong.outcome, WrongTag)
            right = await store.activate(agent_id, tag, here, 1001)
            assert (isinstance(right.outcome, Proven), right.regcount) == (True, count)
        assert await store.active(agent_id) == ActiveRegistration(registration, 2)
        assert await store.agent_ids() == ["agent"]
        assert await store.delete(agent_id, "operator")
        assert not await store.delete(agent_id, "operator")
        await database.close()

    asyncio.run(scenario())


def test_the_registrars_store_works_on_postgresql(postgres: str) -> None:
    check_store(postgres)


@pytest.mark.parametrize("script", ["read", "write"])
def test_reads_do_not_wait_for_a_write_and_writes_take_turns(tmp_path: Path, script: str) -> None:
    async def act(database: Database) -> None:
        await execute(database, "CREATE TABLE counter (value INTEGER)", "INSERT INTO counter VALUES (0)")

        def add_one(connection: sa.Connection) -> None:
            value = connection.exec_driver_sql("SELECT value FROM counter").scalar_one()
            time.sleep(0.01)
            connection.execute(sa.text("UPDATE counter SET value = :value"), {"value": value + 1})

        async def read() -> int:
            ((value,),) = await rows_of(database, "SELECT value FROM counter")
            return int(value)

        if script == "write":
            await asyncio.gather(*(database.write("add", add_one) for _ in range(10)))
            assert await read() == 10
            return
        has_changed, may_end = threading.Event(), threading.Event()

        def hold(connection: sa.Connection) -> None:
            connection.exec_driver_sql("UPDATE counter SET value = 5")
            has_changed.set()
            may_end.wait(100)

        holding = asyncio.create_task(database.write("hold", hold))
        try:
            assert await asyncio.to_thread(has_changed.wait, 100)
            assert await read() == 0
        finally:
            may_end.set()
            await holding
        assert await read() == 5

    on("sqlite", act, tmp_path)


def begun_to_change(file: Path) -> sqlite3.Connection:
    """One of two processes that make a new file theirs at once: in the middle of it."""
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE keylime_x_schema (version_num)")
    return other


def test_a_new_file_that_another_process_just_changes_is_waited_for(tmp_path: Path) -> None:
    """SQLite refuses the change to a log at once in this case, time-out or not."""
    file = tmp_path / "test.sqlite"
    file.touch(mode=0o600)
    other = begun_to_change(file)
    end = threading.Timer(1.0, other.commit)
    end.start()
    try:
        on("sqlite", migrated, tmp_path)
    finally:
        end.join()
        other.close()


def test_a_log_that_another_process_just_moves_into_the_file_is_no_error(tmp_path: Path) -> None:
    """Whoever closes a database last removes its log, perhaps while another one looks at it."""
    path = tmp_path / "data.sqlite"

    def use() -> None:
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE IF NOT EXISTS keylime_test_schema (version TEXT)")
            connection.commit()
            connection.execute("INSERT INTO keylime_test_schema VALUES ('x')")
            connection.commit()

    def use_on() -> None:
        while not enough.is_set():
            use()

    path.touch(0o600)
    enough = threading.Event()
    other = threading.Thread(target=use_on)
    other.start()
    try:
        for _ in range(300):
            prepare_file(path)
    finally:
        enough.set()
        other.join()


def test_nobody_locks_a_file_as_a_whole_that_was_just_opened(tmp_path: Path) -> None:
    """Whoever closes it last does, for longer than a read waits, when the disk is slow."""

    async def act(database: Database) -> None:
        outcomes = []

        def lock(_connection: sa.Connection) -> None:
            place = tmp_path / "test.sqlite"
            with contextlib.closing(sqlite3.connect(place, timeout=0, isolation_level=None)) as other:
                other.execute("PRAGMA locking_mode = EXCLUSIVE")
                try:
                    other.execute("BEGIN IMMEDIATE")
                    outcomes.append("locked by another")
                except sqlite3.OperationalError as error:
                    outcomes.append(str(error))

        event.listen(sa.Engine, "begin", lock)  # comes before those of the engine itself
        try:
            await prepare_schema(database, SCHEMA, migrate=True)
        finally:
            event.remove(sa.Engine, "begin", lock)
        assert set(outcomes) == {"database is locked"}

    on("sqlite", act, tmp_path)


def test_processes_that_start_at_once_take_turns(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib\n"
        "from keylime.database.engine import parse_database_url\n"
        "from keylime.database.migrate import prepare_schema\n"
        "from keylime.database.transactions import open_database\n"
        "from keylime_registrar.schema import SCHEMA\n"
        f"place = pathlib.Path({str(tmp_path)!r})\n"
        "url = parse_database_url('sqlite', work_dir=place, sqlite_name='test.sqlite')\n"
        "async def main():\n"
        "    database = open_database(url)\n"
        "    await prepare_schema(database, SCHEMA, migrate=True)\n"
        "    await database.close()\n"
        "asyncio.run(main())\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]  # noqa: S603
    assert [process.wait(timeout=100) for process in processes] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "table", ["alembic_version_registrar", "alembic_version_cloud_verifier", "verifiermain"]
)
def test_s12_another_implementations_database_is_refused_unaltered(tmp_path: Path, table: str) -> None:
    file = tmp_path / "test.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute(f"CREATE TABLE {table} (x)")
    connection.close()

    before = trace(tmp_path)
    with pytest.raises(ConfigError, match="made by another implementation"):
        on("sqlite", migrated, tmp_path)
    assert trace(tmp_path) == before


def test_s12_a_newer_releases_database_is_refused_unaltered(tmp_path: Path) -> None:
    on("sqlite", migrated, tmp_path)
    with sqlite3.connect(tmp_path / "test.sqlite") as connection:
        connection.execute("UPDATE keylime_registrar_schema SET version_num = 'r9999'")
    connection.close()

    async def act(database: Database) -> None:
        with pytest.raises(
            ConfigError, match=r"schema r9999, which is newer than this release knows \(r0003\)"
        ):
            await prepare_schema(database, SCHEMA, migrate=True)

    on("sqlite", act, tmp_path)


def test_without_leave_to_migrate_an_empty_database_is_refused(tmp_path: Path) -> None:
    async def act(database: Database) -> None:
        with pytest.raises(ConfigError, match="run `keylime_registrar --migrate`"):
            await prepare_schema(database, SCHEMA, migrate=False)
        assert await tables(database) == {}

    on("sqlite", act, tmp_path)


def test_a_database_of_ours_beside_foreign_tables_is_ours() -> None:
    assert find_problem({"verifiermain", "ours"}, "r0001", {"r0001"}, "r0001") is None


def test_a_file_that_is_no_database_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "test.sqlite").write_bytes(b"not a database" * 100)

    before = trace(tmp_path)
    with pytest.raises(ConfigError, match="is no SQLite database and is left as it is"):
        on("sqlite", migrated, tmp_path)
    assert trace(tmp_path) == before


def foreign(path: Path, mode: str, *, crash: bool = False) -> None:
    """A database of another program; with `crash` that program has left its last changes in the log."""
    program = (
        "import os, sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute(f'PRAGMA journal_mode = {sys.argv[2]}')\n"
        "connection.execute('CREATE TABLE bookmarks (url)')\n"
        "os._exit(0) if sys.argv[3] == 'True' else connection.close()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path), mode, str(crash)], check=True)  # noqa: S603


@pytest.mark.parametrize(("mode", "crash"), [("DELETE", False), ("WAL", False), ("WAL", True)])
def test_h1_another_programs_database_is_left_as_it_is(tmp_path: Path, mode: str, crash: bool) -> None:
    foreign(tmp_path / "test.sqlite", mode, crash=crash)
    assert (tmp_path / "test.sqlite-wal").exists() is crash
    before = trace(tmp_path)
    for url in ("sqlite", f"sqlite:///{tmp_path}/test.sqlite"):
        with pytest.raises(ConfigError, match=r"another program \(it has a table 'bookmarks'\) and is left"):
            on(url, migrated, tmp_path)
    assert trace(tmp_path) == before


def test_h1_a_database_that_cannot_be_read_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "test.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 9000)
    before = trace(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be read \(.*\) and is left as it is: restore"):
        on("sqlite", migrated, tmp_path)
    assert trace(tmp_path) == before


@pytest.mark.parametrize("target", ["elsewhere", "absent", "ours"])
def test_h2_a_link_is_no_database(tmp_path: Path, target: str) -> None:
    directory = tmp_path / "work"
    directory.mkdir()
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "elsewhere").chmod(0o644)
    if target == "ours":
        on(f"sqlite:///{tmp_path}/ours", migrated)
    (directory / "test.sqlite").symlink_to(tmp_path / target)
    before = trace(tmp_path)
    with pytest.raises(ConfigError, match=r"test\.sqlite is a symbolic link; name the file itself"):
        on("sqlite", migrated, directory)
    assert trace(tmp_path) == before


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_h2_what_is_no_file_is_no_database(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "test.sqlite")
    with pytest.raises(ConfigError, match="is not a regular file"):
        on("sqlite", migrated, tmp_path)


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_h1_a_database_where_others_may_put_a_journal_is_refused(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(ConfigError, match=rf"{directory} may be written by everybody .*chmod o-w"):
        on("sqlite", migrated, directory)
    assert list(directory.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("is_empty", [True, False])
def test_h1_a_strangers_database_is_left_as_it_is(tmp_path: Path, is_empty: bool) -> None:
    file = tmp_path / "test.sqlite"
    if is_empty:
        file.touch()
    else:
        on("sqlite", migrated, tmp_path)
    file.chmod(0o666)
    os.chown(file, 65534, 65534)
    before = trace(tmp_path)
    with pytest.raises(ConfigError, match=rf"{file} belongs to nobody; run: chown root {file}"):
        on("sqlite", migrated, tmp_path)
    assert trace(tmp_path) == before


def test_h1_an_empty_file_of_ours_is_taken_and_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "test.sqlite").touch()
    (tmp_path / "test.sqlite").chmod(0o666)
    on("sqlite", migrated, tmp_path)
    assert stat.S_IMODE((tmp_path / "test.sqlite").stat().st_mode) == 0o600


def killed_at_its_end(directory: Path) -> Path:
    """The file of a database whose first process was killed: all that it wrote is in the log."""
    program = (
        "import asyncio, os, pathlib\n"
        "from keylime.database.engine import parse_database_url\n"
        "from keylime.database.migrate import prepare_schema\n"
        "from keylime.database.transactions import open_database\n"
        "from keylime_registrar.schema import SCHEMA\n"
        f"place = pathlib.Path({str(directory)!r})\n"
        "url = parse_database_url('sqlite', work_dir=place, sqlite_name='test.sqlite')\n"
        "async def main():\n"
        "    await prepare_schema(open_database(url), SCHEMA, migrate=True)\n"
        "    os._exit(0)\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603
    assert (directory / "test.sqlite-wal").stat().st_size > 0
    return directory / "test.sqlite"


def unlogged_tables(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def test_a_database_of_ours_is_known_by_what_only_its_log_says(tmp_path: Path) -> None:
    assert unlogged_tables(killed_at_its_end(tmp_path)) == 0
    on("sqlite", migrated, tmp_path)


def test_a_database_of_ours_is_known_when_the_log_was_moved_by_half(tmp_path: Path) -> None:
    """The power failed within the first page: the rest of it, and all others, are in the log only."""
    file = killed_at_its_end(tmp_path)
    moved = tmp_path / "moved.sqlite"
    for end in ("", "-wal"):
        Path(f"{moved}{end}").write_bytes(Path(f"{file}{end}").read_bytes())
    with contextlib.closing(sqlite3.connect(moved)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = moved.read_bytes()
    file.write_bytes(content[:100] + b"\xff" * (len(content) - 100))
    with pytest.raises(sqlite3.DatabaseError):
        unlogged_tables(file)
    on("sqlite", migrated, tmp_path)


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
            engine = open_server(url.set(drivername="postgresql+psycopg", port=line.port))
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


def test_nothing_is_sent_in_a_pipeline(postgres: str) -> None:
    """A process that stops inside one leaves a session with its locks that no time-out of the server ends."""

    async def act(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert isinstance(driver, psycopg.AsyncConnection)
            setattr(driver, "_pipeline_nolock", None)  # noqa: B010 - what executemany begins one with
            await connection.exec_driver_sql("CREATE TABLE pairs (a int, b text)")
            rows = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
            await connection.exec_driver_sql("INSERT INTO pairs VALUES (%(a)s, %(b)s)", rows)
            found = (await connection.exec_driver_sql("SELECT a, b FROM pairs ORDER BY a")).mappings().all()
            assert [dict(row) for row in found] == rows
            await connection.exec_driver_sql("DROP TABLE pairs")

    on_server(postgres, act)


MANY = sa.Table(
    "many",
    sa.MetaData(),
    sa.Column("name", sa.String(8), primary_key=True),
    sa.Column("number", sa.BigInteger),
    sa.Column("is_set", sa.Boolean),
)


async def many_rows(database: Database) -> None:
    """Inserted and changed in one statement each, without losing NULL or cutting off what is too long."""
    rows = [{"name": f"n{n}", "number": n, "is_set": None if n % 3 else bool(n % 2)} for n in range(1000)]
    changes = [{"_name": f"n{n}", "number": 2**40 + n, "is_set": None} for n in range(0, 1000, 2)]

    def work(connection: sa.Connection) -> dict[str, tuple[int, bool | None]]:
        MANY.create(connection)
        insert_many(connection, sa.insert(MANY), rows)
        insert_many(connection, sa.insert(MANY), [])
        update_many(connection, MANY, {"_name": MANY.c.name}, [*changes, {**changes[0], "_name": "?"}])
        by_number = {"_name": MANY.c.name, "_number": MANY.c.number}
        update_many(
            connection,
            MANY,
            by_number,
            [{"_name": "n1", "_number": 1, "number": 7}, {"_name": "n3", "_number": 1, "number": 7}],
            {"number": lambda stored, given: stored + given},
        )
        gone = [{"_name": "n5", "_number": 5}, {"_name": "n7", "_number": 5}]
        delete_many(connection, MANY, by_number, gone)
        return {row.name: (row.number, row.is_set) for row in connection.execute(sa.select(MANY))}

    found = await database.write("work", work)
    expected = {row["name"]: (row["number"], row["is_set"]) for row in rows}
    expected |= {str(row["_name"]): (row["number"], None) for row in changes}
    expected["n1"] = (8, expected["n1"][1])
    del expected["n5"]
    assert found == expected
    if database.url.get_backend_name() != "sqlite":
        too_long = [{"name": 9 * "x", "number": 1, "is_set": None}]
        with pytest.raises(DatabaseUnavailable, match="too long"):
            await database.write("add", lambda connection: insert_many(connection, sa.insert(MANY), too_long))
    await database.write("drop", MANY.drop)


def test_many_rows_are_one_statement(tmp_path: Path, postgres: str) -> None:
    on("sqlite", many_rows, tmp_path)
    on(postgres, many_rows)


def test_every_setting_that_ends_a_wait_is_in_force(postgres: str) -> None:
    async def act(engine: AsyncEngine) -> None:
        names = (
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
            "transaction_timeout",
            "tcp_keepalives_idle",
            "tcp_keepalives_interval",
            "tcp_keepalives_count",
            "tcp_user_timeout",
            "client_connection_check_interval",
        )
        async with reading(engine) as connection:
            query = sa.text("SELECT name, setting FROM pg_settings WHERE name = ANY(:names)")
            known = {row.name: row.setting for row in await connection.execute(query, {"names": list(names)})}
            (version,) = (await connection.execute(sa.text("SHOW server_version_num"))).one()
        assert len(known) == len(names) - (int(version) < 170000)
        assert all(int(setting) > 0 for setting in known.values()), known

    on_server(postgres, act)


def test_a_migration_may_take_longer_than_other_work(postgres: str) -> None:
    async def act(database: Database) -> None:
        seen: list[float] = []

        def watch(connection: sa.Connection, *_statement: object) -> None:
            seen.append(patience.current().left_s)

        await execute(database, "DROP TABLE IF EXISTS keylime_registrar_schema CASCADE")
        await database.write("begin again", metadata.drop_all)
        event.listen(sa.Engine, "before_cursor_execute", watch)
        try:
            await prepare_schema(database, SCHEMA, migrate=True)
        finally:
            event.remove(sa.Engine, "before_cursor_execute", watch)
        assert max(seen) > 600

    on(postgres, act)


@pytest.mark.parametrize("moment", ["statement", "commit"])
def test_a_silence_is_given_up_with_a_word_about_what_was_done(postgres: str, moment: str) -> None:
    async def scenario() -> None:
        url = sa.make_url(postgres)
        assert url.port is not None
        async with TcpProxy(url.port) as line:
            engine = open_server(url.set(drivername="postgresql+psycopg", port=line.port))
            kind = OutcomeUnknown if moment == "commit" else DatabaseUnavailable

            async def work() -> None:
                async with transaction(engine, "write") as connection:
                    await connection.execute(sa.text("SELECT 1"))
                    line.cut()
                    if moment == "statement":
                        await connection.execute(sa.text("SELECT 1"))

            with patience.for_a_caller(1.0), pytest.raises(DatabaseUnavailable) as caught:
                await work()
            assert type(caught.value) is kind
            line.heal()
            async with transaction(engine, "write") as connection:
                await connection.execute(sa.text("SELECT 1"))
            await engine.dispose()

    asyncio.run(scenario())


def test_a_commit_that_the_database_refuses_was_not_done(postgres: str) -> None:
    async def act(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.exec_driver_sql(
                "CREATE TABLE later (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)"
            )
        with pytest.raises(DatabaseUnavailable) as caught:
            async with transaction(engine, "write") as connection:
                await connection.exec_driver_sql("INSERT INTO later VALUES (1), (1)")
        assert type(caught.value) is DatabaseUnavailable
        with patience.for_a_caller():
            async with transaction(engine, "write") as connection:
                await connection.exec_driver_sql("DROP TABLE later")
            with pytest.raises(PartlyDone):
                async with transaction(engine, "write") as connection:
                    await connection.exec_driver_sql("DROP TABLE later")

    on_server(postgres, act)


def test_s2_the_row_that_a_server_refuses_is_not_shown(postgres: str) -> None:
    table = sa.Table(
        "refusing", sa.MetaData(), sa.Column("key", sa.Text), sa.Column("number", sa.Integer, nullable=False)
    )

    async def act(database: Database) -> None:
        await database.write("make it", table.metadata.create_all)
        row = {"key": "canary", "number": None}
        with pytest.raises(DatabaseUnavailable) as refused:
            await database.write("count", lambda one: one.execute(sa.insert(table), row))
        text = str(refused.value)
        assert 'cannot count: null value in column "number"' in text
        assert "canary" not in text

    on(postgres, act)


def test_connections_that_died_in_the_pool_cost_one_wait_and_not_one_each(postgres: str) -> None:
    async def scenario() -> None:
        url = sa.make_url(postgres)
        assert url.port is not None
        async with TcpProxy(url.port) as line:
            engine = open_server(url.set(drivername="postgresql+psycopg", port=line.port))
            opened = await asyncio.gather(*(engine.connect() for _ in range(5)))
            for connection in opened:
                await connection.close()
            await asyncio.sleep(2 * FRESH_S)  # what was in use just now is not asked
            line.cut()
            line.go_on_with_new_ones()
            for _ in range(5):
                with patience.for_a_caller(4.0):
                    async with transaction(engine, "write") as connection:
                        await connection.execute(sa.text("SELECT 1"))
            await engine.dispose()

    asyncio.run(scenario())


def test_who_waits_for_a_sqlite_file_is_told_in_time_and_nothing_is_written_later(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = open_database(parse_database_url("sqlite", work_dir=tmp_path, sqlite_name="test.sqlite"))
        await execute(database, "CREATE TABLE t (a int)")
        other = sqlite3.connect(tmp_path / "test.sqlite")
        other.execute("BEGIN IMMEDIATE")
        with patience.for_a_caller(1.0), pytest.raises(DatabaseUnavailable, match="locked") as caught:
            await execute(database, "INSERT INTO t VALUES (1)")
        assert type(caught.value) is DatabaseUnavailable
        other.close()
        await database.close()  # once nothing is under way any more
        with contextlib.closing(sqlite3.connect(tmp_path / "test.sqlite")) as later:
            assert later.execute("SELECT count(*) FROM t").fetchone() == (0,)

    asyncio.run(scenario())
