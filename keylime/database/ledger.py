"""Tables of what happened: appended to with what they tell, in the same transaction, and kept for a while.

Ids are drawn from a counter whose row stays locked until the commit, so that whoever has read up to an id
never finds a smaller one later, whatever other processes do at the same time. The counter is the last thing
that a transaction locks: no two can wait for each other by it.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from keylime.database.clock import database_time
from keylime.database.engine import DatabaseUnavailable
from keylime.database.many import insert_many
from keylime.database.transactions import Database
from keylime.messages.history import AgentHistory, HistoryEvent

log = logging.getLogger(__name__)

AT_ONCE = 500
_PRUNE_INTERVAL_S = 600.0
_COUNTER = 1  # the only row of a counter, by its key

Entry = Mapping[str, Any]
"""What one row says, but for its id. `at` is in seconds since the epoch, None for the time of the writing."""


def new_token() -> str:
    """A name for an event that no other has."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Ledger:
    """A table of events and the table with the one row that counts them."""

    events: sa.Table
    counter: sa.Table

    @property
    def of_counter(self) -> sa.ColumnElement[bool]:
        """Which row of the counter's table counts them."""
        return self.counter.c.counter == _COUNTER

    def append(self, connection: sa.Connection, entries: Sequence[Entry]) -> bool:
        """Adds rows at the end of the caller's transaction: nothing is to be locked after it.

        What is there already, from an attempt whose end was lost, is left as it is. False when that is all.
        """
        new = self._unknown(connection, entries)
        if not new:
            return False
        of_counter = self.of_counter
        connection.execute(
            sa.update(self.counter).where(of_counter).values(last=self.counter.c.last + len(new))
        )
        last, now = connection.execute(
            sa.select(self.counter.c.last, database_time()).where(of_counter)
        ).one()
        rows = [
            {**entry, "id": number, "at": int(now) if entry["at"] is None else entry["at"]}
            for number, entry in enumerate(new, last - len(new) + 1)
        ]
        insert_many(connection, sa.insert(self.events), rows)
        return True

    def since(self, connection: sa.Connection, since: float | None, after: int, limit: int) -> AgentHistory:
        """What happened with ids above `after`, from the time `since` on; oldest first."""
        begin = after if since is None else max(after, self._id_before(connection, since))
        events = self.events
        query = sa.select(events).where(events.c.id > begin).order_by(events.c.id).limit(limit + 1)
        rows = connection.execute(query).all()
        return AgentHistory([event_of(row) for row in rows[:limit]], more=len(rows) > limit)

    def prune_some(self, connection: sa.Connection, retention_s: float) -> tuple[int, bool]:
        """Forgets some of what is older: how many events, and whether those were all."""
        # Ids and times go together, but for a clock that was set: no index of times is needed.
        oldest = sa.select(self.events.c.id, self.events.c.at).order_by(self.events.c.id).limit(AT_ONCE)
        rows = connection.execute(oldest).all()
        before = connection.execute(sa.select(database_time())).scalar_one() - retention_s
        old = [row.id for row in rows if row.at < before]
        if old:
            connection.execute(sa.delete(self.events).where(self.events.c.id.in_(old)))
        return len(old), len(old) < AT_ONCE

    def _unknown(self, connection: sa.Connection, entries: Sequence[Entry]) -> list[Entry]:
        known: set[str] = set()
        for first in range(0, len(entries), AT_ONCE):
            tokens = [entry["token"] for entry in entries[first : first + AT_ONCE]]
            query = sa.select(self.events.c.token).where(self.events.c.token.in_(tokens))
            known.update(connection.execute(query).scalars())
        return [entry for entry in entries if entry["token"] not in known]

    def _id_before(self, connection: sa.Connection, since: float) -> int:
        """The last id from before a time: ids and times go together, and no index of times is needed."""
        ids, times = self.events.c.id, self.events.c.at
        low, high = connection.execute(sa.select(sa.func.min(ids), sa.func.max(ids))).one()
        if low is None:
            return 0
        low -= 1
        while low < high:
            middle = (low + high + 1) // 2
            newest = sa.select(times).where(ids <= middle).order_by(ids.desc()).limit(1)
            at = connection.execute(newest).scalar()
            if at is None or at < since:
                low = middle
            else:
                high = middle - 1
        return int(low)


class Keeping:
    """A ledger as it is read, and forgotten where it is older than `retention_s`; 0 keeps everything."""

    def __init__(self, database: Database, ledger: Ledger, retention_s: float, option: str) -> None:
        """`option` is what the log calls the retention."""
        self._database = database
        self._ledger = ledger
        self._retention_s = retention_s
        self._option = option

    async def audit(self, since: float | None, after: int, limit: int) -> AgentHistory:
        """All that was done and refused, with ids above `after`, from the time `since` on; oldest first."""
        return await self._database.read(
            "read the history", lambda connection: self._ledger.since(connection, since, after, limit)
        )

    async def prune(self) -> int:
        """Forgets what is too old; how many events."""
        if not self._retention_s:
            return 0
        pruned = 0
        while True:
            some, is_over = await self._database.write(
                "forget old history",
                lambda connection: self._ledger.prune_some(connection, self._retention_s),
            )
            pruned += some
            if is_over:
                return pruned
            await asyncio.sleep(0)

    async def run(self) -> None:
        """Forgets now and then, for ever."""
        while True:
            try:
                pruned = await self.prune()
            except DatabaseUnavailable as error:
                log.debug("%s; old history is forgotten later", error)
            else:
                if pruned:
                    log.info("forgot %d events that are older than %s", pruned, self._option)
            await asyncio.sleep(_PRUNE_INTERVAL_S)


def event_of(row: sa.Row[Any]) -> HistoryEvent:
    """A row of a ledger, as it is told."""
    found = row._mapping
    return HistoryEvent(
        id=found["id"],
        at=found["at"],
        kind=found["kind"],
        agent_id=found["agent_id"],
        policy=found.get("policy"),
        actor=found["actor"],
        request_id=found["request_id"],
        details=json.loads(found["details"]),
    )
