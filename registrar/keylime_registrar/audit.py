"""What was done to registrations: by administrators with their certificates, and by agents with their TPMs.

A registration that changes nothing but an address or a count is in no audit: it changes nobody's trust.
"""

import json
from collections.abc import Mapping
from enum import StrEnum

import sqlalchemy as sa

from keylime import request_id
from keylime.database.ledger import AT_ONCE, Entry, Keeping, Ledger, new_token
from keylime.database.transactions import Database
from keylime.http.refused_calls import RefusedCall
from keylime_registrar.schema import event_counter, events

MOST_UNASKED = 100_000
"""Events that no administrator caused: agents cause as many as they like, and older ones are forgotten."""

LEDGER = Ledger(events, event_counter)


class Act(StrEnum):
    """What was done. The words are in databases and on the wire."""

    REGISTERED = "registered"  # proven for the first time
    KEYS_REPLACED = "keys_replaced"  # proven again by the same TPM, with another key or certificate
    REGISTRATION_REFUSED = "registration_refused"
    REGISTRATION_DELETED = "registration_deleted"
    REGISTRATIONS_IMPORTED = "registrations_imported"  # of an earlier Keylime
    REFUSED = "refused"  # a call of an administrator


def entry(
    act: Act, agent_id: str | None, details: Mapping[str, object], *, administrator: str | None = None
) -> Entry:
    """An event of the request that is being handled, named from before its first attempt."""
    return {
        "token": new_token(),
        "at": None,
        "kind": act.value,
        "agent_id": agent_id,
        "actor": administrator,
        "request_id": request_id.handled() or None,
        "details": json.dumps(details),
    }


class Audit(Keeping):
    """Reads and forgets what was written, and writes what no other transaction does."""

    def __init__(self, database: Database, retention_s: float, most_unasked: int = MOST_UNASKED) -> None:
        super().__init__(database, LEDGER, retention_s, "audit_retention")
        self._most_unasked = most_unasked

    async def tell(self, what: Entry) -> None:
        """Adds an event. Raises DatabaseUnavailable."""
        await self._database.write("tell the audit", lambda connection: LEDGER.append(connection, [what]))

    async def tell_refused(self, call: RefusedCall) -> None:
        """Adds that a call was refused. Raises DatabaseUnavailable."""
        about = call.parameters.get("agent_id")
        await self.tell(entry(Act.REFUSED, about, call.details(), administrator=call.caller))

    async def prune(self) -> int:
        """Forgets what is too old, and of what nobody asked for also what is too much; how many events."""
        pruned = await super().prune()
        while some := await self._database.write("forget old history", self._prune_unasked):
            pruned += some
        return pruned

    def _prune_unasked(self, connection: sa.Connection) -> int:
        unasked = events.c.actor.is_(None)
        count = connection.execute(sa.select(sa.func.count()).select_from(events).where(unasked)).scalar_one()
        surplus = min(count - self._most_unasked, AT_ONCE)
        if surplus <= 0:
            return 0
        oldest = sa.select(events.c.id).where(unasked).order_by(events.c.id).limit(surplus)
        ids = connection.execute(oldest).scalars().all()
        connection.execute(sa.delete(events).where(events.c.id.in_(ids)))
        return len(ids)
