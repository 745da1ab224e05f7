"""A database, each transaction of which somebody takes the time of."""

import time
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL

from keylime.database.transactions import Database
from keylime.database.write_turn import Urgency

ResultT = TypeVar("ResultT")


class TimedDatabase:
    """As `database`; `observe` hears of every transaction: "read" or "write", and how many seconds."""

    def __init__(self, database: Database, observe: Callable[[str, float], None]) -> None:
        self._database = database
        self._observe = observe

    @property
    def url(self) -> URL:
        """As that of the database."""
        return self._database.url

    async def write(
        self, action: str, work: Callable[[sa.Connection], ResultT], urgency: Urgency = Urgency.USUAL
    ) -> ResultT:
        """As that of the database."""
        began = time.perf_counter()
        try:
            return await self._database.write(action, work, urgency)
        finally:
            self._observe("write", time.perf_counter() - began)

    async def read(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        """As that of the database."""
        began = time.perf_counter()
        try:
            return await self._database.read(action, work)
        finally:
            self._observe("read", time.perf_counter() - began)

    async def close(self) -> None:
        """As that of the database."""
        await self._database.close()
