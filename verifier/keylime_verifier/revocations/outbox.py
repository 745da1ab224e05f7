"""Revocations on their way: written with the verdict that causes them, kept until each target has its own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from keylime.database.clock import database_time
from keylime.database.many import delete_many, insert_many, insert_or_change, update_many
from keylime.database.transactions import Database
from keylime.identifiers import AgentId
from keylime.messages.revocation import SignedRevocation
from keylime.revocation.message import BEGINNING_OF_CLEARED
from keylime.revocation.publication import REPLAY_S
from keylime.revocation.publisher import MAX_REPLAYED
from keylime_verifier.agents.deliveries import AGENT, DELIVERED, PENDING, WAITING, ZEROMQ, Channel
from keylime_verifier.agents.records import Delivery, DeliveryAttempt, StoredRevocation
from keylime_verifier.agents.shards import MemberId, VerifierId, shard_of
from keylime_verifier.database.changes import Topic, publish
from keylime_verifier.database.history import new_token, write_events
from keylime_verifier.database.schema import agents, deliveries, members, recipients, revocations, shards
from keylime_verifier.revocations import backlog
from keylime_verifier.revocations.delivery_events import delivery_events
from keylime_verifier.revocations.delivery_rules import AGENT_WINDOW

KeyT = TypeVar("KeyT", int, str)

_OTHER_WINDOW = 500  # of a broker or webhook, read at once
_PRUNED_AT_ONCE = 500  # revocations in one transaction, so that verdicts do not wait long


def insert_revocation(
    connection: sa.Connection,
    revocation: StoredRevocation,
    verifier_id: VerifierId,
    targets: Sequence[tuple[str, str]],
) -> None:
    """Adds a revocation and its deliveries within the caller's transaction.

    A target ("agent", "*") stands for every agent of `verifier_id`, the failed one included; a target on the
    channel zeromq for this broker and all others that verifiers of `verifier_id` run. What is there already
    stays as it is: a connection may break after the commit, and the writer tries again.
    """
    known = sa.select(revocations.c.agent_id).where(revocations.c.revocation_id == revocation.revocation_id)
    if connection.execute(known).first() is not None:
        return
    publish(connection, Topic.REVOCATIONS)  # other processes carry it to their agents and brokers
    connection.execute(
        sa.insert(revocations).values(
            revocation_id=revocation.revocation_id,
            agent_id=revocation.agent_id,
            created_at=revocation.created_at,
            message=revocation.message,
            signature=revocation.signature,
            verifier_id=verifier_id,
            shard=shard_of(revocation.agent_id),
            number=backlog.COUNT if (AGENT, "*") in targets else 0,
            made=backlog.COUNT,
        )
    )
    rows = [target for target in targets if target != (AGENT, "*")]
    if any(channel == ZEROMQ for channel, _ in rows):
        brokers = sa.select(members.c.broker).where(
            members.c.verifier_id == verifier_id, members.c.broker.is_not(None)
        )
        rows.extend((ZEROMQ, broker) for broker in connection.execute(brokers).scalars())
    insert_many(
        connection,
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
        self, database: Database, carrier: MemberId, broker: str | None, *, zeromq_enabled: bool
    ) -> None:
        """`carrier` is this process, `broker` the ZeroMQ broker that it runs, if any."""
        self._database = database
        self._carrier = carrier
        self._broker = broker
        self._ours = _carried_by(carrier, broker, zeromq_enabled=zeromq_enabled)

    async def pending(self) -> list[Delivery]:
        """The next deliveries of ours to each target, oldest first; of an agent's backlog only the first.

        Who polls an agent carries revocations to it; who polls the revoked one, to the webhook; who runs a
        broker, to this broker. What follows in a backlog is for agents that take the first: see `following`.
        """
        return await self._database.read("read pending revocations", self._pending)

    def _pending(self, connection: sa.Connection) -> list[Delivery]:
        rows = connection.execute(_first_of_each(self._ours)).all()
        numbers = backlog.numbers_in_use(connection)
        recipients = backlog.waiting_recipients(connection, numbers, self._carrier)
        taken = Counter(row.target for row in rows if row.channel == AGENT)
        heads = [
            (recipient, used[recipient.backlog_start(used)])
            for recipient in recipients
            if taken[recipient.agent_id] < AGENT_WINDOW
            for used in (numbers[recipient.verifier_id],)
        ]
        stored = _read_revocations(
            connection, {row.revocation_id for row in rows}, revocations.c.revocation_id
        )
        numbered = _read_revocations(connection, {number for _, number in heads}, revocations.c.number)
        # One object for all deliveries of a message: there may be thousands.
        found = [
            Delivery(stored[row.revocation_id], Channel(row.channel), row.target, row.attempts)
            for row in rows
            if row.revocation_id in stored
        ]
        found.extend(
            Delivery(numbered[number], AGENT, recipient.agent_id, 0, number, recipient.through)
            for recipient, number in heads
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
        rows = await self._database.read(
            "read pending revocations", lambda connection: connection.execute(query).all()
        )
        numbers = [after, *(row.number for row in rows)]
        return [
            Delivery(_stored(row), AGENT, target, 0, row.number, before)
            for row, before in zip(rows, numbers, strict=False)
        ]

    async def record_attempts(self, attempts: Sequence[DeliveryAttempt]) -> bool:
        """Notes how attempts ended, in one transaction. What others have ended meanwhile stays so.

        False when some could not be noted since the database has gone back (a standby took over, a backup was
        restored) and uses the numbers of what it lost for others: what is pending is to be read again.
        """
        # In the order in which agents hear of them, and two transactions lock rows.
        attempts = sorted(attempts, key=lambda attempt: (attempt.delivery.number or 0, attempt.delivery.key))
        ids = {attempt.delivery.revocation.revocation_id for attempt in attempts}
        targets = {attempt.delivery.target for attempt in attempts if attempt.delivery.channel == AGENT}
        told = delivery_events(attempts, new_token()[:30])

        def work(connection: sa.Connection) -> bool:
            through = backlog.lock_recipients(connection, targets)
            query = sa.select(revocations.c.revocation_id, revocations.c.number)
            rows = connection.execute(query.where(revocations.c.revocation_id.in_(ids)))
            numbers = {row.revocation_id: row.number for row in rows}
            notes = _Notes(through)
            for attempt in attempts:
                number = numbers.get(attempt.delivery.revocation.revocation_id)
                if number is not None:  # else it is forgotten
                    notes.add(attempt, number)
            insert_many(connection, _put_many(connection), notes.new)
            update_many(connection, deliveries, _STILL_WAITING, notes.changed)
            delete_many(connection, deliveries, _STILL_WAITING, notes.told)
            backlog.advance(connection, notes.advances)
            write_events(connection, told)
            return notes.are_complete

        return await self._database.write("record deliveries", work)

    async def recently_published(self, verifier_id: VerifierId) -> list[tuple[SignedRevocation, float]]:
        """What brokers of this verifier have published in the last minutes, oldest first, and how long ago.

        Left out is what is still to be published here, and what is over, see `over`.
        """
        recent, cleared = _last_published(DELIVERED), _last_cleared(verifier_id)
        is_waiting = sa.exists().where(
            deliveries.c.revocation_id == revocations.c.revocation_id,
            deliveries.c.channel == ZEROMQ,
            deliveries.c.target == self._broker,
            deliveries.c.state == PENDING,
        )
        age_s = database_time() - recent.c.at
        query = (
            sa.select(revocations.c.message, revocations.c.signature, age_s.label("age_s"))
            .join(recent, recent.c.revocation_id == revocations.c.revocation_id)
            .outerjoin(cleared, cleared.c.agent_id == revocations.c.agent_id)
            .where(
                revocations.c.verifier_id == verifier_id, age_s < REPLAY_S, ~is_waiting, ~_is_over(cleared)
            )
            .order_by(recent.c.at.desc(), revocations.c.made.desc())
            .limit(MAX_REPLAYED)
        )
        rows = await self._database.read(
            "read recent revocations", lambda connection: connection.execute(query).all()
        )
        return [(SignedRevocation(row.message, row.signature), max(row.age_s, 0.0)) for row in reversed(rows)]

    async def over(self, verifier_id: VerifierId) -> list[SignedRevocation]:
        """What brokers of this verifier have published in the last minutes and are not to repeat any more.

        That is what is about ended enrolments, of agents that are gone or were added anew meanwhile, and
        warnings of agents that were said to be trusted again after them.
        """
        recent, cleared = _last_published(DELIVERED, PENDING), _last_cleared(verifier_id)
        query = (
            sa.select(revocations.c.message, revocations.c.signature)
            .join(recent, recent.c.revocation_id == revocations.c.revocation_id)
            .outerjoin(cleared, cleared.c.agent_id == revocations.c.agent_id)
            .where(
                revocations.c.verifier_id == verifier_id,
                database_time() - recent.c.at < REPLAY_S,
                _is_over(cleared),
            )
            # No more are repeated; what is noted as published later is found later.
            .order_by(recent.c.at.desc(), revocations.c.made.desc())
            .limit(4 * MAX_REPLAYED)
        )
        rows = await self._database.read(
            "read what became of revocations", lambda connection: connection.execute(query).all()
        )
        return [SignedRevocation(row.message, row.signature) for row in rows]

    async def prune(self, before: int) -> int:
        """Forgets revocations whose last delivery ended before `before` (epoch seconds); how many."""
        going_on = sa.exists().where(
            deliveries.c.revocation_id == revocations.c.revocation_id,
            sa.or_(backlog.IS_WAITING, deliveries.c.updated_at >= before),
        )
        query = sa.select(revocations.c.revocation_id).where(revocations.c.created_at < before, ~going_on)

        def work(connection: sa.Connection) -> int:
            over = query.where(backlog.all_told(connection)).limit(_PRUNED_AT_ONCE)
            ids = list(connection.execute(over).scalars())
            for table in (deliveries, revocations):
                connection.execute(sa.delete(table).where(table.c.revocation_id.in_(ids)))
            return len(ids)

        pruned = 0
        while True:
            some = await self._database.write("forget old revocations", work)
            pruned += some
            if some < _PRUNED_AT_ONCE:
                return pruned


def _last_published(*states: str) -> sa.Subquery:
    """When brokers have published what; with PENDING, also what one may just have published."""
    published = sa.select(deliveries.c.revocation_id, sa.func.max(deliveries.c.updated_at).label("at"))
    in_question = published.where(deliveries.c.channel == ZEROMQ, deliveries.c.state.in_(states))
    return in_question.group_by(deliveries.c.revocation_id).subquery()


def _last_cleared(verifier_id: VerifierId) -> sa.Subquery:
    """By agent, the place of the last message that it is trusted again."""
    told = sa.select(revocations.c.agent_id, sa.func.max(revocations.c.made).label("made"))
    ours = told.where(revocations.c.verifier_id == verifier_id, _SAYS_CLEARED)
    return ours.group_by(revocations.c.agent_id).subquery()


def _is_over(cleared: sa.Subquery) -> sa.ColumnElement[bool]:
    """The condition that a revocation is about an ended enrolment, or that its agent is trusted again.

    `cleared` is joined by agent, not asked for each revocation: thousands may fall and be repaired together.
    """
    is_enrolled = sa.exists().where(
        recipients.c.agent_id == revocations.c.agent_id,
        sa.or_(revocations.c.made == 0, recipients.c.since < revocations.c.made),
    )
    is_cleared = sa.and_(~_SAYS_CLEARED, sa.func.coalesce(cleared.c.made, 0) > revocations.c.made)
    return sa.or_(~is_enrolled, is_cleared)


_SAYS_CLEARED = revocations.c.message.startswith(BEGINNING_OF_CLEARED, autoescape=True)


class _Notes:
    """What is written down of some attempts."""

    def __init__(self, through: Mapping[str, int]) -> None:
        """`through`: up to which number each agent that is there was tried before these attempts."""
        self._through = through
        self.are_complete = True
        self.new: list[dict[str, object]] = []  # rows that may be there already
        self.changed: list[dict[str, object]] = []  # rows that are there, or are over
        self.told: list[dict[str, object]] = []  # rows that are over, if there are any
        self.advances: dict[str, backlog.Advance] = {}

    def add(self, attempt: DeliveryAttempt, number: int) -> None:
        """`number` is the revocation's. To be called in the order of the deliveries' numbers."""
        delivery = attempt.delivery
        names = {
            "revocation_id": delivery.revocation.revocation_id,
            "channel": delivery.channel,
            "target": delivery.target,
        }
        outcome = {
            "state": attempt.state,
            "attempts": delivery.attempts,
            "last_error": attempt.error,
            "updated_at": attempt.at,
        }
        keyed: list[dict[str, object]] = [
            {f"_{name}": value for name, value in (names | {"state": waiting}).items()} for waiting in WAITING
        ]
        if delivery.channel != AGENT or number == 0:
            self.new.append(names | outcome)
            return
        before = self._through.get(delivery.target)
        advance = self.advances.setdefault(delivery.target, backlog.Advance(before or 0))
        if delivery.number is not None:
            if delivery.number != number or delivery.after > advance.through:
                self.are_complete = False  # what is between was not tried
                return
            advance.through = max(advance.through, number)
        if attempt.state == DELIVERED:
            advance.attempts += delivery.attempts
            advance.told_at = max(attempt.at, advance.told_at or 0)
            if delivery.number is None or delivery.attempts > 1:
                self.told.extend(keyed)
        elif delivery.number is not None and before is not None and number > before:
            self.new.append(names | outcome)
        else:  # a row that is not there any more tells that another carrier was luckier
            self.changed.extend(key | outcome for key in keyed)


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
        .where(backlog.IS_WAITING, ours)
        .subquery()
    )
    window = sa.case((waiting.c.channel == AGENT, AGENT_WINDOW), else_=_OTHER_WINDOW)
    return (
        sa.select(waiting.c.revocation_id, waiting.c.channel, waiting.c.target, waiting.c.attempts)
        .where(waiting.c.place <= window)
        .order_by(waiting.c.created_at, waiting.c.revocation_id)
    )


def _read_revocations(
    connection: sa.Connection, wanted: set[KeyT], key: sa.Column[KeyT]
) -> dict[KeyT, StoredRevocation]:
    """The wanted revocations, by their `key`."""
    query = sa.select(revocations).where(key.in_(wanted))
    return {row._mapping[key.name]: _stored(row) for row in connection.execute(query)}


def _stored(row: sa.Row[Any]) -> StoredRevocation:
    return StoredRevocation(
        row.revocation_id, AgentId(row.agent_id), row.created_at, row.message, row.signature
    )


_STILL_WAITING = {
    "_revocation_id": deliveries.c.revocation_id,
    "_channel": deliveries.c.channel,
    "_target": deliveries.c.target,
    "_state": deliveries.c.state,
}


def _put_many(connection: sa.Connection) -> sa.Insert:
    """Inserts rows of deliveries, or changes those that are there and still waiting."""
    names = ("state", "attempts", "last_error", "updated_at")
    return insert_or_change(connection, deliveries, names, backlog.IS_WAITING)


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
