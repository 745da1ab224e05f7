"""Whole transactions off the event loop: work is a plain function of a connection, run from begin to commit.

On SQLite and MariaDB each transaction is one trip to a thread, where a driver with asynchronous statements
would make several for every statement. On PostgreSQL the same function runs on an asynchronous connection.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL

from keylime.database.engine import (
    DatabaseUnavailable,
    PoolSize,
    database_errors,
    open_server,
    open_sqlite,
    read_only,
)
from keylime.database.limits import Attempt, limited, snapshot, transaction
from keylime.database.servers import Sessions
from keylime.database.write_turn import Urgency, WriteTurn

if TYPE_CHECKING:  # loaded with the driver that needs it
    from sqlalchemy.ext.asyncio import AsyncEngine

ResultT = TypeVar("ResultT")
P = ParamSpec("P")
_THREADS = 4  # one writes, the others read beside it


class Database(Protocol):
    """Runs work in transactions. `action` completes the sentence "cannot ..." of DatabaseUnavailable.

    What the work raises rolls it back and passes through, errors of the driver translated. The work may be in
    a thread, where it goes on for a while when nobody waits for it any more, and may be done again from its
    beginning after others were in its way: it changes nothing but the database, and returns what it finds.
    """

    @property
    def url(self) -> URL:
        """Where it is, password included."""
        ...

    async def write(
        self, action: str, work: Callable[[sa.Connection], ResultT], urgency: Urgency = Urgency.USUAL
    ) -> ResultT:
        """The work's result, committed. On SQLite nobody else writes from its beginning to its end.

        There, work of this process takes turns in the order of its `urgency`.
        """
        ...

    async def read(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        """The work's result, from one snapshot."""
        ...

    async def close(self) -> None:
        """Ends the connections."""
        ...


def open_database(url: URL, pool: PoolSize | None = None, sessions: Sessions | None = None) -> Database:
    """The database behind `url`. Raises ConfigError for a file that cannot be used.

    A SQLite file is created, readable by its owner only; the connection to a server is made when it is first
    needed, in the way of `sessions`.
    """
    if url.get_backend_name() == "sqlite":
        return _SqliteDatabase(url)
    if url.get_backend_name() == "mariadb":
        from keylime.database.mariadb.transactions import MariaDatabase  # with the driver

        return MariaDatabase(url, pool or PoolSize(), (sessions or Sessions.of_this_process()).name)
    return _ServerDatabase(open_server(url, pool, sessions))


class _SqliteDatabase:
    def __init__(self, url: URL) -> None:
        self.url = url
        self._is_closing = threading.Event()
        self._engine = open_sqlite(url, self._is_closing.is_set)
        self._reader = read_only(self._engine)
        self._turn = WriteTurn()  # SQLite has one writer: those that wait must not take all threads
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="database")

    async def write(
        self, action: str, work: Callable[[sa.Connection], ResultT], urgency: Urgency = Urgency.USUAL
    ) -> ResultT:
        async with limited(action) as progress, self._turn.taken(urgency):
            attempt = Attempt(progress)
            try:
                self._demand_open(action)
                return await self._in_thread(self._write, action, work, attempt)
            finally:
                attempt.give_up()

    async def read(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        async with limited(action):
            self._demand_open(action)
            return await self._in_thread(self._read, action, work)

    async def close(self) -> None:
        self._is_closing.set()
        await asyncio.to_thread(self._threads.shutdown)
        self._engine.dispose()

    def _demand_open(self, action: str) -> None:
        """Who waited for a turn until the end is told that nothing was done: threads take no more work."""
        if self._is_closing.is_set():
            raise DatabaseUnavailable(f"database: cannot {action}: it is closed")

    async def _in_thread(self, work: Callable[P, ResultT], *args: P.args, **kwargs: P.kwargs) -> ResultT:
        # How long it may wait for another writer is part of the context.
        run = partial(contextvars.copy_context().run, work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    def _write(self, action: str, work: Callable[[sa.Connection], ResultT], attempt: "Attempt") -> ResultT:
        with database_errors(action), self._engine.begin() as connection:
            result = work(connection)
            attempt.commit(action)
            return result

    def _read(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        with database_errors(action), self._reader.connect() as connection:
            return work(connection)


class _ServerDatabase:
    def __init__(self, engine: "AsyncEngine") -> None:
        self._engine = engine

    @property
    def url(self) -> URL:
        return self._engine.url

    async def write(
        self, action: str, work: Callable[[sa.Connection], ResultT], urgency: Urgency = Urgency.USUAL
    ) -> ResultT:
        async with transaction(self._engine, action) as connection:
            return await connection.run_sync(work)

    async def read(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        async with snapshot(self._engine, action) as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        await self._engine.dispose()
