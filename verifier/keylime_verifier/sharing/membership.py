"""This process among the verifiers that share a database: it keeps its lease, and takes and gives up shards.

Leases are counters that the others watch (`liveness`). They only decide who should do the work: what makes it
safe is that a pass names the owner and the epoch of its shard, and is refused when that is over (`fencing`).
"""

import asyncio
import logging
import os
import secrets
import socket
import threading
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

from keylime import patience
from keylime.database.clock import DatabaseClock, database_time, uptime
from keylime.database.engine import DatabaseUnavailable
from keylime.database.many import insert_many, insert_missing
from keylime.database.transactions import Database
from keylime_verifier.agents.events import EventKind, Occurrence
from keylime_verifier.agents.shards import SHARDS, MemberId, VerifierId
from keylime_verifier.database.changes import Topic, publish
from keylime_verifier.database.history import new_token
from keylime_verifier.database.schema import members, shards
from keylime_verifier.polling.meter import Meter
from keylime_verifier.sharing.lineage import Lineage, Renewals
from keylime_verifier.sharing.lineage_query import read_lineage
from keylime_verifier.sharing.liveness import Pulse, Watch
from keylime_verifier.sharing.ownership import Moves, next_moves
from keylime_verifier.sharing.process_identity import ProcessIdentity
from keylime_verifier.sharing.renewal_patience import RenewalPatience

log = logging.getLogger("keylime.verifier")

_RENEWALS = 3  # in each lease
_FORGET_AFTER_S = 600.0  # what was published meanwhile is repeated to subscribers for as long
_EPOCHS = 2**30  # the column has 32 bits, and the release before adds one to what it finds

_SEEN_OF_MEMBERS = (
    members.c.member_id,
    members.c.process,
    members.c.renewals,
    members.c.lease,
    members.c.expires_at,
)

LetGo = Callable[[frozenset[int]], AbstractAsyncContextManager[None]]
"""Ends all work for some shards, writes down what is left of it, and begins none until the block ends."""


@dataclass(frozen=True, slots=True)
class Member:
    """What the others know of this process. `broker` names the ZeroMQ broker that it runs, if any."""

    member_id: MemberId
    verifier_id: VerifierId
    name: str
    broker: str | None

    @classmethod
    def new(cls, verifier_id: VerifierId, broker: str | None) -> "Member":
        """This run of this process."""
        return cls(MemberId(uuid.uuid4().hex), verifier_id, f"{socket.gethostname()}:{os.getpid()}", broker)


@dataclass(frozen=True, slots=True)
class _View:
    """The group as the database shows it in one transaction."""

    watch: Watch
    members: frozenset[MemberId]
    ended: frozenset[MemberId]  # processes that are known to be gone, whatever their leases
    owners: dict[int, MemberId | None]
    time: tuple[float, float, float] | None  # of the database, asked and answered by our clock

    @property
    def alive(self) -> frozenset[MemberId]:
        """Who has the right to be left in peace."""
        return self.members - self.ended - self.watch.silent()

    @property
    def at_work(self) -> frozenset[MemberId]:
        """Who has been seen to renew its lease."""
        return self.watch.at_work() - self.ended

    def owned_by(self, member: MemberId) -> frozenset[int]:
        """The shards of one member."""
        return frozenset(shard for shard, owner in self.owners.items() if owner == member)


@dataclass(frozen=True, slots=True)
class _Step:
    """What one renewal did and found."""

    lineage: Lineage
    view: _View
    moves: Moves
    taken: frozenset[int]
    is_new: bool  # there was no lease of ours
    is_another_history: bool  # than the one that we know; our shards have begun anew


class Membership:
    """Holds this process's lease, and its fair share of the shards.

    Its own clock goes on while the machine sleeps: who was away for long must know that.
    """

    def __init__(
        self,
        database: Database,
        member: Member,
        *,
        lease_s: float,
        clock: DatabaseClock,
        let_go: LetGo,
        on_moves: Callable[[], None],
        meter: Meter | None = None,
        tell: Callable[[Occurrence], Awaitable[None]] | None = None,
    ) -> None:
        """`let_go` is entered while shards are given up, `on_moves` called after they changed hands.

        `tell` adds what is taken from members that are gone to the history.
        `clock` learns at each renewal what time it is.
        `database` should be for nothing else: a lease must not wait until writers of verdicts had their turn.
        """
        self._database = database
        self._member = member
        self._lease_s = lease_s
        self._clock = clock
        self._let_go = let_go
        self._on_moves = on_moves
        self._meter = meter or Meter()
        self._identity = ProcessIdentity.own()
        self._wake = asyncio.Event()
        self._patience = RenewalPatience(lease_s)
        self._is_away = False  # the database, as far as we know
        self._mine: frozenset[int] = frozenset()  # as of the last renewal
        self._watch = Watch()
        self._renewals = Renewals()
        self._renewed_at: float | None = None
        self._lineage = Lineage()
        # What a transaction has seen stays true when it fails, or when nobody knows whether it did.
        self._saw_another_history = threading.Event()
        self._tell = tell
        # Built once: every few seconds, for ever, is often.
        group = members.c.verifier_id == member.verifier_id
        ours = members.c.member_id == member.member_id
        self._own_renewals = sa.select(members.c.renewals).where(ours).with_for_update()
        self._renewed = {"lease": lease_s, "expires_at": database_time() + lease_s}
        self._prolong = sa.update(members).where(ours).values(renewals=sa.bindparam("tried"), **self._renewed)
        self._group = sa.select(*_SEEN_OF_MEMBERS, database_time().label("now")).where(group)
        self._owners = sa.select(shards.c.shard, shards.c.owner).where(
            shards.c.verifier_id == member.verifier_id
        )
        self._releasing: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def holds_lease(self) -> bool:
        """Whether the others still have to respect it."""
        return self._renewed_at is not None and uptime() - self._renewed_at < self._lease_s

    def owns(self, shard: int) -> bool:
        """Whether a shard was ours at the last renewal, and the lease still counts."""
        return shard in self._mine and self.holds_lease

    def look(self) -> None:
        """Tells that members or shards have changed."""
        self._wake.set()

    async def join(self) -> None:
        """Enters the group and takes what is free. Raises DatabaseUnavailable."""
        await self._ensure_shards()
        await self._step()

    async def run(self) -> None:
        """Renews the lease and balances the shards, for ever; a database that is away may cost the lease."""
        try:
            while True:
                await self._wait_for_renewal()
                await self._try_step()
        finally:
            beside = [*self._telling, *([] if self._releasing is None else [self._releasing])]
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def leave(self) -> None:
        """Gives everything up, so that others need not wait. Raises DatabaseUnavailable."""
        me = self._member.member_id

        def work(connection: sa.Connection) -> None:
            connection.execute(sa.update(shards).where(*self._ours()).values(owner=None, epoch=_new_epoch()))
            connection.execute(sa.delete(members).where(members.c.member_id == me))
            publish(connection, Topic.SHARDS)

        await self._database.write("give up the shards", work)

    async def _wait_for_renewal(self) -> None:
        try:
            async with asyncio.timeout(self._lease_s / _RENEWALS):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _try_step(self) -> None:
        granted = self._patience
        try:
            with patience.at_most(granted.limit_s):
                await self._step()
            self._patience = granted.after(success=True)
            self._is_away = False
        except DatabaseUnavailable as error:
            self._patience = granted.after(success=False)
            self._watch = Watch()  # who cannot look does not know who is silent
            if not self._is_away:
                log.error("%s; others may take over the agents of this verifier", error)
            self._is_away = True
            self._wake.set()
            await asyncio.sleep(min(1.0, self._lease_s / _RENEWALS))

    async def _step(self) -> None:
        """One renewal, and what follows from who is there then."""
        began = uptime()
        had_lapsed = self._renewed_at is not None and not self.holds_lease
        self._renewals = self._renewals.following
        step = await self._database.write(
            "renew the lease", partial(self._one_step, self._renewals, self._lineage, self._watch)
        )
        self._renewals = self._renewals.succeeded
        self._renewed_at, self._watch, self._lineage = began, step.view.watch, step.lineage
        if step.view.time is not None:
            self._clock.observe(*step.view.time)
        view, moves, taken = step.view, step.moves, step.taken
        is_new, begins_again = step.is_new, step.is_another_history
        self._saw_another_history.clear()
        if had_lapsed:
            log.warning(
                "the lease had ended before it could be renewed; nothing is taken from others for now"
            )
        if begins_again and is_new and had_lapsed:
            log.warning("this verifier had been forgotten; its agents are read anew")
        elif begins_again:
            log.error(
                "the database has another history than before (a standby took over, or a backup was "
                "restored): all agents are judged again"
            )
        if taken:
            log.info(
                "took over %d of %d shards; %d verifier process%s %s alive",
                len(taken),
                SHARDS,
                len(view.alive),
                *(("", "is") if len(view.alive) == 1 else ("es", "are")),
            )
            self._tell_of(sum(view.owners[shard] is not None for shard in taken))
        mine = view.owned_by(self._member.member_id)
        lost = self._mine - mine
        if lost:
            log.info("%d shards have gone over to other verifiers", len(lost))
        self._mine = mine | taken
        self._meter.moved(len(taken), len(lost))
        if taken or lost or begins_again:
            self._on_moves()
        if moves.release and (self._releasing is None or self._releasing.done()):
            # Beside the renewals: work that has to end first may take longer than a lease.
            self._releasing = asyncio.create_task(self._release(moves.release))

    def _tell_of(self, taken: int) -> None:
        """Tells the history of shards that had an owner, beside the renewals: they wait for nobody."""
        if not taken or self._tell is None:
            return
        details = {"verifier": self._member.name, "shards": taken, "of": SHARDS}
        event = Occurrence(token=new_token(), kind=EventKind.TAKEN_OVER, details=details)
        task = asyncio.create_task(self._told(self._tell, event))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _told(self, tell: Callable[[Occurrence], Awaitable[None]], event: Occurrence) -> None:
        try:
            await tell(event)
        except DatabaseUnavailable as error:
            log.warning("%s; the takeover is told in this log alone", error)

    def _one_step(self, renewals: Renewals, last: Lineage, watch: Watch, connection: sa.Connection) -> _Step:
        """What one transaction does and finds."""
        lineage = read_lineage(connection)
        found = self._renew(connection, renewals)
        is_new = found is None
        if not renewals.explains(found) or not lineage.continues(last):
            self._saw_another_history.set()
        is_another_history = self._saw_another_history.is_set()
        view = self._view(connection, watch)
        moves = next_moves(self._member.member_id, view.alive, view.owners, view.at_work)
        taken = self._take(connection, moves.take, view)
        self._forget_the_dead(connection, view)
        if is_another_history:
            self._begin_again(connection)
        elif is_new:
            publish(connection, Topic.SHARDS)
        return _Step(lineage, view, moves, taken, is_new=is_new, is_another_history=is_another_history)

    async def _ensure_shards(self) -> None:
        rows = [
            {"verifier_id": self._member.verifier_id, "shard": shard, "owner": None, "epoch": 0}
            for shard in range(SHARDS)
        ]

        def work(connection: sa.Connection) -> None:
            insert_many(connection, insert_missing(connection, shards), rows)

        await self._database.write("prepare the shards", work)

    def _renew(self, connection: sa.Connection, renewals: Renewals) -> int | None:
        """Prolongs the lease; which renewal was found, None when there was none."""
        found: int | None = connection.execute(self._own_renewals).scalar()
        if found is not None:
            connection.execute(self._prolong, {"tried": renewals.tried})
            return found
        connection.execute(
            sa.insert(members).values(
                member_id=self._member.member_id,
                verifier_id=self._member.verifier_id,
                name=self._member.name,
                process=str(self._identity or ""),
                broker=self._member.broker,
                renewals=renewals.tried,
                **self._renewed,
            )
        )
        return None

    def _begin_again(self, connection: sa.Connection) -> None:
        """New epochs for our shards: their agents are read anew and judged at once, older passes refused."""
        connection.execute(sa.update(shards).where(*self._ours()).values(epoch=_new_epoch()))
        publish(connection, Topic.AGENTS)
        publish(connection, Topic.SHARDS)

    def _view(self, connection: sa.Connection, watch: Watch) -> _View:
        me, asked_at = self._member.member_id, uptime()
        rows = connection.execute(self._group).all()
        answered_at = uptime()
        watch = watch.look(
            {row.member_id: self._pulse_of(row) for row in rows},
            at=answered_at,
            lease_s=self._lease_s,
        )
        return _View(
            watch,
            frozenset(row.member_id for row in rows),
            frozenset(row.member_id for row in rows if row.member_id != me and _has_ended(row.process)),
            dict(connection.execute(self._owners).all()),
            (rows[-1].now, asked_at, answered_at) if rows else None,
        )

    def _pulse_of(self, row: sa.Row[Any]) -> Pulse:
        if row.lease is None:
            return Pulse(row.renewals, self._lease_s, row.expires_at)
        return Pulse(row.renewals, row.lease)

    def _take(self, connection: sa.Connection, wanted: frozenset[int], view: _View) -> frozenset[int]:
        """Takes the shards that are still as they were seen; what somebody is busy with is left for later."""
        if not wanted:
            return wanted
        group = (shards.c.verifier_id == self._member.verifier_id, shards.c.shard.in_(wanted))
        locked = connection.execute(
            sa.select(shards.c.shard, shards.c.owner)
            .where(*group)
            .order_by(shards.c.shard)
            .with_for_update(skip_locked=True)
        )
        unchanged = frozenset(row.shard for row in locked if row.owner == view.owners[row.shard])
        if unchanged:
            connection.execute(
                sa.update(shards)
                .where(shards.c.verifier_id == self._member.verifier_id, shards.c.shard.in_(unchanged))
                .values(owner=self._member.member_id, epoch=_new_epoch())
            )
        return unchanged

    async def _release(self, surplus: frozenset[int]) -> None:
        """Gives shards up in good order: first the work ends, then the others may begin."""

        def work(connection: sa.Connection) -> None:
            connection.execute(
                sa.update(shards)
                .where(*self._ours(), shards.c.shard.in_(surplus))
                .values(owner=None, epoch=_new_epoch())
            )
            publish(connection, Topic.SHARDS)

        try:
            async with self._let_go(surplus):
                await self._database.write("give up shards", work)
        except DatabaseUnavailable as error:
            log.error("%s; the next renewal tries again", error)
            return
        self._mine -= surplus
        self._meter.moved(0, len(surplus))
        log.info("gave up %d shards, which other verifiers take over", len(surplus))
        self._on_moves()

    def _forget_the_dead(self, connection: sa.Connection, view: _View) -> None:
        dead = view.members - view.alive
        if not dead:
            return
        # One that is only cut off may come back, and should find its own row.
        long_dead = [member for member in dead if view.watch.silent_s(member) >= _FORGET_AFTER_S]
        # Others end the sessions of those that they know (`mortality`): by then all have seen it.
        over = view.ended & view.watch.silent()
        runs_no_broker = members.c.broker.is_(None)
        same_broker = sa.and_(~runs_no_broker, members.c.broker == self._member.broker)
        has_shards = sa.exists().where(shards.c.owner == members.c.member_id)
        connection.execute(
            sa.delete(members).where(
                members.c.member_id.in_(dead),
                ~has_shards,
                sa.or_(
                    sa.and_(runs_no_broker, members.c.member_id.in_(over)),
                    members.c.member_id.in_(long_dead),
                    same_broker,
                ),
            )
        )

    def _ours(self) -> tuple[sa.ColumnElement[bool], ...]:
        return shards.c.verifier_id == self._member.verifier_id, shards.c.owner == self._member.member_id


def _new_epoch() -> int:
    """At random: whatever history a database goes on with, no epoch comes a second time."""
    return 1 + secrets.randbelow(_EPOCHS)


def _has_ended(process: str) -> bool:
    identity = ProcessIdentity.parse(process)
    return identity is not None and identity.has_ended()
