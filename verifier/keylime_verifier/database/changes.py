"""How verifiers that share a database tell each other of changes: by counters, and on PostgreSQL by news.

News say only that there is something to read. Who missed any reads the counters, and finds the same.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import sqlalchemy as sa

from keylime import patience
from keylime.database.engine import DatabaseUnavailable
from keylime.database.servers import Sessions
from keylime.database.transactions import Database
from keylime_verifier.database.schema import change_counters, event_counter

log = logging.getLogger("keylime.verifier")

_CHANNEL = "keylime_verifier"
_POLL_INTERVAL_S = 0.25  # SQLite, MariaDB
_RECHECK_INTERVAL_S = 5.0  # PostgreSQL, should news ever be lost
_RECONNECT_DELAY_S = 1.0
# What is different when another server answers, or the same one was started anew.
_SERVERS: Mapping[str, sa.ColumnElement[object]] = {
    "postgresql": sa.func.pg_postmaster_start_time(),
    "mariadb": sa.literal_column("CONCAT_WS(' ', @@hostname, @@port, @@server_id)"),
}
_LAST_EVENT = sa.select(event_counter.c.last)  # of one row
_SILENCE_S = 15.0  # after which a connection without news is asked whether anybody is there


class Topic(Enum):
    """What changed: agents or policies, the members and their shards, or revocations for others to carry.

    EVENTS is what the history was told; its counter is that of the events, see `history`.
    """

    AGENTS = "agents"
    SHARDS = "shards"
    REVOCATIONS = "revocations"
    EVENTS = "events"


def publish(connection: sa.Connection, topic: Topic) -> None:
    """Counts a change within the caller's transaction, and tells the others when it commits.

    Transactions that announce the same topic take turns from here on: each sees what the one before it did.
    """
    connection.execute(
        sa.update(change_counters)
        .where(change_counters.c.topic == topic.value)
        .values(changes=change_counters.c.changes + 1)
    )
    spread_news(connection, topic)


def spread_news(connection: sa.Connection, topic: Topic) -> None:
    """Tells the others when the caller's transaction commits, where the database can."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_notify(_CHANNEL, topic.value)))


class ChangeFeed:
    """Calls back when others may have changed something: `on_change` with every topic that moved.

    After the database was away, or another server has taken its place, all of them are called: counters may
    be as they were by chance, and what they counted may be something else.
    """

    def __init__(
        self,
        database: Database,
        on_change: Mapping[Topic, Callable[[], None]],
        sessions: Sessions | None = None,
    ) -> None:
        """`sessions` are those of the process."""
        self._database = database
        self._on_change = on_change
        self._sessions = sessions or Sessions.of_this_process()
        backend = database.url.get_backend_name()
        self._has_news = backend == "postgresql"
        self._which_server = _SERVERS.get(backend)
        self._seen: dict[Topic, int] = {}
        self._server: object = None
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Watches for ever; what changes while the database is away is seen when it is back."""
        if not self._has_news:
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
            pause_s = interval_s
            try:
                await self._look()
            except DatabaseUnavailable:  # the lease, which needs it more, says so
                self._seen.clear()
                pause_s = min(interval_s, _RECONNECT_DELAY_S)
            try:
                async with asyncio.timeout(pause_s):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        query = sa.select(change_counters)
        if self._which_server is not None:
            query = query.add_columns(self._which_server.label("server"))

        def work(connection: sa.Connection) -> tuple[Sequence[sa.Row[Any]], int]:
            return connection.execute(query).all(), connection.execute(_LAST_EVENT).scalar_one()

        rows, last_event = await self._database.read("read the change counters", work)
        servers = {row._mapping.get("server") for row in rows}
        if servers != {self._server}:
            (self._server,) = servers or {None}
            self._seen.clear()
        counted = {Topic(row.topic): row.changes for row in rows} | {Topic.EVENTS: last_event}
        for topic, changes in counted.items():
            if self._seen.get(topic) != changes:
                self._seen[topic] = changes
                self._on_change[topic]()

    async def _listen(self) -> None:
        """Keeps a connection that hears of changes; whatever was said before it was there is looked up."""
        import psycopg  # as everywhere, only where a server is named

        while True:
            try:
                await self._hear()
            except (psycopg.Error, OSError) as error:
                log.warning("changes are looked up every %g s only: %s", _RECHECK_INTERVAL_S, _reason(error))
            await asyncio.sleep(_RECONNECT_DELAY_S)

    async def _hear(self) -> None:
        """Ends by an error, at the latest when nobody answers any more."""
        from keylime.database.sessions import open_session

        async with asyncio.timeout(patience.OWN_WORK_S):
            connection = await open_session(self._database.url, self._sessions)
        try:
            statement = f"LISTEN {_CHANNEL}"
            while True:
                async with asyncio.timeout(patience.OWN_WORK_S):
                    await connection.execute(statement)
                statement = ""
                self._news.set()
                async for _ in connection.notifies(timeout=_SILENCE_S):
                    self._news.set()
        finally:
            await connection.close()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
