"""Database engines of registrar and verifier: URLs, drivers, the settings each kind of database needs.

On SQLite a transaction opened with `engine.begin()` holds the write lock from its first moment, so that what
it reads stays true until it commits (PostgreSQL: select with FOR UPDATE). Reads go through
`reading(engine)`, which sees one snapshot and neither waits for writers nor holds them up.
"""

import asyncio
import contextlib
import functools
import logging
import os
import re
import socket
import sqlite3
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from keylime.errors import ConfigError, ServiceUnavailable

CONNECT_TIMEOUT_S = 10
BUSY_TIMEOUT_S = 15.0  # how long SQLite waits for another process's write
_IDLE_IN_TRANSACTION_MS = 5000
_STEP_MS = 250
_READ_ONLY = "keylime_read_only"
_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}


class DatabaseUnavailable(ServiceUnavailable):
    """The database did not do as asked (locked, gone, full, read-only); trying again makes sense."""

    public = "The database is not available, try again later"


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


def parse_database_url(text: str, *, work_dir: Path, sqlite_name: str) -> URL:
    """The option `database_url` with an asynchronous driver. Raises ConfigError, without showing a password.

    The keyword `sqlite` means the file `sqlite_name` in `work_dir`. A driver named in the URL
    (postgresql+psycopg2://...) gives way to the one that is used here.
    """
    if text == "sqlite":
        return URL.create("sqlite+aiosqlite", database=str(work_dir / sqlite_name))
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise ConfigError("database_url is not a database URL such as postgresql://user@host/name") from error
    driver = _DRIVERS.get(url.get_backend_name())
    if driver is None:
        raise ConfigError(f"database_url names {url.get_backend_name()}; supported are sqlite and postgresql")
    if driver.startswith("sqlite") and not url.database:
        raise ConfigError("database_url names no file: use sqlite:////absolute/path")
    return url.set(drivername=driver)


def open_engine(url: URL, pool: PoolSize | None = None) -> AsyncEngine:
    """An engine for `url`; a SQLite file is created, readable by its owner only. Raises ConfigError.

    The connection to a server is made when it is first needed. The caller disposes of the engine.
    """
    _keep_values_out_of_logs()
    if url.get_backend_name() == "sqlite":
        _secure_file(Path(url.database or ""))
        engine = create_async_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, hide_parameters=True)
        _prepare_for_sqlite(engine.sync_engine, lambda: False)  # its waits end when they are cancelled
        return engine
    size = pool or PoolSize()
    engine = create_async_engine(
        url,
        connect_args=connect_arguments(url),
        pool_size=size.kept,
        max_overflow=size.overflow,
        hide_parameters=True,
        pool_pre_ping=True,
    )
    event.listen(engine.sync_engine, "connect", _set_up_server)
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of every connection that is hung up
    return engine


def connect_arguments(url: URL) -> dict[str, str | int]:
    """How connections to a PostgreSQL server are made: peers that vanish are noticed, on both sides.

    A process that stops in the middle of a transaction must not keep its locks: the server ends the session.
    """
    arguments: dict[str, str | int] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,  # milliseconds
    }
    if "application_name" not in url.query:
        arguments["application_name"] = f"{Path(sys.argv[0]).name}:{os.getpid()}"  # in the server's views
    if "options" not in url.query:
        arguments["options"] = f"-c idle_in_transaction_session_timeout={_IDLE_IN_TRANSACTION_MS}"
    return arguments


class ServerConnection(Protocol):
    """What `hang_up_when_cancelled` needs of psycopg's asynchronous connections."""

    def fileno(self) -> int:
        """The socket."""
        ...


def hang_up_when_cancelled(connection: ServerConnection) -> None:
    """Work that is cancelled on this connection ends at once, and the connection with it.

    The driver's way is to ask the server, over another connection, to break off, and to wait for that: ten
    seconds when the server is silent. A server that is hung up on breaks off by itself.
    """

    async def hang_up(**_limits: float) -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    setattr(connection, "cancel_safe", hang_up)  # noqa: B010 - to the type checker it is a method


def open_sqlite(url: URL, is_closing: Callable[[], bool]) -> sa.Engine:
    """A blocking engine for a SQLite file, which is created as `open_engine` does. Raises ConfigError.

    Once `is_closing` says so, nobody waits for another process's write any more.
    """
    _keep_values_out_of_logs()
    _secure_file(Path(url.database or ""))
    engine = sa.create_engine(
        url.set(drivername="sqlite+pysqlite"),
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
        hide_parameters=True,
    )
    _prepare_for_sqlite(engine, is_closing)
    return engine


def _keep_values_out_of_logs() -> None:
    # At DEBUG these two show the parameters of statements, and rows; both hold secrets.
    for name in ("aiosqlite", "sqlalchemy.engine"):
        logger = logging.getLogger(name)
        if logger.isEnabledFor(logging.DEBUG):
            logger.setLevel(logging.INFO)


def read_only(engine: sa.Engine) -> sa.Engine:
    """The same engine for reads: one snapshot, no write lock."""
    return engine.execution_options(**{_READ_ONLY: True})


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection for reads only: one snapshot, no write lock."""
    async with engine.execution_options(**{_READ_ONLY: True}).connect() as connection:
        try:
            yield connection
        finally:
            # Here it can be cancelled; what is left to do when the connection is closed cannot.
            await connection.rollback()


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
        # The driver's own words: SQLAlchemy's would add the statement and its parameters.
        reason = " ".join(str(getattr(error, "orig", None) or type(error).__name__).split())
        raise DatabaseUnavailable(f"database: cannot {action}: {reason}") from error


class _ServerDriver(Protocol):
    driver_connection: ServerConnection


def _set_up_server(connection: _ServerDriver, _record: object) -> None:
    hang_up_when_cancelled(connection.driver_connection)


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
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.execute(f"PRAGMA busy_timeout = {_STEP_MS}")
    cursor.close()


def _begin_sqlite(is_closing: Callable[[], bool], connection: sa.Connection) -> None:
    if connection.get_execution_options().get(_READ_ONLY, False):
        connection.exec_driver_sql("BEGIN")
        return
    # A transaction that reads first and writes later would be refused the lock at once, time-out or not.
    # SQLite itself would wait to the end, whoever wants to stop meanwhile; so it waits in steps.
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except OperationalError as error:
            is_busy = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or is_closing() or time.monotonic() > deadline:
                raise
        else:
            return


def _secure_file(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            status = os.fstat(descriptor)
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"database file {path}: {error.strerror}") from error
