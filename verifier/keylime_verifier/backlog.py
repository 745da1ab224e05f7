"""Which revocations each agent is still to be told: one number for each agent, not a row for each pair.

When a whole fleet falls at once, every machine is to hear of every other one. Revocations are numbered in the
order of their commits, and an agent's backlog is all that follow the last one that was tried.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keylime.identifiers import AgentId
from keylime_verifier.changes import Topic
from keylime_verifier.ownership import MemberId
from keylime_verifier.schema import agents, change_counters, recipients, revocations, shards

COUNT = (
    sa.select(change_counters.c.changes)
    .where(change_counters.c.topic == Topic.REVOCATIONS.value)
    .scalar_subquery()
)
"""How many revocations there have been: the number of the newest."""

_ADVANCE = (
    sa.update(recipients)
    .where(
        recipients.c.agent_id == sa.bindparam("_agent_id"), recipients.c.through < sa.bindparam("_through")
    )
    .values(through=sa.bindparam("_through"))
)


@dataclass(frozen=True, slots=True)
class Recipient:
    """An agent with something to be told: revocations of `verifier_id` with numbers above `through`."""

    agent_id: AgentId
    verifier_id: str
    through: int

    def backlog_start(self, used: Sequence[int]) -> int:
        """Where its backlog begins in the numbers that its verifier has `used`, in rising order."""
        return bisect_right(used, self.through)


async def add_recipient(connection: AsyncConnection, agent_id: AgentId) -> None:
    """Lets a new agent be told what is revoked from here on."""
    await connection.execute(sa.insert(recipients).values(agent_id=agent_id, through=COUNT))


async def remove_recipient(connection: AsyncConnection, agent_id: AgentId) -> None:
    """Forgets what an agent, which is gone, was to be told."""
    await connection.execute(sa.delete(recipients).where(recipients.c.agent_id == agent_id))


async def advance(connection: AsyncConnection, through: Mapping[str, int]) -> None:
    """Notes up to which number agents have been tried; never backwards, whoever else did so meanwhile."""
    # Sorted, so that two transactions lock the rows in the same order.
    rows = [{"_agent_id": agent_id, "_through": number} for agent_id, number in sorted(through.items())]
    if rows:
        await connection.execute(_ADVANCE, rows)


async def numbers_in_use(connection: AsyncConnection) -> dict[str, list[int]]:
    """The numbers of revocations by verifier, in rising order; may leave out what all agents were told."""
    lowest = sa.select(sa.func.min(recipients.c.through)).scalar_subquery()
    query = (
        sa.select(revocations.c.verifier_id, revocations.c.number)
        .where(revocations.c.number > lowest)
        .order_by(revocations.c.number)
    )
    numbers: dict[str, list[int]] = {}
    for row in await connection.execute(query):
        numbers.setdefault(row.verifier_id, []).append(row.number)
    return numbers


async def waiting_recipients(
    connection: AsyncConnection, numbers: Mapping[str, Sequence[int]], owner: MemberId | None = None
) -> list[Recipient]:
    """The agents with a backlog: all, or those that `owner` polls."""
    behind = [
        sa.and_(agents.c.verifier_id == verifier_id, recipients.c.through < used[-1])
        for verifier_id, used in numbers.items()
    ]
    if not behind:
        return []
    query = (
        sa.select(agents.c.agent_id, agents.c.verifier_id, recipients.c.through)
        .select_from(agents.join(recipients, recipients.c.agent_id == agents.c.agent_id))
        .where(sa.or_(*behind))
        .order_by(agents.c.agent_id)
    )
    if owner is not None:
        query = query.where(polled_by(owner))
    rows = await connection.execute(query)
    return [Recipient(AgentId(row.agent_id), row.verifier_id, row.through) for row in rows]


async def all_told(connection: AsyncConnection) -> sa.ColumnElement[bool]:
    """The condition that no agent has a revocation in its backlog any more."""
    query = (
        sa.select(agents.c.verifier_id, sa.func.min(recipients.c.through).label("through"))
        .select_from(agents.join(recipients, recipients.c.agent_id == agents.c.agent_id))
        .group_by(agents.c.verifier_id)
    )
    waiting = [
        sa.and_(revocations.c.verifier_id == row.verifier_id, revocations.c.number > row.through)
        for row in await connection.execute(query)
    ]
    return ~sa.or_(sa.false(), *waiting)


def polled_by(owner: MemberId) -> sa.ColumnElement[bool]:
    """The condition that an agent is in a shard of `owner`."""
    return sa.exists().where(
        shards.c.verifier_id == agents.c.verifier_id,
        shards.c.shard == agents.c.shard,
        shards.c.owner == owner,
    )
