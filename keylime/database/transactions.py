"""Whole transactions off the event loop: work is a plain function of a connection, run from begin to commit.

On SQLite each transaction is one trip to a thread, where a driver with asynchronous statements would make
several for every statement. On a server the same function runs on an asynchronous connection.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from keylime.database.engine import (
    BUSY_TIMEOUT_S,
    DatabaseUnavailable,
    PoolSize,
    database_errors,
    open_engine,
    open_sqlite,
    read_only,
    reading,
)

ResultT = TypeVar("ResultT")
_THREADS = 4  # one writes, the others read beside it


class Database(Protocol):
    """Runs work in transactions. `action` completes the sentence "cannot ..." of DatabaseUnavailable.

    What the work raises rolls it back and passes through, errors of the driver translated.
    """

    async def write(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        """The work's result, committed. On SQLite nobody else writes from its beginning to its end."""
        ...

    async def read(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        """The work's result, from one snapshot."""
        ...

    async def close(self) -> None:
        """Ends the connections."""
        ...


def open_database(url: URL, pool: PoolSize | None = None) -> Database:
    """The database behind `url`. Raises ConfigError for a file that cannot be used."""
    if url.get_backend_name() == "sqlite":
        return _SqliteDatabase(url)
    return _ServerDatabase(open_engine(url, pool))


class _SqliteDatabase:
    def __init__(self, url: URL) -> None:
        self._is_closing = threading.Event()
        self._engine = open_sqlite(url, self._is_closing.is_set)
        self._reader = read_only(self._engine)
        self._write_turn = (
            asyncio.Lock()
        )  # SQLite has one writer: those that wait for it must not take all threads
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="database")

    async def write(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        try:
            async with asyncio.timeout(BUSY_TIMEOUT_S):
                await self._write_turn.acquire()
        except TimeoutError as error:
            raise DatabaseUnavailable(f"database: cannot {action}: too many others are waiting") from error
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._write, action, work)
        finally:
            self._write_turn.release()

    async def read(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, action, work)

    async def close(self) -> None:
        self._is_closing.set()
        await asyncio.to_thread(self._threads.shutdown)
        self._engine.dispose()

    def _write(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        with database_errors(action), self._engine.begin() as connection:
            return work(connection)

    def _read(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        with database_errors(action), self._reader.connect() as connection:
            return work(connection)


class _ServerDatabase:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def write(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        with database_errors(action):
            async with self._engine.begin() as connection:
                return await connection.run_sync(work)

    async def read(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        with database_errors(action):
            async with reading(self._engine) as connection:
                return await connection.run_sync(work)

    async def close(self) -> None:
        await self._engine.dispose()
