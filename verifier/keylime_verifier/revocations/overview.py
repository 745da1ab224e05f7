"""What operators are shown of the outbox: how far every target is, and the newest single deliveries.

What agents were told, and what they are still to be told, has no rows; it is counted and listed here as if
it had.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
import sqlalchemy as sa

from keylime.database.transactions import Database
from keylime.messages.deliveries import Deliveries, DeliveryStatus, TargetSummary
from keylime_verifier.agents.deliveries import AGENT, DELIVERED, PENDING, DeliveryFilter, DeliveryState
from keylime_verifier.agents.shards import VerifierId
from keylime_verifier.database.schema import deliveries, recipients, revocations
from keylime_verifier.revocations.backlog import IS_WAITING, Recipient, all_recipients

_JOINED = deliveries.join(revocations, deliveries.c.revocation_id == revocations.c.revocation_id)
_TARGET = (deliveries.c.channel, deliveries.c.target)


def _conditions(wanted: DeliveryFilter) -> list[sa.ColumnElement[bool]]:
    """What is wanted, as conditions on the joined tables."""
    conditions = []
    if wanted.agent_id is not None:
        conditions.append(revocations.c.agent_id == wanted.agent_id)
    if wanted.state is not None:
        conditions.append(deliveries.c.state == wanted.state)
    return conditions


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A revocation that agents are told from their backlogs."""

    number: int
    revocation_id: str
    agent_id: str
    created_at: int


class _Unwritten:
    """The deliveries to agents that have no rows: what follows in a backlog, and what was told."""

    def __init__(
        self,
        agents: Sequence[Recipient],
        used: Mapping[VerifierId, Sequence[_Numbered]],
        written: Mapping[str, Collection[str]],
        state: DeliveryState | None,
    ) -> None:
        """`used` are the revocations by verifier, in rising order of their numbers.

        `written` names those of each agent that have rows. Only deliveries in `state` count, None is all.
        """
        self._agents = agents
        self._used = used
        self._numbers = {
            verifier_id: [revocation.number for revocation in revocations]
            for verifier_id, revocations in used.items()
        }
        self._written = written
        self._shows_told = state in (None, DELIVERED)
        self._shows_waiting = state in (None, PENDING)

    def summaries(self, *, knows_attempts: bool) -> Iterator[TargetSummary]:
        """One for each agent that was told something or is to be; `knows_attempts` if all of it counts."""
        for agent in self._agents:
            used = self._used.get(agent.verifier_id, ())
            numbers = self._numbers.get(agent.verifier_id, ())
            first, start = bisect_right(numbers, agent.since), bisect_right(numbers, agent.through)
            told = waiting = 0
            if self._shows_told:
                told = start - first - len(self._written.get(agent.agent_id, ()))
            if self._shows_waiting:
                waiting = len(used) - start
            if told or waiting:
                yield TargetSummary(
                    channel=AGENT,
                    target=agent.agent_id,
                    pending=waiting,
                    delivered=told,
                    failed=0,
                    attempts=max(told, agent.attempts) if told and knows_attempts else told,
                    oldest_pending=used[start].created_at if waiting else None,
                )

    def newest(self) -> Iterator[DeliveryStatus]:
        """One by one, of the newest revocation first."""
        by_verifier: dict[str, list[Recipient]] = {}
        for agent in sorted(self._agents, key=lambda agent: agent.through):
            by_verifier.setdefault(agent.verifier_id, []).append(agent)
        everything = (
            (revocation, by_verifier.get(verifier_id, []))
            for verifier_id, revocations in self._used.items()
            for revocation in revocations
        )
        for revocation, agents in sorted(everything, key=lambda pair: pair[0].number, reverse=True):
            behind = bisect_left(agents, revocation.number, key=lambda agent: agent.through)
            if self._shows_waiting:
                for agent in islice(agents, behind):
                    yield _status(agent, revocation, is_waiting=True)
            if self._shows_told:
                for agent in islice(agents, behind, None):
                    if self._was_told(agent, revocation):
                        yield _status(agent, revocation, is_waiting=False)

    def _was_told(self, agent: Recipient, revocation: _Numbered) -> bool:
        written = self._written.get(agent.agent_id, ())
        return agent.since < revocation.number and revocation.revocation_id not in written


def _status(agent: Recipient, revocation: _Numbered, *, is_waiting: bool) -> DeliveryStatus:
    # When it was told one of several is not known, but not later than the last one.
    told_at = revocation.created_at if agent.told_at is None else agent.told_at
    return DeliveryStatus(
        revocation_id=revocation.revocation_id,
        agent_id=revocation.agent_id,
        created_at=revocation.created_at,
        channel=AGENT,
        target=agent.agent_id,
        state=PENDING if is_waiting else DELIVERED,
        attempts=0 if is_waiting else 1,
        updated_at=revocation.created_at if is_waiting else told_at,
    )


@dataclass(frozen=True, slots=True)
class _Read:
    errors: dict[tuple[str, str], str]
    rows: Sequence[sa.Row[Any]]
    newest: list[DeliveryStatus]
    unwritten: _Unwritten


async def read_overview(database: Database, wanted: DeliveryFilter, limit: int) -> Deliveries:
    """What `wanted` covers: every target in numbers, and the newest `limit` deliveries."""
    conditions = _conditions(wanted)

    def work(connection: sa.Connection) -> _Read:
        return _Read(
            errors={
                (row.channel, row.target): row.last_error
                for row in connection.execute(_last_errors(conditions))
            },
            rows=connection.execute(_summaries(conditions)).all(),
            newest=[DeliveryStatus(**row._mapping) for row in connection.execute(_newest(conditions, limit))],
            unwritten=_read_unwritten(connection, wanted),
        )

    found = await database.read("read the deliveries", work)
    newest, unwritten = found.newest, found.unwritten
    summaries = {
        (row.channel, row.target): TargetSummary(
            channel=row.channel,
            target=row.target,
            pending=int(row.pending),
            delivered=int(row.delivered),
            failed=int(row.failed),
            gone=int(row.gone),
            wrong_key=int(row.wrong_key),
            attempts=int(row.attempts),
            last_error=found.errors.get((row.channel, row.target)),
            oldest_pending=row.oldest_pending,
        )
        for row in found.rows
    }
    for further in unwritten.summaries(knows_attempts=wanted.agent_id is None):
        known = summaries.get((AGENT, further.target))
        summaries[AGENT, further.target] = further if known is None else _together(known, further)
    newest.extend(islice(unwritten.newest(), limit))
    newest.sort(key=lambda status: (-status.created_at, status.revocation_id, status.channel, status.target))
    shown = newest[:limit]
    total = sum(
        one.pending + one.delivered + one.failed + one.gone + one.wrong_key for one in summaries.values()
    )
    return Deliveries(
        targets=[summary for _, summary in sorted(summaries.items())],
        deliveries=shown,
        left_off=total - len(shown),
    )


def _together(known: TargetSummary, unwritten: TargetSummary) -> TargetSummary:
    oldest = [since for since in (known.oldest_pending, unwritten.oldest_pending) if since is not None]
    return msgspec.structs.replace(
        known,
        pending=known.pending + unwritten.pending,
        delivered=known.delivered + unwritten.delivered,
        attempts=known.attempts + unwritten.attempts,
        oldest_pending=min(oldest, default=None),
    )


def _read_unwritten(connection: sa.Connection, wanted: DeliveryFilter) -> _Unwritten:
    if wanted.state not in (None, PENDING, DELIVERED):
        return _Unwritten([], {}, {}, wanted.state)
    query = sa.select(
        revocations.c.verifier_id,
        revocations.c.number,
        revocations.c.revocation_id,
        revocations.c.agent_id,
        revocations.c.created_at,
    ).where(revocations.c.number > 0)
    exceptions = (
        sa.select(deliveries.c.target, deliveries.c.revocation_id)
        .select_from(_JOINED.join(recipients, recipients.c.agent_id == deliveries.c.target))
        .where(deliveries.c.channel == AGENT, revocations.c.number > recipients.c.since)
    )
    if wanted.agent_id is not None:
        query = query.where(revocations.c.agent_id == wanted.agent_id)
        exceptions = exceptions.where(revocations.c.agent_id == wanted.agent_id)
    used: dict[VerifierId, list[_Numbered]] = {}
    for row in connection.execute(query.order_by(revocations.c.number)):
        used.setdefault(row.verifier_id, []).append(
            _Numbered(row.number, row.revocation_id, row.agent_id, row.created_at)
        )
    if not used:
        return _Unwritten([], {}, {}, wanted.state)
    written: dict[str, set[str]] = {}
    for target, revocation_id in connection.execute(exceptions):
        written.setdefault(target, set()).add(revocation_id)
    return _Unwritten(all_recipients(connection), used, written, wanted.state)


def _summaries(conditions: Sequence[sa.ColumnElement[bool]]) -> sa.Select[Any]:
    counts = [
        sa.func.sum(sa.case((deliveries.c.state == state, 1), else_=0)).label(state)
        for state in DeliveryState
    ]
    oldest = sa.func.min(sa.case((IS_WAITING, revocations.c.created_at)))
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
