"""Revocations on their way: written with the verdict that causes them, kept until each target has its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keylime.identifiers import AgentId
from keylime.messages.deliveries import Deliveries, DeliveryStatus, TargetSummary
from keylime_verifier.changes import Topic, announce
from keylime_verifier.ownership import MemberId, shard_of
from keylime_verifier.records import Attempt, Delivery, StoredRevocation
from keylime_verifier.schema import agents, deliveries, members, revocations, shards
from keylime_verifier.transactions import read, write

PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"
STATES = (PENDING, DELIVERED, FAILED)
AGENT, ZEROMQ, WEBHOOK = "agent", "zeromq", "webhook"
CHANNELS = (AGENT, ZEROMQ, WEBHOOK)

# Names of parameters that are no columns begin with an underscore.
_UPDATE_MANY = sa.update(deliveries).where(
    deliveries.c.revocation_id == sa.bindparam("_revocation_id"),
    deliveries.c.channel == sa.bindparam("_channel"),
    deliveries.c.target == sa.bindparam("_target"),
    deliveries.c.state == PENDING,
)

_PRUNED_AT_ONCE = 500  # revocations in one transaction, so that verdicts do not wait long


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries are meant: those of revocations about `agent_id`, those in `state`; None is all."""

    agent_id: AgentId | None = None
    state: str | None = None

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """As conditions on the joined tables."""
        wanted = []
        if self.agent_id is not None:
            wanted.append(revocations.c.agent_id == self.agent_id)
        if self.state is not None:
            wanted.append(deliveries.c.state == self.state)
        return wanted


async def insert_revocation(
    connection: AsyncConnection,
    revocation: StoredRevocation,
    verifier_id: str,
    targets: Sequence[tuple[str, str]],
) -> None:
    """Adds a revocation and its deliveries within the caller's transaction.

    A target ("agent", "*") stands for every agent of `verifier_id`, the failed one included; a target on the
    channel zeromq for this broker and all others that verifiers of `verifier_id` run. What is there already
    stays as it is: a connection may break after the commit, and the writer tries again.
    """
    known = sa.select(revocations.c.agent_id).where(revocations.c.revocation_id == revocation.revocation_id)
    if (await connection.execute(known)).first() is not None:
        return
    await connection.execute(
        sa.insert(revocations).values(
            revocation_id=revocation.revocation_id,
            agent_id=revocation.agent_id,
            created_at=revocation.created_at,
            message=revocation.message,
            signature=revocation.signature,
            verifier_id=verifier_id,
            shard=shard_of(revocation.agent_id),
        )
    )
    rows: list[tuple[str, str]] = []
    for channel, target in targets:
        if (channel, target) == (AGENT, "*"):
            query = sa.select(agents.c.agent_id).where(agents.c.verifier_id == verifier_id)
            rows.extend((AGENT, agent_id) for agent_id in (await connection.execute(query)).scalars())
        else:
            rows.append((channel, target))
        if channel == ZEROMQ:
            brokers = sa.select(members.c.broker).where(
                members.c.verifier_id == verifier_id, members.c.broker.is_not(None)
            )
            rows.extend((ZEROMQ, broker) for broker in (await connection.execute(brokers)).scalars())
            await announce(connection, Topic.REVOCATIONS)  # who runs a broker may be another process
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
    """The deliveries that are still to be made, and for some time those that have ended."""

    def __init__(
        self, engine: AsyncEngine, carrier: MemberId, broker: str | None, *, zeromq_enabled: bool
    ) -> None:
        """`carrier` is this process, `broker` the ZeroMQ broker that it runs, if any."""
        self._engine = engine
        self._ours = _carried_by(carrier, broker, zeromq_enabled=zeromq_enabled)

    async def pending(self) -> list[Delivery]:
        """Every delivery of ours that has neither succeeded nor been given up, oldest first.

        The owner of the shard carries revocations to agents and webhook; who runs a broker, to this broker.
        """
        query = (
            sa.select(deliveries)
            .select_from(_JOINED)
            .where(deliveries.c.state == PENDING, self._ours)
            .order_by(revocations.c.created_at, revocations.c.revocation_id)
        )
        ids = (
            sa.select(deliveries.c.revocation_id)
            .select_from(_JOINED)
            .where(deliveries.c.state == PENDING, self._ours)
        )
        messages = sa.select(revocations).where(revocations.c.revocation_id.in_(ids))
        async with read(self._engine, "read pending revocations") as connection:
            # One object for all deliveries of a message: there may be thousands.
            stored = {
                row.revocation_id: StoredRevocation(
                    row.revocation_id, AgentId(row.agent_id), row.created_at, row.message, row.signature
                )
                for row in await connection.execute(messages)
            }
            rows = [row for row in await connection.execute(query) if row.revocation_id in stored]
        return [Delivery(stored[row.revocation_id], row.channel, row.target, row.attempts) for row in rows]

    async def record_attempts(self, attempts: Sequence[Attempt]) -> None:
        """Notes how attempts ended, in one transaction. What others have ended meanwhile stays so."""
        rows = [
            {
                "_revocation_id": attempt.delivery.revocation.revocation_id,
                "_channel": attempt.delivery.channel,
                "_target": attempt.delivery.target,
                "state": attempt.state,
                "attempts": attempt.delivery.attempts,
                "last_error": attempt.error,
                "updated_at": attempt.at,
            }
            for attempt in attempts
        ]
        async with write(self._engine, "record deliveries") as connection:
            await connection.execute(_UPDATE_MANY, rows)

    async def overview(self, wanted: DeliveryFilter, limit: int) -> Deliveries:
        """What `wanted` covers: every target in numbers, and the newest `limit` deliveries."""
        conditions = wanted.conditions()
        async with read(self._engine, "read the deliveries") as connection:
            errors = {
                (row.channel, row.target): row.last_error
                for row in await connection.execute(_last_errors(conditions))
            }
            summaries = [
                TargetSummary(
                    channel=row.channel,
                    target=row.target,
                    pending=int(row.pending),
                    delivered=int(row.delivered),
                    failed=int(row.failed),
                    attempts=int(row.attempts),
                    last_error=errors.get((row.channel, row.target)),
                    oldest_pending=row.oldest_pending,
                )
                for row in await connection.execute(_summaries(conditions))
            ]
            newest = [
                DeliveryStatus(**row._mapping) for row in await connection.execute(_newest(conditions, limit))
            ]
        total = sum(summary.pending + summary.delivered + summary.failed for summary in summaries)
        return Deliveries(targets=summaries, deliveries=newest, left_off=total - len(newest))

    async def prune(self, before: int) -> int:
        """Forgets revocations whose last delivery ended before `before` (epoch seconds); how many."""
        going_on = sa.exists().where(
            deliveries.c.revocation_id == revocations.c.revocation_id,
            sa.or_(deliveries.c.state == PENDING, deliveries.c.updated_at >= before),
        )
        query = sa.select(revocations.c.revocation_id).where(revocations.c.created_at < before, ~going_on)
        pruned = 0
        while True:
            async with write(self._engine, "forget old revocations") as connection:
                ids = list((await connection.execute(query.limit(_PRUNED_AT_ONCE))).scalars())
                for table in (deliveries, revocations):
                    await connection.execute(sa.delete(table).where(table.c.revocation_id.in_(ids)))
            pruned += len(ids)
            if len(ids) < _PRUNED_AT_ONCE:
                return pruned


_JOINED = deliveries.join(revocations, deliveries.c.revocation_id == revocations.c.revocation_id)
_TARGET = (deliveries.c.channel, deliveries.c.target)


def _carried_by(carrier: MemberId, broker: str | None, *, zeromq_enabled: bool) -> sa.ColumnElement[bool]:
    owns_shard = sa.exists().where(
        shards.c.verifier_id == revocations.c.verifier_id,
        shards.c.shard == revocations.c.shard,
        shards.c.owner == carrier,
    )
    nobody_has_it = ~sa.exists().where(members.c.broker == deliveries.c.target)
    over_zeromq: sa.ColumnElement[bool] = sa.false()  # this machine's broker is in another process
    if broker is not None:
        # What was meant for a broker that is gone for good goes out over those that are left.
        over_zeromq = sa.or_(deliveries.c.target == broker, nobody_has_it)
    elif not zeromq_enabled:
        over_zeromq = sa.and_(owns_shard, nobody_has_it)  # to be given up
    return sa.case((deliveries.c.channel == ZEROMQ, over_zeromq), else_=owns_shard)


def _summaries(conditions: Sequence[sa.ColumnElement[bool]]) -> sa.Select[Any]:
    counts = [
        sa.func.sum(sa.case((deliveries.c.state == state, 1), else_=0)).label(state) for state in STATES
    ]
    oldest = sa.func.min(sa.case((deliveries.c.state == PENDING, revocations.c.created_at)))
    columns = (
        *_TARGET,
        *counts,
        sa.func.sum(deliveries.c.attempts).label("attempts"),
        oldest.label("oldest_pending"),
    )
    return sa.select(*columns).select_from(_JOINED).where(*conditions).group_by(*_TARGET).order_by(*_TARGET)


def _last_errors(conditions: Sequence[sa.ColumnElement[bool]]) -> sa.Select[Any]:
    place = sa.func.row_number().over(partition_by=_TARGET, order_by=deliveries.c.updated_at.desc())
    ranked = (
        sa.select(*_TARGET, deliveries.c.last_error, place.label("place"))
        .select_from(_JOINED)
        .where(deliveries.c.last_error.is_not(None), *conditions)
        .subquery()
    )
    return sa.select(ranked.c.channel, ranked.c.target, ranked.c.last_error).where(ranked.c.place == 1)


def _newest(conditions: Sequence[sa.ColumnElement[bool]], limit: int) -> sa.Select[Any]:
    columns = (
        revocations.c.revocation_id,
        revocations.c.agent_id,
        revocations.c.created_at,
        *_TARGET,
        deliveries.c.state,
        deliveries.c.attempts,
        deliveries.c.last_error,
        deliveries.c.updated_at,
    )
    order = (revocations.c.created_at.desc(), revocations.c.revocation_id, *_TARGET)
    return sa.select(*columns).select_from(_JOINED).where(*conditions).order_by(*order).limit(limit)
