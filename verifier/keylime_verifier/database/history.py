"""The history of agents and policies: written with what it tells, in the same transaction, and kept.

Ids are drawn from a counter whose row stays locked until the commit, so that whoever has read up to an id
never finds a smaller one later, whatever the verifiers and their databases do at the same time. The counter
is the last thing that a transaction locks: no two can wait for each other by it.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from keylime.database.clock import database_time
from keylime.database.engine import DatabaseUnavailable
from keylime.database.many import insert_many
from keylime.database.transactions import Database
from keylime.identifiers import AgentId
from keylime.messages.history import AgentHistory, EventsAfter, HistoryEvent
from keylime_verifier.agents.events import Actor, Event, EventKind, encode_details, policy_key
from keylime_verifier.agents.policy_categories import MEASURED_BOOT, RUNTIME
from keylime_verifier.database.changes import Topic, spread_news
from keylime_verifier.database.schema import agents, event_counter, events

log = logging.getLogger("keylime.verifier")

_AT_ONCE = 500
_PRUNE_INTERVAL_S = 600.0
_COUNTER = 1
_LAST_AND_NOW = sa.select(event_counter.c.last, database_time()).where(event_counter.c.counter == _COUNTER)


def new_token() -> str:
    """A name for an event that no other has."""
    return uuid.uuid4().hex


def act_of(by: Actor | None, kind: EventKind, agent_id: AgentId, **details: object) -> Event:
    """What `by` did to an agent."""
    return Event(token=new_token(), kind=kind, agent_id=agent_id, actor=by, details=details)


def write_events(connection: sa.Connection, what: Sequence[Event]) -> None:
    """Adds events at the end of the caller's transaction: nothing is to be locked after it.

    What is there already, from an attempt whose end was lost, is left as it is.
    """
    new = _unknown(connection, what)
    if not new:
        return
    connection.execute(
        sa.update(event_counter)
        .where(event_counter.c.counter == _COUNTER)
        .values(last=event_counter.c.last + len(new))
    )
    last, now = connection.execute(_LAST_AND_NOW).one()
    insert_many(
        connection,
        sa.insert(events),
        [
            {
                "id": number,
                "token": event.token,
                "at": int(now) if event.at is None else event.at,
                "kind": event.kind.value,
                "agent_id": event.agent_id,
                "policy": event.policy,
                "actor": None if event.actor is None else event.actor.certificate,
                "request_id": None if event.actor is None else event.actor.request_id,
                "details": encode_details(event.details),
            }
            for number, event in enumerate(new, last - len(new) + 1)
        ],
    )
    spread_news(connection, Topic.EVENTS)


def _unknown(connection: sa.Connection, what: Sequence[Event]) -> list[Event]:
    known: set[str] = set()
    for first in range(0, len(what), _AT_ONCE):
        tokens = [event.token for event in what[first : first + _AT_ONCE]]
        query = sa.select(events.c.token).where(events.c.token.in_(tokens))
        known.update(connection.execute(query).scalars())
    return [event for event in what if event.token not in known]


class History:
    """Reads what was written, and forgets what is older than `retention_s`; 0 keeps everything."""

    def __init__(self, database: Database, retention_s: float) -> None:
        self._database = database
        self._retention_s = retention_s

    async def of_agent(self, agent_id: AgentId, after: int, limit: int) -> AgentHistory | None:
        """What happened to an agent, and to the policies that it uses, with ids above `after`; oldest first.

        None for an agent that is not there and never was. Of policies there is what happened since the
        agent's first event.
        """

        def work(connection: sa.Connection) -> AgentHistory | None:
            used = sa.select(agents.c.runtime_policy, agents.c.runtime_parts, agents.c.measured_boot_policy)
            row = connection.execute(used.where(agents.c.agent_id == agent_id)).first()
            first = connection.execute(
                sa.select(sa.func.min(events.c.id)).where(
                    events.c.agent_id == agent_id, events.c.kind != EventKind.REFUSED.value
                )
            ).scalar()
            if row is None and first is None:
                return None
            names = [] if row is None else _policies_of(row)
            of_policies = sa.and_(events.c.policy.in_(names), events.c.id >= (first or 0))
            query = (
                sa.select(events)
                .where(
                    events.c.id > after,
                    events.c.kind != EventKind.REFUSED.value,  # which has not happened
                    sa.or_(events.c.agent_id == agent_id, of_policies),
                )
                .order_by(events.c.id)
                .limit(limit + 1)
            )
            rows = connection.execute(query).all()
            return AgentHistory([_event_of(row) for row in rows[:limit]], more=len(rows) > limit)

        return await self._database.read("read an agent's history", work)

    async def tell(self, event: Event) -> None:
        """Adds an event that no other transaction tells. Raises DatabaseUnavailable."""
        await self._database.write("tell the history", lambda connection: write_events(connection, [event]))

    async def audit(self, since: float | None, after: int, limit: int) -> AgentHistory:
        """All that was done and refused, with ids above `after`, from the time `since` on; oldest first."""

        def work(connection: sa.Connection) -> AgentHistory:
            begin = after if since is None else max(after, _id_before(connection, since))
            query = sa.select(events).where(events.c.id > begin).order_by(events.c.id).limit(limit + 1)
            rows = connection.execute(query).all()
            return AgentHistory([_event_of(row) for row in rows[:limit]], more=len(rows) > limit)

        return await self._database.read("read the history", work)

    async def last_id(self) -> int:
        """The id of what happened last; 0 before anything did."""
        query = sa.select(event_counter.c.last)
        return await self._database.read(
            "read the history", lambda connection: int(connection.execute(query).scalar_one())
        )

    async def events_after(self, after: int, agent_id: AgentId | None, limit: int) -> EventsAfter:
        """What happened with ids above `after`, to one agent or to everything; oldest first."""

        newer = sa.select(events).where(events.c.id > after)
        if agent_id is not None:
            newer = newer.where(events.c.agent_id == agent_id)
        some = newer.order_by(events.c.id).limit(limit).subquery()
        oldest = sa.select(sa.func.min(events.c.id)).scalar_subquery()
        # One statement: what two of them see need not go together on every database.
        query = (
            sa.select(event_counter.c.last, oldest.label("oldest"), some)
            .select_from(event_counter.outerjoin(some, sa.true()))
            .where(event_counter.c.counter == _COUNTER)
            .order_by(some.c.id)
        )

        def work(connection: sa.Connection) -> EventsAfter:
            rows = connection.execute(query).all()
            last, oldest = rows[0].last, rows[0].oldest
            found = [_event_of(row) for row in rows if row.id is not None]
            # Nothing is left of a history that was forgotten: it would go on after its last id.
            return EventsAfter(found, first=last + 1 if oldest is None else oldest, last=last)

        return await self._database.read("read the history", work)

    async def prune(self) -> int:
        """Forgets what is too old; how many events."""
        if not self._retention_s:
            return 0
        pruned = 0
        while True:
            some, is_over = await self._database.write("forget old history", self._prune_some)
            pruned += some
            if is_over:
                return pruned
            await asyncio.sleep(0)

    def _prune_some(self, connection: sa.Connection) -> tuple[int, bool]:
        # Ids and times go together, but for a clock that was set: no index of times is needed.
        oldest = sa.select(events.c.id, events.c.at).order_by(events.c.id).limit(_AT_ONCE)
        rows = connection.execute(oldest).all()
        before = connection.execute(sa.select(database_time())).scalar_one() - self._retention_s
        old = [row.id for row in rows if row.at < before]
        if old:
            connection.execute(sa.delete(events).where(events.c.id.in_(old)))
        return len(old), len(old) < _AT_ONCE

    async def run(self) -> None:
        """Forgets now and then, for ever."""
        while True:
            try:
                pruned = await self.prune()
            except DatabaseUnavailable as error:
                log.debug("%s; old history is forgotten later", error)
            else:
                if pruned:
                    log.info("forgot %d events that are older than history_retention", pruned)
            await asyncio.sleep(_PRUNE_INTERVAL_S)


def _id_before(connection: sa.Connection, since: float) -> int:
    """The last id from before a time: ids and times go together, and no index of times is needed."""
    low, high = connection.execute(sa.select(sa.func.min(events.c.id), sa.func.max(events.c.id))).one()
    if low is None:
        return 0
    low -= 1
    while low < high:
        middle = (low + high + 1) // 2
        newest = sa.select(events.c.at).where(events.c.id <= middle).order_by(events.c.id.desc()).limit(1)
        at = connection.execute(newest).scalar()
        if at is None or at < since:
            low = middle
        else:
            high = middle - 1
    return int(low)


def _policies_of(row: sa.Row[Any, Any, Any]) -> list[str]:
    """What the history calls the policies that an agent uses."""
    runtime, parts, boot = row
    found = {runtime, *(part["name"] for part in json.loads(parts or "[]"))}
    names = [policy_key(RUNTIME, name) for name in sorted(found)]
    return names if boot is None else [*names, policy_key(MEASURED_BOOT, boot)]


def _event_of(row: sa.Row[Any]) -> HistoryEvent:
    found = row._mapping
    return HistoryEvent(
        id=found["id"],
        at=found["at"],
        kind=found["kind"],
        agent_id=found["agent_id"],
        policy=found["policy"],
        actor=found["actor"],
        request_id=found["request_id"],
        details=json.loads(found["details"]),
    )
