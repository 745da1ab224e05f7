"""Databases on MariaDB: what is different there. `make test-databases` has all else run on it as well."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pymysql
import pytest
import sqlalchemy as sa

from keylime import patience
from keylime.database.clock import database_time
from keylime.database.engine import DatabaseUnavailable, OutcomeUnknown, parse_database_url
from keylime.database.many import delete_many, insert_many, update_many
from keylime.database.mariadb.sessions import FRESH_S, find_problem
from keylime.database.migrate import prepare_schema
from keylime.database.readiness import database_check, remedy_of
from keylime.database.schema import UNFINISHED
from keylime.database.transactions import Database, open_database
from keylime.errors import ConfigError
from keylime_registrar.schema import SCHEMA
from keylime_verifier.database.schema import SCHEMA as VERIFIER_SCHEMA
from keylime_verifier.sharing.lineage_query import read_lineage
from tests.fakes.eventual import eventually
from tests.fakes.mariadb import MariaServer
from tests.fakes.statements import execute, rows_of
from tests.fakes.tcp_proxy import TcpProxy
from tests.integration.test_database import (
    check_room,
    check_store,
    check_transactions,
    many_rows,
    migrated,
    on,
)

LIMIT_S = 100.0
NUMBERS = sa.Table(
    "numbers",
    sa.MetaData(),
    sa.Column("name", sa.String(20), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("text", sa.Text),
    sa.Column("bytes", sa.LargeBinary),
)


@pytest.fixture
def url(maria: MariaServer) -> str:
    return maria.new_database()


def fill(database: Database, *names: str) -> Awaitable[None]:
    def work(connection: sa.Connection) -> None:
        NUMBERS.create(connection)
        connection.execute(sa.insert(NUMBERS), [{"name": name, "number": 0} for name in names])

    return database.write("fill", work)


def add(*names: str, between: Callable[[], object] = lambda: None) -> Callable[[sa.Connection], None]:
    """A transaction that writes rows one after the other."""

    def work(connection: sa.Connection) -> None:
        for name in names:
            change = sa.update(NUMBERS).where(NUMBERS.c.name == name)
            connection.execute(change.values(number=NUMBERS.c.number + 1))
            if name is not names[-1]:
                between()

    return work


def test_what_holds_for_every_database_holds_on_mariadb(url: str) -> None:
    check_transactions(url, Path("/nowhere"))
    on(url, many_rows)
    check_store(url)


def test_r20_the_registrars_store_makes_room_on_mariadb(url: str) -> None:
    check_room(url)


def test_texts_and_bytes_are_kept_and_compared_as_they_are(url: str) -> None:
    """In a database whose own defaults know neither all characters nor small letters."""
    names = ["id", "ID", "id ", "i\N{COMBINING ACUTE ACCENT}d", "\N{LOCK}"]
    text = "".join(map(chr, range(0x180))) + "\u2028\N{LOCK}'\\\"\\u0041"
    long, blob = text * 1000, bytes(range(256)) * 300

    async def act(database: Database) -> None:
        await fill(database, *names)
        change = sa.update(NUMBERS).where(NUMBERS.c.name == "id").values(text=long, bytes=blob)
        changed = await database.write("write", lambda connection: connection.execute(change).rowcount)
        again = await database.write("write", lambda connection: connection.execute(change).rowcount)
        assert (changed, again) == (1, 1), "a row that is as it should be is one"
        query = sa.select(NUMBERS.c.text, NUMBERS.c.bytes).where(NUMBERS.c.name == "id")
        found = await database.read("read", lambda connection: connection.execute(query).one())
        assert tuple(found) == (long, blob)
        keys = {"_name": NUMBERS.c.name}
        rows = [{"_name": name, "text": text, "bytes": blob} for name in names]
        await database.write("all", lambda connection: update_many(connection, NUMBERS, keys, rows))
        more = [{"name": f"{name}+", "number": 2**31 - 1, "text": text, "bytes": blob} for name in names]
        await database.write("more", lambda connection: insert_many(connection, sa.insert(NUMBERS), more))
        everywhere = sa.select(NUMBERS.c.text, NUMBERS.c.bytes)
        found_all = await database.read("read", lambda connection: connection.execute(everywhere).all())
        assert [tuple(row) for row in found_all] == [(text, blob)] * 2 * len(names)
        gone = [{"_name": f"{name}+"} for name in names]
        await database.write("drop", lambda connection: delete_many(connection, NUMBERS, keys, gone))
        listed = sa.select(NUMBERS.c.name).order_by(NUMBERS.c.name)
        order = await database.read("list", lambda connection: connection.execute(listed).scalars().all())
        assert order == sorted(names)
        too_long = sa.insert(NUMBERS).values(name=21 * "x", number=1)
        with pytest.raises(DatabaseUnavailable, match="too long"):
            await database.write("add", lambda connection: connection.execute(too_long))

    on(url, act)


def test_every_setting_that_ends_a_wait_is_in_force(url: str) -> None:
    async def act(database: Database) -> None:
        names = ("innodb_lock_wait_timeout", "lock_wait_timeout", "max_statement_time")
        limits = ", ".join(f"@@{name}" for name in (*names, "idle_transaction_timeout", "net_read_timeout"))
        others = "SELECT @@tx_isolation, @@collation_connection, @@autocommit"
        for _ in range(2):
            (seconds,) = await rows_of(database, f"SELECT {limits}")
            assert all(0 < float(str(value)) <= 10 for value in seconds), seconds
            (found,) = await rows_of(database, others)
            assert tuple(found) == ("READ-COMMITTED", "utf8mb4_nopad_bin", 0)
            await prepare_schema(
                database, SCHEMA, migrate=True
            )  # may take longer, and leaves nothing of that

    on(url, act)


def test_the_clock_is_the_servers_whatever_its_time_zone(maria: MariaServer, url: str) -> None:
    maria.say("SET GLOBAL time_zone = '+09:00'")
    try:

        async def act(database: Database) -> None:
            query = sa.select(database_time())
            before, now, after = (
                time.time(),
                await database.read("ask", lambda connection: connection.execute(query).scalar_one()),
                time.time(),
            )
            assert isinstance(now, float)
            assert before - 1 < now < after + 1

        on(url, act)
    finally:
        maria.say("SET GLOBAL time_zone = SYSTEM")


def test_of_two_that_are_in_each_others_way_both_come_through(url: str) -> None:
    """The server undoes one of them, which then is done again from its beginning."""
    begun = threading.Barrier(2)
    tries: list[str] = []

    def meet() -> None:
        tries.append(threading.current_thread().name)
        if len(tries) <= 2:
            begun.wait(LIMIT_S)

    async def act(database: Database) -> None:
        await fill(database, "a", "b")
        await asyncio.gather(
            database.write("add", add("a", "b", between=meet)),
            database.write("add", add("b", "a", between=meet)),
        )
        assert await rows_of(database, "SELECT number FROM numbers") == [(2,), (2,)]
        assert len(tries) == 3

    on(url, act)


def test_whoever_waits_for_a_lock_is_told_in_time_and_the_thread_is_free_again(
    maria: MariaServer, url: str
) -> None:
    async def act(database: Database) -> None:
        await fill(database, "a")
        with maria.connected(url) as other, other.cursor() as cursor:
            cursor.execute("START TRANSACTION")
            cursor.execute("UPDATE numbers SET number = 5")
            for _ in range(20):  # more than there are threads
                with (
                    patience.at_most(0.1),
                    pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.1 s"),
                ):
                    await database.write("add", add("a"))
            other.rollback()
        await database.write("add", add("a"))
        assert await rows_of(database, "SELECT number FROM numbers") == [(1,)]

    on(url, act)


@pytest.mark.parametrize("moment", ["statement", "commit", "idle"])
def test_a_silence_is_given_up_with_a_word_about_what_was_done(
    maria: MariaServer, url: str, moment: str
) -> None:
    async def scenario() -> None:
        async with TcpProxy(maria.port) as line:
            place = maria.url_on(line.port, url.rpartition("/")[2])
            database = open_database(parse_database_url(place, work_dir=Path("/x"), sqlite_name=""))
            await fill(database, "a")
            expected: type[DatabaseUnavailable] = DatabaseUnavailable

            def work(connection: sa.Connection) -> None:
                if moment == "statement":
                    line.cut()
                add("a")(connection)
                if moment == "commit":
                    line.cut()

            if moment == "commit":
                expected = OutcomeUnknown
            elif moment == "idle":
                line.cut()
                await asyncio.sleep(FRESH_S)
            with patience.at_most(0.5), pytest.raises(DatabaseUnavailable) as caught:
                await database.write("add", work)
            assert type(caught.value) is expected
            line.heal()
            await database.write("add", add("a"))
            await database.close()

    asyncio.run(scenario())


def test_a_server_that_was_started_anew_is_found_again(maria: MariaServer, url: str) -> None:
    async def act(database: Database) -> None:
        await fill(database, "a")
        maria.stop()
        with pytest.raises(DatabaseUnavailable):
            await database.write("add", add("a"))
        maria.start()
        await database.write("add", add("a"))
        maria.freeze()
        try:
            with patience.at_most(0.3), pytest.raises(DatabaseUnavailable) as caught:
                await database.read("look", lambda connection: connection.execute(sa.select(NUMBERS)).all())
            assert "no answer: see to the server" in remedy_of(caught.value)
        finally:
            maria.thaw()
        await database.write("add", add("a"))
        maria.stop("immediate")
        maria.start()
        await asyncio.sleep(FRESH_S)
        assert await rows_of(database, "SELECT number FROM numbers") == [(2,)]

    on(url, act)


def test_readiness_names_what_helps(maria: MariaServer, url: str) -> None:
    async def act(database: Database) -> None:
        await prepare_schema(database, SCHEMA, migrate=True)
        check = database_check(database, SCHEMA, sorted(SCHEMA.tables.tables))
        assert await check() is None
        with maria.connected(url) as other, other.cursor() as cursor:
            cursor.execute("LOCK TABLES registrations WRITE")
            assert "no answer" in str(await check()) or "another session" in str(await check())
            cursor.execute("UNLOCK TABLES")
            cursor.execute("START TRANSACTION")
            cursor.execute("INSERT INTO challenge_keys VALUES (7, '', 0)")
            deadline = time.monotonic() + LIMIT_S
            while "a transaction that does not end" not in str(await check()):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
            other.rollback()

        async def is_ready() -> bool:
            return await check() is None

        await eventually(is_ready)  # the server shows what was up to a tenth of a second ago
        maria.say("CREATE USER reader IDENTIFIED BY 'x'")
        maria.say(f"GRANT SELECT ON {url.rpartition('/')[2]}.* TO reader")
        plain = url.replace("root@", "reader:x@")
        reader = open_database(parse_database_url(plain, work_dir=Path("/x"), sqlite_name=""))
        assert "refuses this user" in str(await database_check(reader, SCHEMA)())
        await reader.close()

    on(url, act)


def test_a_user_of_one_database_needs_no_other_right(maria: MariaServer, url: str) -> None:
    maria.say("CREATE USER keylime IDENTIFIED BY 'p@ss'")
    maria.say(f"GRANT ALL ON {url.rpartition('/')[2]}.* TO keylime")

    async def act(database: Database) -> None:
        await prepare_schema(database, VERIFIER_SCHEMA, migrate=True)
        assert (
            await database_check(database, VERIFIER_SCHEMA, sorted(VERIFIER_SCHEMA.tables.tables))() is None
        )
        lineage = await database.read("look", read_lineage)
        assert lineage.continues(await database.read("look", read_lineage))
        assert lineage.system

    on(url.replace("root@", "keylime:p%40ss@"), act)


def test_tables_that_were_not_finished_are_made_anew(maria: MariaServer, url: str) -> None:
    async def act(database: Database) -> None:
        def fail(_connection: sa.Connection) -> None:
            raise LookupError("what is to be taken over cannot be read")

        with pytest.raises(LookupError):
            await prepare_schema(database, SCHEMA, migrate=True, take_over=fail)
        assert await rows_of(database, "SELECT version_num FROM keylime_registrar_schema") == [(UNFINISHED,)]
        with pytest.raises(ConfigError, match="needs a migration from schema none"):
            await prepare_schema(database, SCHEMA, migrate=False)
        await migrated(database)

        def tell(connection: sa.Connection) -> None:
            taken.append(connection.execute(sa.text("SELECT count(*) FROM registrations")).scalar_one())

        taken: list[int] = []
        await prepare_schema(database, SCHEMA, migrate=True, take_over=tell)
        assert taken == [], "nothing is taken over twice"

    on(url, act)


def test_processes_that_start_at_once_take_turns(url: str) -> None:
    async def scenario() -> None:
        databases = [
            open_database(parse_database_url(url, work_dir=Path("/x"), sqlite_name="")) for _ in range(3)
        ]
        done = await asyncio.gather(*(prepare_schema(one, SCHEMA, migrate=True) for one in databases))
        assert sorted(one.has_changed for one in done) == [False, False, True]
        for one in databases:
            await one.close()

    asyncio.run(scenario())


def test_a_table_of_another_program_is_left_alone(url: str) -> None:
    async def act(database: Database) -> None:
        await execute(database, "CREATE TABLE agents (x int)", "INSERT INTO agents VALUES (1)")
        with pytest.raises(ConfigError, match="has a table agents of another program"):
            await prepare_schema(database, VERIFIER_SCHEMA, migrate=True)
        assert await rows_of(database, "SELECT x FROM agents") == [(1,)]
        assert await rows_of(database, "SHOW TABLES") == [("agents",)]

    on(url, act)


def test_what_the_server_would_hang_up_on_is_not_sent(maria: MariaServer, url: str) -> None:
    maria.say("SET GLOBAL max_allowed_packet = 1048576")
    try:

        async def act(database: Database) -> None:
            await fill(database, "a")
            change = sa.update(NUMBERS).values(text="x" * 1_100_000)
            with pytest.raises(
                DatabaseUnavailable, match=r"max_allowed_packet = 1048576 of the server: raise"
            ):
                await database.write("write", lambda connection: connection.execute(change))

        on(url, act)
        maria.say("SET GLOBAL max_allowed_packet = 65536")
        with pytest.raises(ConfigError, match="raise its max_allowed_packet"):
            on(url, act)
    finally:
        maria.say("SET GLOBAL max_allowed_packet = 16777216")


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("10.11.6-MariaDB-0+deb12u1", None),
        ("5.5.5-10.6.1-MariaDB-log", None),
        ("11.4.2-MariaDB", None),
        ("5.5.5-10.5.23-MariaDB", "update it to 10.6 or newer"),
        ("5.5.68-MariaDB", "update it to 10.6 or newer"),
        ("8.0.36", "not MariaDB"),
        ("", "not MariaDB"),
    ],
)
def test_servers_that_cannot_be_used_are_refused(version: str, problem: str | None) -> None:
    found = find_problem(version)
    assert found is None if problem is None else problem in str(found)


def test_a_session_that_stops_within_a_transaction_keeps_its_locks_for_seconds(
    maria: MariaServer, url: str
) -> None:
    async def act(database: Database) -> None:
        await fill(database, "a")
        holds, may_end = threading.Event(), threading.Event()

        def stop(connection: sa.Connection) -> None:
            add("a")(connection)
            holds.set()
            may_end.wait(LIMIT_S)

        stopped = asyncio.create_task(database.write("stop", stop))
        try:
            assert await asyncio.to_thread(holds.wait, LIMIT_S)
            with maria.connected(url) as other, other.cursor() as cursor:
                cursor.execute("SET innodb_lock_wait_timeout = 60")
                began = time.monotonic()
                cursor.execute("UPDATE numbers SET number = 7")
                assert time.monotonic() - began < 30
        finally:
            may_end.set()
            with pytest.raises(DatabaseUnavailable):
                await stopped
        assert await rows_of(database, "SELECT number FROM numbers") == [(7,)]

    on(url, act)


def test_a_wrong_password_is_one_line_without_it(url: str) -> None:
    async def act(database: Database) -> None:
        await prepare_schema(database, SCHEMA, migrate=True)

    with pytest.raises(DatabaseUnavailable) as caught:
        on(url.replace("root@", "root:hush@"), act)
    assert "Access denied" in str(caught.value)
    assert "hush" not in str(caught.value)
    assert isinstance(getattr(caught.value.__cause__, "orig", None), pymysql.Error)
