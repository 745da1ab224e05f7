"""Transactions of the verifier's stores; what goes wrong in one is DatabaseUnavailable, naming the action."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
        async with engine.begin() as connection:
            yield connection
