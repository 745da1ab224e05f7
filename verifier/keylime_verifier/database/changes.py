"""How verifiers that share a database tell each other of changes: by counters, and by news but on MariaDB.

News say only that there is something to read. Who missed any reads the counters, and finds the same.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from keylime import patience
from keylime.database.engine import DatabaseUnavailable
from keylime.database.file_watch import watched_file
from keylime.database.servers import Sessions
from keylime.database.transactions import Database
from keylime_verifier.database.schema import change_counters, event_counter

log = logging.getLogger("keylime.verifier")

_CHANNEL = "keylime_verifier"
_POLL_INTERVAL_S = 0.25  # MariaDB, and the file of SQLite
_RECHECK_INTERVAL_S = 5.0  # should news ever be lost
_RECONNECT_DELAY_S = 1.0
# What is different when another server answers, or the same one was started anew.
_SERVERS: Mapping[str, sa.ColumnElement[object]] = {
    "postgresql": sa.func.pg_postmaster_start_time(),
    "mariadb": sa.literal_column("CONCAT_WS(' ', @@hostname, @@port, @@server_id)"),
}
_SILENCE_S = 15.0  # after which a connection without news is asked whether anybody is there


class Topic(Enum):
    """What changed: agents or policies, the members and their shards, or revocations for others to carry.

    EVENTS is what the history was told; its counter is that of the events, see `history`.
    """

    AGENTS = "agents"
    SHARDS = "shards"
    REVOCATIONS = "revocations"
    EVENTS = "events"


def _counters(which_server: sa.ColumnElement[Any]) -> sa.CompoundSelect[Any]:
    """What has been counted of each topic, and who says so."""
    topics = sa.select(change_counters.c.topic, change_counters.c.changes, which_server.label("server"))
    events = sa.select(sa.literal(Topic.EVENTS.value), event_counter.c.last, which_server)  # of one row
    return topics.union_all(events)


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
        self._listen = {"postgresql": self._listen_to_server, "sqlite": self._watch_file}.get(backend)
        self._query = _counters(_SERVERS.get(backend, sa.null()))
        self._seen: dict[Topic, int] = {}
        self._server: object = None
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Watches for ever; what changes while the database is away is seen when it is back."""
        if self._listen is None:
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
        rows = await self._database.read(
            "read the change counters", lambda connection: connection.execute(self._query).all()
        )
        servers = {row.server for row in rows}
        if servers != {self._server}:
            (self._server,) = servers or {None}
            self._seen.clear()
        for topic, changes in {Topic(row.topic): row.changes for row in rows}.items():
            if self._seen.get(topic) != changes:
                self._seen[topic] = changes
                self._on_change[topic]()

    async def _watch_file(self) -> None:
        """Lets a file tell that somebody has committed something, most often this process itself."""
        loop = asyncio.get_running_loop()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # at the very end: the loop is closed
                loop.call_soon_threadsafe(self._news.set)

        with watched_file(Path(self._database.url.database or ""), _POLL_INTERVAL_S, tell):
            await asyncio.Event().wait()

    async def _listen_to_server(self) -> None:
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
