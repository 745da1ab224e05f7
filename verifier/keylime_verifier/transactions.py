"""Transactions of the verifier's stores; what goes wrong in one is DatabaseUnavailable, naming the action."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from weakref import WeakKeyDictionary

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keylime.database.engine import database_errors, reading


@asynccontextmanager
async def read(engine: AsyncEngine, action: str) -> AsyncIterator[AsyncConnection]:
    """A snapshot to read from, to do `action`."""
    with database_errors(action):
        async with reading(engine) as connection:
            yield connection


@asynccontextmanager
async def write(engine: AsyncEngine, action: str) -> AsyncIterator[AsyncConnection]:
    """A transaction to do `action` in: committed at the end of the block, undone by an exception."""
    with database_errors(action):
        async with _turns.setdefault(engine, _turn_of(engine)), engine.begin() as connection:
            yield connection


def _turn_of(engine: AsyncEngine) -> AbstractAsyncContextManager[object]:
    # SQLite has one writer at a time. Those that wait for it in its own way hold a connection each and sleep
    # between attempts: a fleet that fails together would take all connections from whoever wants to read.
    return asyncio.Lock() if engine.dialect.name == "sqlite" else nullcontext()


_turns: "WeakKeyDictionary[AsyncEngine, AbstractAsyncContextManager[object]]" = WeakKeyDictionary()
