"""Revocations on their way: written with the verdict that causes them, kept until each target has its own."""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keylime.identifiers import AgentId
from keylime_verifier.records import Delivery, StoredRevocation
from keylime_verifier.schema import agents, deliveries, revocations
from keylime_verifier.transactions import read, write

PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"
AGENT, ZEROMQ, WEBHOOK = "agent", "zeromq", "webhook"


async def insert_revocation(
    connection: AsyncConnection,
    revocation: StoredRevocation,
    verifier_id: str,
    targets: Sequence[tuple[str, str]],
) -> None:
    """Adds a revocation and its deliveries within the caller's transaction.

    A target ("agent", "*") stands for every agent of `verifier_id`, the failed one included.
    """
    await connection.execute(
        sa.insert(revocations).values(
            revocation_id=revocation.revocation_id,
            agent_id=revocation.agent_id,
            created_at=revocation.created_at,
            message=revocation.message,
            signature=revocation.signature,
        )
    )
    rows: list[tuple[str, str]] = []
    for channel, target in targets:
        if (channel, target) == (AGENT, "*"):
            query = sa.select(agents.c.agent_id).where(agents.c.verifier_id == verifier_id)
            rows.extend((AGENT, agent_id) for agent_id in (await connection.execute(query)).scalars())
        else:
            rows.append((channel, target))
    if rows:
        await connection.execute(
            sa.insert(deliveries),
            [
                {
                    "revocation_id": revocation.revocation_id,
                    "channel": channel,
                    "target": target,
                    "state": PENDING,
                    "attempts": 0,
                    "updated_at": revocation.created_at,
                }
                for channel, target in dict.fromkeys(rows)
            ],
        )


class Outbox:
    """The deliveries that are still to be made."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def pending(self) -> list[Delivery]:
        """Every delivery that has neither succeeded nor been given up, oldest first."""
        query = (
            sa.select(revocations, deliveries.c.channel, deliveries.c.target, deliveries.c.attempts)
            .join(deliveries, deliveries.c.revocation_id == revocations.c.revocation_id)
            .where(deliveries.c.state == PENDING)
            .order_by(revocations.c.created_at)
        )
        async with read(self._engine, "read pending revocations") as connection:
            rows = (await connection.execute(query)).all()
        return [
            Delivery(
                StoredRevocation(
                    row.revocation_id, AgentId(row.agent_id), row.created_at, row.message, row.signature
                ),
                row.channel,
                row.target,
                row.attempts,
            )
            for row in rows
        ]

    async def record_attempt(
        self, delivery: Delivery, state: str, now: int, error: str | None = None
    ) -> None:
        """Notes how one attempt ended."""
        async with write(self._engine, "record a delivery") as connection:
            await connection.execute(
                sa.update(deliveries)
                .where(
                    deliveries.c.revocation_id == delivery.revocation.revocation_id,
                    deliveries.c.channel == delivery.channel,
                    deliveries.c.target == delivery.target,
                )
                .values(state=state, attempts=delivery.attempts + 1, last_error=error, updated_at=now)
            )
