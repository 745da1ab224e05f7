"""The history of agents and policies: written with what it tells, in the same transaction, and kept.

It is a ledger, see `keylime.database.ledger`: its ids have no gaps and go up in the order of the commits.
"""

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from keylime.database.ledger import Entry, Keeping, Ledger, event_of, new_token
from keylime.database.transactions import Database
from keylime.identifiers import AgentId
from keylime.messages.history import AgentHistory, EventsAfter
from keylime_verifier.agents.events import Actor, EventKind, Occurrence, encode_details, policy_key
from keylime_verifier.agents.policy_categories import MEASURED_BOOT, RUNTIME
from keylime_verifier.database.changes import Topic, spread_news
from keylime_verifier.database.schema import agents, event_counter, events

__all__ = ["History", "act_of", "new_token", "write_events"]

_LEDGER = Ledger(events, event_counter)


def act_of(by: Actor | None, kind: EventKind, agent_id: AgentId, **details: object) -> Occurrence:
    """What `by` did to an agent."""
    return Occurrence(token=new_token(), kind=kind, agent_id=agent_id, actor=by, details=details)


def write_events(connection: sa.Connection, what: Sequence[Occurrence]) -> None:
    """Adds events at the end of the caller's transaction: nothing is to be locked after it.

    What is there already, from an attempt whose end was lost, is left as it is.
    """
    if _LEDGER.append(connection, [_entry(event) for event in what]):
        spread_news(connection, Topic.EVENTS)


def _entry(event: Occurrence) -> Entry:
    return {
        "token": event.token,
        "at": event.at,
        "kind": event.kind.value,
        "agent_id": event.agent_id,
        "policy": event.policy,
        "actor": None if event.actor is None else event.actor.certificate,
        "request_id": None if event.actor is None else event.actor.request_id,
        "details": encode_details(event.details),
    }


class History(Keeping):
    """Reads what was written, and forgets what is older than `retention_s`; 0 keeps everything."""

    def __init__(self, database: Database, retention_s: float) -> None:
        super().__init__(database, _LEDGER, retention_s, "history_retention")

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
            return AgentHistory([event_of(row) for row in rows[:limit]], more=len(rows) > limit)

        return await self._database.read("read an agent's history", work)

    async def tell(self, event: Occurrence) -> None:
        """Adds an event that no other transaction tells. Raises DatabaseUnavailable."""
        await self._database.write("tell the history", lambda connection: write_events(connection, [event]))

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
            .where(_LEDGER.of_counter)
            .order_by(some.c.id)
        )

        def work(connection: sa.Connection) -> EventsAfter:
            rows = connection.execute(query).all()
            last, oldest = rows[0].last, rows[0].oldest
            found = [event_of(row) for row in rows if row.id is not None]
            # Nothing is left of a history that was forgotten: it would go on after its last id.
            return EventsAfter(found, first=last + 1 if oldest is None else oldest, last=last)

        return await self._database.read("read the history", work)


def _policies_of(row: sa.Row[Any, Any, Any]) -> list[str]:
    """What the history calls the policies that an agent uses."""
    runtime, parts, boot = row
    found = {runtime, *(part["name"] for part in json.loads(parts or "[]"))}
    names = [policy_key(RUNTIME, name) for name in sorted(found)]
    return names if boot is None else [*names, policy_key(MEASURED_BOOT, boot)]
