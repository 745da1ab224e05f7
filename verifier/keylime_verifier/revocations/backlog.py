"""Which revocations each agent is still to be told: one number for each agent, not a row for each pair.

When a whole fleet falls at once, every machine is to hear of every other one. Revocations are numbered in the
order of their commits, and an agent's backlog is all that follow the last one that was tried. What was told
needs no rows either: an agent was told all up to there, but for those that have a row of their own.
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from keylime.database.many import Becomes, update_many
from keylime.identifiers import AgentId
from keylime_verifier.agents.deliveries import AGENT, WAITING
from keylime_verifier.agents.shards import MemberId, VerifierId
from keylime_verifier.database.changes import Topic
from keylime_verifier.database.schema import (
    agents,
    change_counters,
    deliveries,
    recipients,
    revocations,
    shards,
)

IS_WAITING = sa.or_(*(deliveries.c.state == state for state in WAITING))
"""The condition that a delivery is in one of them. Not a list of values: it is used for many rows."""

COUNT = (
    sa.select(change_counters.c.changes)
    .where(change_counters.c.topic == Topic.REVOCATIONS.value)
    .scalar_subquery()
)
"""How many revocations there have been: the number of the newest."""


@dataclass(slots=True)
class Advance:
    """What became of attempts at one agent: up to which number it was tried, what was told at which cost."""

    through: int = 0
    attempts: int = 0
    told_at: int | None = None


@dataclass(frozen=True, slots=True)
class Recipient:
    """An agent with something to be told: revocations of `verifier_id` with numbers above `through`.

    It was told those above `since` before, in `attempts` attempts, the last time at `told_at`.
    """

    agent_id: AgentId
    verifier_id: VerifierId
    through: int
    since: int
    attempts: int
    told_at: int | None

    def backlog_start(self, used: Sequence[int]) -> int:
        """Where its backlog begins in the numbers that its verifier has `used`, in rising order."""
        return bisect_right(used, self.through)


def add_recipients(connection: sa.Connection, ids: Collection[AgentId]) -> None:
    """Lets new agents, which are stored already, be told what is revoked from here on."""
    new = sa.select(agents.c.agent_id, COUNT, COUNT).where(agents.c.agent_id.in_(ids))
    connection.execute(sa.insert(recipients).from_select(["agent_id", "through", "since"], new))


def remove_recipient(connection: sa.Connection, agent_id: AgentId) -> None:
    """Forgets what an agent, which is gone, was to be told; one that is added anew does not hear of it."""
    connection.execute(sa.delete(recipients).where(recipients.c.agent_id == agent_id))
    connection.execute(
        sa.delete(deliveries).where(
            IS_WAITING, deliveries.c.channel == AGENT, deliveries.c.target == agent_id
        )
    )


def lock_recipients(connection: sa.Connection, ids: Collection[str]) -> dict[str, int]:
    """Up to which number each of some agents has been tried. Others who want to note anything wait."""
    query = sa.select(recipients.c.agent_id, recipients.c.through).where(recipients.c.agent_id.in_(ids))
    rows = connection.execute(query.order_by(recipients.c.agent_id).with_for_update())
    return {row.agent_id: row.through for row in rows}


def advance(connection: sa.Connection, by_agent: Mapping[str, Advance]) -> None:
    """Notes how far agents have been tried, never backwards, whoever else did so meanwhile."""
    rows = [
        {
            "_agent_id": agent_id,
            "through": one.through,
            "attempts": one.attempts,
            "told_at": one.told_at,
        }
        for agent_id, one in sorted(by_agent.items())
    ]
    becomes: dict[str, Becomes] = {
        "through": lambda stored, given: sa.case((stored < given, given), else_=stored),
        "attempts": lambda stored, given: stored + given,
        "told_at": lambda stored, given: sa.func.coalesce(given, stored),
    }
    update_many(connection, recipients, {"_agent_id": recipients.c.agent_id}, rows, becomes)


def numbers_in_use(connection: sa.Connection) -> dict[VerifierId, list[int]]:
    """The numbers of revocations by verifier, in rising order; may leave out what all agents were told."""
    lowest = sa.select(sa.func.min(recipients.c.through)).scalar_subquery()
    query = (
        sa.select(revocations.c.verifier_id, revocations.c.number)
        .where(revocations.c.number > lowest)
        .order_by(revocations.c.number)
    )
    numbers: dict[VerifierId, list[int]] = {}
    for row in connection.execute(query):
        numbers.setdefault(row.verifier_id, []).append(row.number)
    return numbers


def waiting_recipients(
    connection: sa.Connection, numbers: Mapping[VerifierId, Sequence[int]], owner: MemberId
) -> list[Recipient]:
    """The agents with a backlog that `owner` polls."""
    behind = [
        sa.and_(agents.c.verifier_id == verifier_id, recipients.c.through < used[-1])
        for verifier_id, used in numbers.items()
    ]
    if not behind:
        return []
    return _recipients(connection, sa.or_(*behind), polled_by(owner))


def all_recipients(connection: sa.Connection) -> list[Recipient]:
    """Every agent, told or not."""
    return _recipients(connection)


def _recipients(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> list[Recipient]:
    query = (
        sa.select(agents.c.verifier_id, recipients)
        .select_from(agents.join(recipients, recipients.c.agent_id == agents.c.agent_id))
        .where(*conditions)
        .order_by(agents.c.agent_id)
    )
    return [
        Recipient(
            AgentId(row.agent_id),
            VerifierId(row.verifier_id),
            row.through,
            row.since,
            row.attempts,
            row.told_at,
        )
        for row in connection.execute(query)
    ]


def all_told(connection: sa.Connection) -> sa.ColumnElement[bool]:
    """The condition that no agent has a revocation in its backlog any more."""
    query = (
        sa.select(agents.c.verifier_id, sa.func.min(recipients.c.through).label("through"))
        .select_from(agents.join(recipients, recipients.c.agent_id == agents.c.agent_id))
        .group_by(agents.c.verifier_id)
    )
    waiting = [
        sa.and_(revocations.c.verifier_id == row.verifier_id, revocations.c.number > row.through)
        for row in connection.execute(query)
    ]
    return ~sa.or_(sa.false(), *waiting)


def polled_by(owner: MemberId) -> sa.ColumnElement[bool]:
    """The condition that an agent is in a shard of `owner`."""
    return sa.exists().where(
        shards.c.verifier_id == agents.c.verifier_id,
        shards.c.shard == agents.c.shard,
        shards.c.owner == owner,
    )
