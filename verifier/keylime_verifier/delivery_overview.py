"""What operators are shown of the outbox: how far every target is, and the newest single deliveries.

An agent's backlog has no rows; what it stands for is counted and listed here as if it had.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keylime.identifiers import AgentId
from keylime.messages.deliveries import Deliveries, DeliveryStatus, TargetSummary
from keylime_verifier.backlog import Recipient, numbers_in_use, waiting_recipients
from keylime_verifier.outbox import AGENT, PENDING, STATES
from keylime_verifier.schema import deliveries, revocations
from keylime_verifier.transactions import read

_JOINED = deliveries.join(revocations, deliveries.c.revocation_id == revocations.c.revocation_id)
_TARGET = (deliveries.c.channel, deliveries.c.target)


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


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A revocation that agents are told from their backlogs."""

    number: int
    revocation_id: str
    agent_id: str
    created_at: int


class _Backlogs:
    """The deliveries for which there are no rows yet. All of them are pending."""

    def __init__(self, recipients: Sequence[Recipient], used: Mapping[str, Sequence[_Numbered]]) -> None:
        """`used` are the revocations by verifier, in rising order of their numbers."""
        self._recipients = sorted(recipients, key=lambda recipient: recipient.through)
        self._used = used
        self._numbers = {
            verifier_id: [revocation.number for revocation in revocations]
            for verifier_id, revocations in used.items()
        }

    def summaries(self) -> Iterator[TargetSummary]:
        """One for each agent that has something to be told."""
        for recipient in self._recipients:
            used = self._used.get(recipient.verifier_id, ())
            start = recipient.backlog_start(self._numbers.get(recipient.verifier_id, ()))
            if start < len(used):
                yield TargetSummary(
                    channel=AGENT,
                    target=recipient.agent_id,
                    pending=len(used) - start,
                    delivered=0,
                    failed=0,
                    attempts=0,
                    oldest_pending=used[start].created_at,
                )

    def newest(self) -> Iterator[DeliveryStatus]:
        """One by one, of the newest revocation first."""
        by_verifier: dict[str, list[Recipient]] = {}
        for recipient in self._recipients:
            by_verifier.setdefault(recipient.verifier_id, []).append(recipient)
        everything = (
            (revocation, by_verifier.get(verifier_id, []))
            for verifier_id, revocations in self._used.items()
            for revocation in revocations
        )
        for revocation, recipients in sorted(everything, key=lambda pair: pair[0].number, reverse=True):
            behind = bisect_left(recipients, revocation.number, key=lambda recipient: recipient.through)
            for recipient in recipients[:behind]:
                yield DeliveryStatus(
                    revocation_id=revocation.revocation_id,
                    agent_id=revocation.agent_id,
                    created_at=revocation.created_at,
                    channel=AGENT,
                    target=recipient.agent_id,
                    state=PENDING,
                    attempts=0,
                    updated_at=revocation.created_at,
                )


async def read_overview(engine: AsyncEngine, wanted: DeliveryFilter, limit: int) -> Deliveries:
    """What `wanted` covers: every target in numbers, and the newest `limit` deliveries."""
    conditions = wanted.conditions()
    async with read(engine, "read the deliveries") as connection:
        errors = {
            (row.channel, row.target): row.last_error
            for row in await connection.execute(_last_errors(conditions))
        }
        rows = (await connection.execute(_summaries(conditions))).all()
        newest = [
            DeliveryStatus(**row._mapping) for row in await connection.execute(_newest(conditions, limit))
        ]
        backlogs = await _read_backlogs(connection, wanted)
    summaries = {
        (row.channel, row.target): TargetSummary(
            channel=row.channel,
            target=row.target,
            pending=int(row.pending),
            delivered=int(row.delivered),
            failed=int(row.failed),
            attempts=int(row.attempts),
            last_error=errors.get((row.channel, row.target)),
            oldest_pending=row.oldest_pending,
        )
        for row in rows
    }
    for further in backlogs.summaries():
        known = summaries.get((AGENT, further.target))
        summaries[AGENT, further.target] = further if known is None else _together(known, further)
    newest.extend(islice(backlogs.newest(), limit))
    newest.sort(key=lambda status: (-status.created_at, status.revocation_id, status.channel, status.target))
    shown = newest[:limit]
    total = sum(summary.pending + summary.delivered + summary.failed for summary in summaries.values())
    return Deliveries(
        targets=[summary for _, summary in sorted(summaries.items())],
        deliveries=shown,
        left_off=total - len(shown),
    )


def _together(known: TargetSummary, backlog: TargetSummary) -> TargetSummary:
    oldest = [since for since in (known.oldest_pending, backlog.oldest_pending) if since is not None]
    return msgspec.structs.replace(
        known, pending=known.pending + backlog.pending, oldest_pending=min(oldest, default=None)
    )


async def _read_backlogs(connection: AsyncConnection, wanted: DeliveryFilter) -> _Backlogs:
    if wanted.state not in (None, PENDING):
        return _Backlogs([], {})
    recipients = await waiting_recipients(connection, await numbers_in_use(connection))
    lowest = min((recipient.through for recipient in recipients), default=None)
    if lowest is None:
        return _Backlogs([], {})
    query = sa.select(
        revocations.c.verifier_id,
        revocations.c.number,
        revocations.c.revocation_id,
        revocations.c.agent_id,
        revocations.c.created_at,
    ).where(revocations.c.number > lowest)
    if wanted.agent_id is not None:
        query = query.where(revocations.c.agent_id == wanted.agent_id)
    used: dict[str, list[_Numbered]] = {}
    for row in await connection.execute(query.order_by(revocations.c.number)):
        used.setdefault(row.verifier_id, []).append(
            _Numbered(row.number, row.revocation_id, row.agent_id, row.created_at)
        )
    return _Backlogs(recipients, used)


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
