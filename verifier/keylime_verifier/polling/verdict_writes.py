"""What the transactions do that write what came of rounds: passes by the thousand, and changes of state."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from msgspec.structs import replace

from keylime.appraisal.checkpoint import encode_checkpoint
from keylime.database.many import update_many
from keylime.errors import KeylimeError
from keylime.identifiers import AgentId
from keylime_verifier.agents.events import Occurrence
from keylime_verifier.agents.records import (
    AgentRecord,
    HeldVersions,
    StoredRevocation,
)
from keylime_verifier.database.changes import Topic, publish
from keylime_verifier.database.history import write_events
from keylime_verifier.database.schema import agents, progress
from keylime_verifier.polling.fencing import (
    Ruling,
    is_current,
    lock_agent,
    lock_agents,
    lock_claims,
    rule_on_pass,
    rule_on_rejection,
    was_told,
)
from keylime_verifier.polling.rows import (
    COUNTERS,
    lasting,
    position_columns,
    rejection_columns,
    verdict_columns,
)
from keylime_verifier.revocations.outbox import insert_revocation

_AT_ONCE = 500
# Names of parameters that are no columns begin with an underscore.
_VERSION = {
    "_agent_id": progress.c.agent_id,
    "_incarnation": progress.c.incarnation,
    "_recalls": progress.c.recalls,
}


def write_passes(
    connection: sa.Connection,
    records: Sequence[AgentRecord],
    learned: Collection[AgentId],
    events: Mapping[AgentId, Sequence[Occurrence]],
) -> list[AgentRecord]:
    """Writes rounds that changed counters and checkpoints only; which of them others have to judge again."""
    claims = lock_claims(connection, records)
    lost = [record for record, claim in zip(records, claims, strict=True) if claim != record.claim]
    refused = []
    if lost:
        publish(connection, Topic.AGENTS)
        refused = _recall(connection, lost)
    ours = sorted(
        (record for record, claim in zip(records, claims, strict=True) if claim == record.claim),
        key=lambda record: record.agent_id,
    )
    changed = _lock_current(connection, [one for one in ours if one.agent_id in learned])
    update_many(
        connection,
        progress,
        _VERSION,
        [_version_key(record) | position_columns(record.progress) for record in ours],
    )
    update_many(
        connection,
        agents,
        {"_agent_id": agents.c.agent_id},
        [
            {
                "_agent_id": record.agent_id,
                "checkpoint": encode_checkpoint(lasting(record.progress.checkpoint)),
            }
            for record in changed
        ],
    )
    write_events(connection, [one for record in changed for one in events.get(record.agent_id, ())])
    return refused


@dataclass(frozen=True, slots=True)
class StateChange:
    """A change of state that is no rejection and revokes nothing, and what the history tells of it."""

    record: AgentRecord
    events: Sequence[Occurrence]


class TakenOver(KeylimeError):
    """Some of several agents belong to another verifier, which locks their rows in an order of its own."""


def write_states(connection: sa.Connection, changes: Sequence[StateChange]) -> list[Ruling]:
    """Writes changes of state that count, as `write_verdict` does, and what became of each.

    Raises TakenOver when they are several and some agents are another verifier's.
    """
    records = [change.record for change in changes]
    claims = lock_claims(connection, records)
    lost = [record for record, claim in zip(records, claims, strict=True) if claim != record.claim]
    if lost and len(changes) > 1:
        raise TakenOver(", ".join(record.agent_id for record in lost))
    if lost:
        publish(connection, Topic.AGENTS)  # before the agents' rows, as operators' acts do
    found = lock_agents(connection, records)
    rulings = [
        rule_on_pass(record, replace(stored, claim=claim) if (stored := found.get(record.agent_id)) else None)
        for record, claim in zip(records, claims, strict=True)
    ]
    _recall(connection, [record for record in lost if record.agent_id in found])
    counting = sorted(
        (change for change, ruling in zip(changes, rulings, strict=True) if ruling is Ruling.COUNTS),
        key=lambda change: change.record.agent_id,
    )
    for table, columns_of in ((agents, verdict_columns), (progress, position_columns)):
        rows = [{"_agent_id": one.record.agent_id} | columns_of(one.record.progress) for one in counting]
        update_many(connection, table, {"_agent_id": table.c.agent_id}, rows)
    write_events(connection, [event for change in counting for event in change.events])
    return rulings


def write_verdict(
    connection: sa.Connection,
    record: AgentRecord,
    revocation: StoredRevocation | None,
    targets: Sequence[tuple[str, str]],
    held_to: HeldVersions | None,
    events: Sequence[Occurrence],
) -> Ruling:
    """Writes a change of state, with the revocation it causes, if it counts, and tells the history."""
    (claim,) = lock_claims(connection, (record,))
    is_owner = claim == record.claim
    if not is_owner:
        publish(connection, Topic.AGENTS)  # before the agent's row, as operators' acts do
    found = lock_agent(connection, record, claim, with_policies=held_to is not None)
    ruling = rule_on_pass(record, found) if held_to is None else rule_on_rejection(record, held_to, found)
    if found is None or ruling is Ruling.KNOWN:
        return ruling
    if ruling is not Ruling.COUNTS:
        if not is_owner:
            _recall(connection, [record])
        return ruling
    if is_current(record, found):
        update_agent(connection, record.agent_id, verdict_columns(record.progress))
        move_agent(connection, record.agent_id, position_columns(record.progress))
    else:
        # What others have counted since stays.
        update_agent(connection, record.agent_id, rejection_columns(record.progress))
        position = position_columns(record.progress)
        for name in COUNTERS:
            del position[name]
        move_agent(connection, record.agent_id, position | {"recalls": progress.c.recalls + 1})
        if was_told(record, found):
            write_events(connection, events)
            return ruling
    if revocation is not None:
        insert_revocation(connection, revocation, record.enrolment.verifier_id, targets)
        events = [_with_revocation(one, revocation) for one in events]
    write_events(connection, events)
    return ruling


def _with_revocation(event: Occurrence, revocation: StoredRevocation) -> Occurrence:
    return dataclasses.replace(event, details={**event.details, "revocation": revocation.revocation_id})


def update_agent(connection: sa.Connection, agent_id: AgentId, values: Mapping[str, object]) -> None:
    """Changes what an agent is and how it was judged."""
    connection.execute(sa.update(agents).where(agents.c.agent_id == agent_id).values({**values}))


def move_agent(connection: sa.Connection, agent_id: AgentId, values: Mapping[str, object]) -> None:
    """Changes how far an agent has come."""
    connection.execute(sa.update(progress).where(progress.c.agent_id == agent_id).values({**values}))


def _version_key(record: AgentRecord) -> dict[str, object]:
    """The values of `_VERSION`: what must not have changed since the record was read."""
    return {"_agent_id": record.agent_id, "_incarnation": record.generation, "_recalls": record.recalls}


def _lock_current(connection: sa.Connection, records: Sequence[AgentRecord]) -> list[AgentRecord]:
    """Those of `records` that nothing has overtaken; both rows of each are locked, `agents` first."""
    found: dict[str, tuple[str, int]] = {}
    for first in range(0, len(records), _AT_ONCE):
        ids = [record.agent_id for record in records[first : first + _AT_ONCE]]
        query = (
            sa.select(progress.c.agent_id, progress.c.incarnation, progress.c.recalls)
            .select_from(agents.join(progress, progress.c.agent_id == agents.c.agent_id))
            .where(agents.c.agent_id.in_(ids))
            .order_by(agents.c.agent_id)
            .with_for_update()
        )
        rows = connection.execute(query)
        found |= {row.agent_id: (row.incarnation, row.recalls) for row in rows}
    return [one for one in records if found.get(one.agent_id) == (one.generation, one.recalls)]


def _recall(connection: sa.Connection, records: Sequence[AgentRecord]) -> list[AgentRecord]:
    """Has agents that are polled judged again by the owners of their shards; which of `records` still matter.

    The caller announces it first.
    """
    by_id = {record.agent_id: record for record in records}
    ids = sorted(by_id)
    recalled: list[AgentRecord] = []
    for first in range(0, len(ids), _AT_ONCE):
        query = (
            sa.select(agents.c.agent_id, agents.c.is_polled, progress.c.incarnation)
            .join(progress, progress.c.agent_id == agents.c.agent_id)
            .where(agents.c.agent_id.in_(ids[first : first + _AT_ONCE]))
            .order_by(agents.c.agent_id)
            .with_for_update()
        )
        rows = connection.execute(query).all()
        found = {row.agent_id: row.incarnation for row in rows}
        polled = [row.agent_id for row in rows if row.is_polled]
        connection.execute(
            sa.update(progress).where(progress.c.agent_id.in_(polled)).values(recalls=progress.c.recalls + 1)
        )
        recalled.extend(by_id[one] for one in found if found[one] == by_id[one].generation)
    return recalled
