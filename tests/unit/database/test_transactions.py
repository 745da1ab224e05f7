"""Work in threads when nobody waits for it any more: given up, committed, or told that the end has come."""

import asyncio
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from keylime.database.engine import DatabaseUnavailable
from keylime.database.transactions import Database, open_database


async def opened(directory: Path) -> Database:
    database = open_database(URL.create("sqlite", database=str(directory / "a.sqlite")))

    def create(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")

    await database.write("create a table", create)
    return database


class Held:
    """Work that writes a number, and ends when it is let go."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.began = threading.Event()
        self.may_end = threading.Event()

    def __call__(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql("INSERT INTO t VALUES (?)", (self.number,))
        self.began.set()
        assert self.may_end.wait(100)

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.began.wait, 100)


async def numbers(database: Database) -> list[int]:
    def work(connection: sa.Connection) -> list[int]:
        return list(connection.exec_driver_sql("SELECT x FROM t ORDER BY x").scalars())

    return await database.read("read", work)


def insert(number: int) -> Held:
    held = Held(number)
    held.may_end.set()
    return held


def test_what_was_given_up_is_not_committed_and_the_next_write_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = await opened(tmp_path)
        held = Held(1)
        writing = asyncio.create_task(database.write("write", held))
        await held.has_begun()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        next_one = asyncio.create_task(database.write("write", insert(2)))
        await asyncio.sleep(0)
        held.may_end.set()
        await next_one
        assert await numbers(database) == [2]
        await database.close()

    asyncio.run(scenario())


def test_whoever_waits_for_a_turn_when_the_database_is_closed_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = await opened(tmp_path)
        held = Held(1)
        first = asyncio.create_task(database.write("write", held))
        await held.has_begun()
        second = asyncio.create_task(database.write("write again", insert(2)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(database.close())
        await asyncio.sleep(0)
        held.may_end.set()
        await first
        with pytest.raises(DatabaseUnavailable, match="cannot write again: it is closed"):
            await second
        await closing
        with pytest.raises(DatabaseUnavailable, match="cannot read: it is closed"):
            await numbers(database)
        await database.close()

    asyncio.run(scenario())
