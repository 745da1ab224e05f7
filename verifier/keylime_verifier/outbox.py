"""Revocations on their way: written with the verdict that causes them, kept until each target has its own."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keylime.identifiers import AgentId
from keylime_verifier import backlog
from keylime_verifier.changes import Topic, announce
from keylime_verifier.ownership import MemberId, shard_of
from keylime_verifier.records import Attempt, Delivery, StoredRevocation
from keylime_verifier.schema import agents, deliveries, members, revocations, shards
from keylime_verifier.transactions import read, write

KeyT = TypeVar("KeyT", int, str)

PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"
STATES = (PENDING, DELIVERED, FAILED)
AGENT, ZEROMQ, WEBHOOK = "agent", "zeromq", "webhook"
CHANNELS = (AGENT, ZEROMQ, WEBHOOK)

AGENT_WINDOW = 16
"""How many revocations an agent is told over one connection; it never has more rows that are pending."""

_OTHER_WINDOW = 500  # of a broker or webhook, read at once
_PRUNED_AT_ONCE = 500  # revocations in one transaction, so that verdicts do not wait long


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
    await announce(connection, Topic.REVOCATIONS)  # other processes carry it to their agents and brokers
    await connection.execute(
        sa.insert(revocations).values(
            revocation_id=revocation.revocation_id,
            agent_id=revocation.agent_id,
            created_at=revocation.created_at,
            message=revocation.message,
            signature=revocation.signature,
            verifier_id=verifier_id,
            shard=shard_of(revocation.agent_id),
            number=backlog.COUNT if (AGENT, "*") in targets else 0,
        )
    )
    rows = [target for target in targets if target != (AGENT, "*")]
    if any(channel == ZEROMQ for channel, _ in rows):
        brokers = sa.select(members.c.broker).where(
            members.c.verifier_id == verifier_id, members.c.broker.is_not(None)
        )
        rows.extend((ZEROMQ, broker) for broker in (await connection.execute(brokers)).scalars())
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
        self._carrier = carrier
        self._ours = _carried_by(carrier, broker, zeromq_enabled=zeromq_enabled)

    async def pending(self) -> list[Delivery]:
        """The next deliveries of ours to each target, oldest first; of an agent's backlog only the first.

        Who polls an agent carries revocations to it; who polls the revoked one, to the webhook; who runs a
        broker, to this broker. What follows in a backlog is for agents that take the first: see `following`.
        """
        async with read(self._engine, "read pending revocations") as connection:
            rows = (await connection.execute(_first_of_each(self._ours))).all()
            numbers = await backlog.numbers_in_use(connection)
            recipients = await backlog.waiting_recipients(connection, numbers, self._carrier)
            taken = Counter(row.target for row in rows if row.channel == AGENT)
            heads = [
                (recipient.agent_id, used[recipient.backlog_start(used)])
                for recipient in recipients
                if taken[recipient.agent_id] < AGENT_WINDOW
                for used in (numbers[recipient.verifier_id],)
            ]
            stored = await _read_revocations(
                connection, {row.revocation_id for row in rows}, revocations.c.revocation_id
            )
            numbered = await _read_revocations(
                connection, {number for _, number in heads}, revocations.c.number
            )
        # One object for all deliveries of a message: there may be thousands.
        found = [
            Delivery(stored[row.revocation_id], row.channel, row.target, row.attempts)
            for row in rows
            if row.revocation_id in stored
        ]
        found.extend(
            Delivery(numbered[number], AGENT, agent_id, 0, number)
            for agent_id, number in heads
            if number in numbered
        )
        return found

    async def following(self, target: AgentId, after: int, limit: int) -> list[Delivery]:
        """The next deliveries to an agent of ours, those with numbers above `after`; at most `limit`."""
        ours = sa.exists().where(
            agents.c.agent_id == target,
            agents.c.verifier_id == revocations.c.verifier_id,
            backlog.polled_by(self._carrier),
        )
        query = (
            sa.select(revocations)
            .where(revocations.c.number > after, ours)
            .order_by(revocations.c.number)
            .limit(limit)
        )
        async with read(self._engine, "read pending revocations") as connection:
            rows = (await connection.execute(query)).all()
        return [Delivery(_stored(row), AGENT, target, 0, row.number) for row in rows]

    async def record_attempts(self, attempts: Sequence[Attempt]) -> None:
        """Notes how attempts ended, in one transaction. What others have ended meanwhile stays so."""
        tried: dict[str, int] = {}
        for delivery in (attempt.delivery for attempt in attempts):
            if delivery.number is not None:
                tried[delivery.target] = max(delivery.number, tried.get(delivery.target, 0))
        ids = {attempt.delivery.revocation.revocation_id for attempt in attempts}
        async with write(self._engine, "record deliveries") as connection:
            query = sa.select(revocations.c.revocation_id).where(revocations.c.revocation_id.in_(ids))
            still_there = set((await connection.execute(query)).scalars())
            rows = [
                {
                    "revocation_id": attempt.delivery.revocation.revocation_id,
                    "channel": attempt.delivery.channel,
                    "target": attempt.delivery.target,
                    "state": attempt.state,
                    "attempts": attempt.delivery.attempts,
                    "last_error": attempt.error,
                    "updated_at": attempt.at,
                }
                for attempt in sorted(attempts, key=lambda attempt: attempt.delivery.key)
                if attempt.delivery.revocation.revocation_id in still_there
            ]
            if rows:
                await connection.execute(_put_many(connection), rows)
            await backlog.advance(connection, tried)

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
                over = query.where(await backlog.all_told(connection)).limit(_PRUNED_AT_ONCE)
                ids = list((await connection.execute(over)).scalars())
                for table in (deliveries, revocations):
                    await connection.execute(sa.delete(table).where(table.c.revocation_id.in_(ids)))
            pruned += len(ids)
            if len(ids) < _PRUNED_AT_ONCE:
                return pruned


def _first_of_each(ours: sa.ColumnElement[bool]) -> sa.Select[tuple[str, str, str, int]]:
    """What is pending, as far as it is within its target's window."""
    place = sa.func.row_number().over(
        partition_by=(deliveries.c.channel, deliveries.c.target),
        order_by=(revocations.c.created_at, revocations.c.revocation_id),
    )
    waiting = (
        sa.select(
            deliveries.c.revocation_id,
            deliveries.c.channel,
            deliveries.c.target,
            deliveries.c.attempts,
            revocations.c.created_at,
            place.label("place"),
        )
        .select_from(deliveries.join(revocations, deliveries.c.revocation_id == revocations.c.revocation_id))
        .where(deliveries.c.state == PENDING, ours)
        .subquery()
    )
    window = sa.case((waiting.c.channel == AGENT, AGENT_WINDOW), else_=_OTHER_WINDOW)
    return (
        sa.select(waiting.c.revocation_id, waiting.c.channel, waiting.c.target, waiting.c.attempts)
        .where(waiting.c.place <= window)
        .order_by(waiting.c.created_at, waiting.c.revocation_id)
    )


async def _read_revocations(
    connection: AsyncConnection, wanted: set[KeyT], key: sa.Column[KeyT]
) -> dict[KeyT, StoredRevocation]:
    """The wanted revocations, by their `key`."""
    query = sa.select(revocations).where(key.in_(wanted))
    return {row._mapping[key.name]: _stored(row) for row in await connection.execute(query)}


def _stored(row: sa.Row[Any]) -> StoredRevocation:
    return StoredRevocation(
        row.revocation_id, AgentId(row.agent_id), row.created_at, row.message, row.signature
    )


def _put_many(connection: AsyncConnection) -> sa.Insert:
    """Inserts rows of deliveries, or changes those that are there and pending."""
    # Both dialects have the statement, each has a construct of its own for it.
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(deliveries)
    return statement.on_conflict_do_update(
        index_elements=deliveries.primary_key.columns,
        set_={name: statement.excluded[name] for name in ("state", "attempts", "last_error", "updated_at")},
        where=deliveries.c.state == PENDING,
    )


def _carried_by(carrier: MemberId, broker: str | None, *, zeromq_enabled: bool) -> sa.ColumnElement[bool]:
    polls_revoked = sa.exists().where(
        shards.c.verifier_id == revocations.c.verifier_id,
        shards.c.shard == revocations.c.shard,
        shards.c.owner == carrier,
    )
    target = agents.c.agent_id == deliveries.c.target
    polls_target = sa.exists().where(target, backlog.polled_by(carrier))
    target_is_gone = ~sa.exists().where(target)
    nobody_has_it = ~sa.exists().where(members.c.broker == deliveries.c.target)
    over_zeromq: sa.ColumnElement[bool] = sa.false()  # this machine's broker is in another process
    if broker is not None:
        # What was meant for a broker that is gone for good goes out over those that are left.
        over_zeromq = sa.or_(deliveries.c.target == broker, nobody_has_it)
    elif not zeromq_enabled:
        over_zeromq = sa.and_(polls_revoked, nobody_has_it)  # to be given up
    return sa.case(
        (deliveries.c.channel == ZEROMQ, over_zeromq),
        (deliveries.c.channel == AGENT, sa.or_(polls_target, sa.and_(target_is_gone, polls_revoked))),
        else_=polls_revoked,
    )
