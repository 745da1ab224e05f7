"""How verifiers that share a database tell each other of changes: by counters, and on PostgreSQL by news.

News say only that there is something to read. Who missed any reads the counters, and finds the same.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from enum import Enum

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keylime.database.engine import DatabaseUnavailable, connect_arguments, hang_up_when_cancelled
from keylime_verifier.schema import change_counters
from keylime_verifier.transactions import read

log = logging.getLogger("keylime.verifier")

_CHANNEL = "keylime_verifier"
_POLL_INTERVAL_S = 0.25  # SQLite
_RECHECK_INTERVAL_S = 5.0  # PostgreSQL, should news ever be lost
_RECONNECT_DELAY_S = 1.0


class Topic(Enum):
    """What changed: agents or policies, the members and their shards, or revocations for others to carry."""

    AGENTS = "agents"
    SHARDS = "shards"
    REVOCATIONS = "revocations"


async def announce(connection: AsyncConnection, topic: Topic) -> None:
    """Counts a change within the caller's transaction, and tells the others when it commits.

    Transactions that announce the same topic take turns from here on: each sees what the one before it did.
    """
    await connection.execute(
        sa.update(change_counters)
        .where(change_counters.c.topic == topic.value)
        .values(changes=change_counters.c.changes + 1)
    )
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_notify(_CHANNEL, topic.value)))


class Changes:
    """Calls back when others may have changed something: `on_change` with every topic that moved."""

    def __init__(self, engine: AsyncEngine, on_change: Mapping[Topic, Callable[[], None]]) -> None:
        self._engine = engine
        self._on_change = on_change
        self._seen: dict[Topic, int] = {}
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Watches for ever; what changes while the database is away is seen when it is back."""
        if self._engine.dialect.name != "postgresql":
            await self._watch(_POLL_INTERVAL_S)
            return
        listener = asyncio.create_task(self._listen())
        try:
            await self._watch(_RECHECK_INTERVAL_S)
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    async def _watch(self, interval_s: float) -> None:
        while True:
            self._news.clear()
            with contextlib.suppress(DatabaseUnavailable):  # the lease, which needs it more, says so
                await self._look()
            try:
                async with asyncio.timeout(interval_s):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        async with read(self._engine, "read the change counters") as connection:
            rows = (await connection.execute(sa.select(change_counters))).all()
        for row in rows:
            topic = Topic(row.topic)
            if self._seen.get(topic) != row.changes:
                self._seen[topic] = row.changes
                self._on_change[topic]()

    async def _listen(self) -> None:
        """Keeps a connection that hears of changes; whatever was said before it was there is looked up."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    _conninfo(self._engine.url), autocommit=True
                ) as connection:
                    hang_up_when_cancelled(connection)
                    await connection.execute(f"LISTEN {_CHANNEL}")
                    self._news.set()
                    async for _ in connection.notifies():
                        self._news.set()
            except (psycopg.Error, OSError) as error:
                log.warning("changes are looked up every %g s only: %s", _RECHECK_INTERVAL_S, _reason(error))
            await asyncio.sleep(_RECONNECT_DELAY_S)


def _conninfo(url: URL) -> str:
    """How psycopg is told to connect as the engine does."""
    place: Mapping[str, str | int | None] = url.translate_connect_args(username="user", database="dbname")
    further = {name: value for name, value in url.query.items() if isinstance(value, str)}
    return make_conninfo("", **{**place, **further, **connect_arguments(url)})


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
