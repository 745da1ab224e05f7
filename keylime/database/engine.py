"""Database engines of registrar and verifier: URLs, drivers, the settings each kind of database needs.

PostgreSQL is spoken to on the event loop, SQLite and MariaDB in threads.

On SQLite a transaction opened with `engine.begin()` holds the write lock from its first moment, so that what
it reads stays true until it commits (on servers: select with FOR UPDATE). Reads go through
`reading(engine)`, which sees one snapshot and neither waits for writers nor holds them up.
"""

import asyncio
import functools
import logging
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError, OperationalError, SQLAlchemyError

from keylime import patience
from keylime.config.settings import Settings
from keylime.database.file import prepare_file
from keylime.database.mariadb.urls import is_mariadb_url, parse_mariadb_url
from keylime.database.servers import Sessions, parse_server_url
from keylime.errors import ConfigError, ServiceUnavailable

if TYPE_CHECKING:  # SQLAlchemy's part for the event loop brings its ORM: only PostgreSQL needs it
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_STEP_MS = 250  # SQLite waits for another process's write in steps of this
_STEP_S = _STEP_MS / 1000
_READ_ONLY = "keylime_read_only"
_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}


class DatabaseUnavailable(ServiceUnavailable):
    """The database did not do as asked (locked, gone, full, read-only); trying again makes sense."""

    public = "The database is not available, try again later"
    outcome: str | None = "nothing was done"


class PartlyDone(DatabaseUnavailable):
    """The database did not do as asked after a part of the request had been done for good."""

    public = "The database is not available, a part of this was done, repeat the request later"
    outcome = "a part was done"


class OutcomeUnknown(DatabaseUnavailable):
    """The connection was lost, or nobody answered, while a transaction was being committed."""

    public = (
        "The database did not confirm: whether this was done is not known, look at what is there "
        "or repeat the request later"
    )
    outcome = "unknown"


@dataclass(frozen=True, slots=True)
class PoolSize:
    """How many connections to a server are kept open, and how many more may be opened for a while."""

    kept: int = 5
    overflow: int = 10

    @classmethod
    def parse(cls, text: str) -> Self:
        """The option `database_pool_sz_ovfl`, like "5,10". Raises ConfigError."""
        match = re.fullmatch(r"\s*(\d{1,4})\s*,\s*(\d{1,4})\s*", text)
        if match is None or int(match[1]) == 0:
            raise ConfigError(f"database_pool_sz_ovfl = {text}: expected two numbers such as 5,10")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def configured(cls, settings: Settings) -> Self:
        """What the settings of a service say. Raises ConfigError, which tells where they do."""
        with settings.placed("database_pool_sz_ovfl"):
            return cls.parse(settings.text("database_pool_sz_ovfl"))


def parse_database_url(text: str, *, work_dir: Path, sqlite_name: str) -> URL:
    """The option `database_url` with the driver that is used here.

    Raises ConfigError, without showing a password.
    The keyword `sqlite` means the file `sqlite_name` in `work_dir`. A driver named in the URL
    (postgresql+psycopg2://...) gives way to the one that is used here.
    """
    if text == "sqlite":
        return URL.create("sqlite+pysqlite", database=str(work_dir / sqlite_name))
    if text.partition(":")[0].partition("+")[0] in ("postgresql", "postgres"):
        return parse_server_url(text).set(drivername=_DRIVERS["postgresql"])
    if is_mariadb_url(text):
        return parse_mariadb_url(text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise ConfigError("database_url is not a database URL such as postgresql://user@host/name") from error
    driver = _DRIVERS.get(url.get_backend_name())
    if driver is None:
        raise ConfigError(
            f"database_url names {url.get_backend_name()}; supported are sqlite, postgresql, and mysql or "
            "mariadb for MariaDB, each with the driver that is used here, whichever the URL names"
        )
    if driver.startswith("sqlite") and not url.database:
        raise ConfigError("database_url names no file: use sqlite:////absolute/path")
    return url.set(drivername=driver)


def open_server(url: URL, pool: PoolSize | None = None, sessions: Sessions | None = None) -> "AsyncEngine":
    """An engine for a server. The connection is made when it is first needed.

    The caller disposes of the engine.
    """
    from sqlalchemy.ext.asyncio import create_async_engine  # as above

    from keylime.database.sessions import attend_sessions, connect_arguments  # with the driver

    _keep_values_out_of_logs()
    size = pool or PoolSize()
    sessions = sessions or Sessions.of_this_process()
    engine = create_async_engine(
        url,
        connect_args=connect_arguments(url, sessions),
        pool_size=size.kept,
        max_overflow=size.overflow,
        pool_timeout=patience.OWN_WORK_S,
        hide_parameters=True,
    )
    attend_sessions(engine.sync_engine, url, sessions)
    return engine


def open_mariadb(url: URL, size: PoolSize, program: str) -> sa.Engine:
    """A blocking engine for a MariaDB server, whose sessions show the name of the `program`.

    The connection is made when it is first needed.
    """
    from keylime.database.mariadb.sessions import attend_sessions, connect_arguments  # with the driver

    _keep_values_out_of_logs()
    engine = sa.create_engine(
        url,
        connect_args={
            name: value for name, value in connect_arguments(program).items() if name not in url.query
        },
        isolation_level="READ COMMITTED",
        pool_size=size.kept,
        max_overflow=size.overflow,
        pool_timeout=patience.OWN_WORK_S,
        pool_reset_on_return=None,  # whoever gives one back has ended its transaction, or lost it
        hide_parameters=True,
    )
    attend_sessions(engine)
    return engine


def open_sqlite(url: URL, is_closing: Callable[[], bool]) -> sa.Engine:
    """A blocking engine for a SQLite file, which is created, readable by its owner only.

    Raises ConfigError, also for a file that is no database of ours, which is left exactly as it is.

    Once `is_closing` says so, nobody waits for another process's write any more.
    """
    _keep_values_out_of_logs()
    prepare_file(Path(url.database or ""))
    engine = sa.create_engine(
        url.set(drivername="sqlite+pysqlite"),
        connect_args={"timeout": patience.OWN_WORK_S, "check_same_thread": False},
        hide_parameters=True,
    )
    _prepare_for_sqlite(engine, is_closing)
    return engine


def _keep_values_out_of_logs() -> None:
    # At DEBUG it shows the parameters of statements, and rows; both hold secrets.
    logger = logging.getLogger("sqlalchemy.engine")
    if logger.isEnabledFor(logging.DEBUG):
        logger.setLevel(logging.INFO)


def read_only(engine: sa.Engine) -> sa.Engine:
    """The same engine for reads: one snapshot, no write lock."""
    return engine.execution_options(**{_READ_ONLY: True})


@asynccontextmanager
async def reading(engine: "AsyncEngine") -> "AsyncIterator[AsyncConnection]":
    """A connection for reads only: one snapshot, no write lock."""
    async with engine.execution_options(**{_READ_ONLY: True}).connect() as connection:
        try:
            yield connection
        finally:
            # Here it can be cancelled; what is left to do when the connection is closed cannot.
            await connection.rollback()


def is_away(error: Exception | None) -> bool:
    """Whether the database would serve nobody else either; it may also have refused the values of one row."""
    if not isinstance(error, DatabaseUnavailable):
        return False
    cause = error.__cause__
    is_refused = isinstance(cause, (DataError, IntegrityError)) and not _is_of_a_trigger(cause.orig)
    return not is_refused or isinstance(error, OutcomeUnknown)


def _is_of_a_trigger(error: BaseException | None) -> bool:
    """Of one that somebody has put there, which stands in the way of all; servers say that by themselves."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_CONSTRAINT_TRIGGER


@contextmanager
def database_errors(action: str) -> Iterator[None]:
    """Turns the errors of drivers into DatabaseUnavailable, naming the `action` that did not succeed.

    In a task that was cancelled meanwhile they are its end.
    """
    cancellations = _cancellations()
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        if _cancellations() > cancellations:  # which must not get lost because the connection fails as well
            raise asyncio.CancelledError from error
        raise DatabaseUnavailable(f"database: cannot {action}: {_reason_of(error)}") from error


def _reason_of(error: SQLAlchemyError | OSError) -> str:
    # The driver's own words: SQLAlchemy's would add the statement and its parameters.
    reason = getattr(error, "orig", None) or type(error).__name__
    if isinstance(error, (DataError, IntegrityError)):
        # PostgreSQL adds all values of the row, which may be secrets.
        reason = getattr(getattr(reason, "diag", None), "message_primary", None) or reason
    return " ".join(str(reason).split())


def _cancellations() -> int:
    """How often the current task was told to end; 0 in a thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return 0
    return 0 if task is None else task.cancelling()


class _Cursor(Protocol):
    def execute(self, statement: str, /) -> object: ...

    def close(self) -> None: ...


class _DriverConnection(Protocol):
    isolation_level: str | None

    def cursor(self) -> _Cursor: ...


def _prepare_for_sqlite(engine: sa.Engine, is_closing: Callable[[], bool]) -> None:
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", functools.partial(_begin_sqlite, is_closing))


def _set_up_sqlite(connection: _DriverConnection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where _begin_sqlite says
    cursor = connection.cursor()
    _use_wal(cursor)
    # The last one who closes a file locks it as a whole, but not while another one has looked into it.
    for pragma in ("schema_version", "synchronous = NORMAL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.execute(f"PRAGMA busy_timeout = {_STEP_MS}")
    cursor.close()


def _use_wal(cursor: _Cursor) -> None:
    """Has the file written with a log; waits for others who just see to the same."""
    deadline = time.monotonic() + patience.OWN_WORK_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # Of two who change a new file at once one is refused, time-out or not.
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
        else:
            return
        cursor.execute("BEGIN IMMEDIATE")  # this does wait
        cursor.execute("ROLLBACK")


def _is_busy(error: BaseException | None) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _begin_sqlite(is_closing: Callable[[], bool], connection: sa.Connection) -> None:
    if connection.get_execution_options().get(_READ_ONLY, False):
        connection.exec_driver_sql("BEGIN")
        return
    # A transaction that reads first and writes later would be refused the lock at once, time-out or not.
    # SQLite itself would wait to the end, whoever wants to stop meanwhile; so it waits in steps.
    # A step before whoever waits for this gives up: then it is known that nothing was done.
    deadline = time.monotonic() + max(patience.current().left_s - 2 * _STEP_S, 0.0)
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except OperationalError as error:
            if not _is_busy(error.orig) or is_closing() or time.monotonic() > deadline:
                raise
        else:
            return
