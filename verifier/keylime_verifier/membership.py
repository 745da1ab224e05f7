"""This process among the verifiers that share a database: it keeps its lease, and takes and gives up shards.

Leases are measured by the database's clock alone. They only decide who should do the work: what makes it safe
is that every write names the epoch of its shard, and is refused when that is over (`fencing`).
"""

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keylime.database.clock import database_time
from keylime.database.engine import DatabaseUnavailable
from keylime_verifier.changes import Topic, announce
from keylime_verifier.ownership import SHARDS, MemberId, next_moves
from keylime_verifier.process_identity import ProcessIdentity
from keylime_verifier.schema import members, shards
from keylime_verifier.transactions import write

log = logging.getLogger("keylime.verifier")

_RENEWALS = 3  # in each lease
_FORGET_AFTER_S = 600.0  # what was published meanwhile is repeated to subscribers for as long

LetGo = Callable[[frozenset[int]], AbstractAsyncContextManager[None]]
"""Ends all work for some shards, writes down what is left of it, and begins none until the block ends."""


@dataclass(frozen=True, slots=True)
class Member:
    """What the others know of this process. `broker` names the ZeroMQ broker that it runs, if any."""

    member_id: MemberId
    verifier_id: str
    name: str
    broker: str | None

    @classmethod
    def new(cls, verifier_id: str, broker: str | None) -> "Member":
        """This run of this process."""
        return cls(uuid.uuid4().hex, verifier_id, f"{socket.gethostname()}:{os.getpid()}", broker)


@dataclass(frozen=True, slots=True)
class _View:
    """The group as the database shows it in one transaction."""

    alive: frozenset[MemberId]
    owners: dict[int, MemberId | None]

    def owned_by(self, member: MemberId) -> frozenset[int]:
        """The shards of one member."""
        return frozenset(shard for shard, owner in self.owners.items() if owner == member)


class Membership:
    """Holds this process's lease, and its fair share of the shards."""

    def __init__(
        self,
        engine: AsyncEngine,
        member: Member,
        *,
        lease_s: float,
        let_go: LetGo,
        on_moves: Callable[[], None],
    ) -> None:
        """`let_go` is entered while shards are given up, `on_moves` called after they changed hands.

        `engine` should be for nothing else: a lease must not wait until writers of verdicts had their turn.
        """
        self._engine = engine
        self._member = member
        self._lease_s = lease_s
        self._let_go = let_go
        self._on_moves = on_moves
        self._identity = ProcessIdentity.own()
        self._wake = asyncio.Event()
        self._is_away = False  # the database, as far as we know
        self._mine: frozenset[int] = frozenset()  # as of the last renewal
        self._releasing: asyncio.Task[None] | None = None

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
            if self._releasing is not None:
                self._releasing.cancel()
                await asyncio.gather(self._releasing, return_exceptions=True)

    async def leave(self) -> None:
        """Gives everything up, so that others need not wait. Raises DatabaseUnavailable."""
        me = self._member.member_id
        async with write(self._engine, "give up the shards") as connection:
            await connection.execute(
                sa.update(shards).where(*self._ours()).values(owner=None, epoch=shards.c.epoch + 1)
            )
            await connection.execute(sa.delete(members).where(members.c.member_id == me))
            await announce(connection, Topic.SHARDS)

    async def _wait_for_renewal(self) -> None:
        try:
            async with asyncio.timeout(self._lease_s / _RENEWALS):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _try_step(self) -> None:
        try:
            await self._step()
            self._is_away = False
        except DatabaseUnavailable as error:
            if not self._is_away:
                log.error("%s; others may take over the agents of this verifier", error)
            self._is_away = True
            self._wake.set()
            await asyncio.sleep(min(1.0, self._lease_s / _RENEWALS))

    async def _step(self) -> None:
        """One renewal, and what follows from who is there then."""
        async with write(self._engine, "renew the lease") as connection:
            is_new = await self._renew(connection)
            view = await self._view(connection)
            moves = next_moves(self._member.member_id, view.alive, view.owners)
            taken = await self._take(connection, moves.take, view)
            if is_new:
                await self._forget_the_dead(connection, view)
                await announce(connection, Topic.SHARDS)
        if taken:
            log.info("took over %d of %d shards; %d verifiers are alive", len(taken), SHARDS, len(view.alive))
        mine = view.owned_by(self._member.member_id)
        lost = self._mine - mine
        if lost:
            log.info("%d shards have gone over to other verifiers", len(lost))
        self._mine = mine | taken
        if taken or lost:
            self._on_moves()
        if moves.release and (self._releasing is None or self._releasing.done()):
            # Beside the renewals: work that has to end first may take longer than a lease.
            self._releasing = asyncio.create_task(self._release(moves.release))

    async def _ensure_shards(self) -> None:
        rows = [
            {"verifier_id": self._member.verifier_id, "shard": shard, "owner": None, "epoch": 0}
            for shard in range(SHARDS)
        ]
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        async with write(self._engine, "prepare the shards") as connection:
            await connection.execute(insert(shards).on_conflict_do_nothing(), rows)

    async def _renew(self, connection: AsyncConnection) -> bool:
        """Prolongs the lease; True when there was none."""
        expires_at = database_time() + self._lease_s
        renewed = await connection.execute(
            sa.update(members)
            .where(members.c.member_id == self._member.member_id)
            .values(expires_at=expires_at)
        )
        if renewed.rowcount:
            return False
        await connection.execute(
            sa.insert(members).values(
                member_id=self._member.member_id,
                verifier_id=self._member.verifier_id,
                name=self._member.name,
                process=str(self._identity or ""),
                expires_at=expires_at,
                broker=self._member.broker,
            )
        )
        return True

    async def _view(self, connection: AsyncConnection) -> _View:
        group = sa.select(
            members.c.member_id, members.c.process, (members.c.expires_at > database_time()).label("holds")
        ).where(members.c.verifier_id == self._member.verifier_id)
        alive = frozenset(
            row.member_id
            for row in await connection.execute(group)
            if row.holds and not _has_ended(row.process)
        )
        owned = sa.select(shards.c.shard, shards.c.owner).where(
            shards.c.verifier_id == self._member.verifier_id
        )
        return _View(alive, {row.shard: row.owner for row in await connection.execute(owned)})

    async def _take(self, connection: AsyncConnection, wanted: frozenset[int], view: _View) -> frozenset[int]:
        """Takes the shards that are still as they were seen; what somebody is busy with is left for later."""
        if not wanted:
            return wanted
        group = (shards.c.verifier_id == self._member.verifier_id, shards.c.shard.in_(wanted))
        locked = await connection.execute(
            sa.select(shards.c.shard, shards.c.owner)
            .where(*group)
            .order_by(shards.c.shard)
            .with_for_update(skip_locked=True)
        )
        unchanged = frozenset(row.shard for row in locked if row.owner == view.owners[row.shard])
        if unchanged:
            await connection.execute(
                sa.update(shards)
                .where(shards.c.verifier_id == self._member.verifier_id, shards.c.shard.in_(unchanged))
                .values(owner=self._member.member_id, epoch=shards.c.epoch + 1)
            )
        return unchanged

    async def _release(self, surplus: frozenset[int]) -> None:
        """Gives shards up in good order: first the work ends, then the others may begin."""
        try:
            async with self._let_go(surplus), write(self._engine, "give up shards") as connection:
                await connection.execute(
                    sa.update(shards)
                    .where(*self._ours(), shards.c.shard.in_(surplus))
                    .values(owner=None, epoch=shards.c.epoch + 1)
                )
                await announce(connection, Topic.SHARDS)
        except DatabaseUnavailable as error:
            log.error("%s; the next renewal tries again", error)
            return
        self._mine -= surplus
        log.info("gave up %d shards, which other verifiers take over", len(surplus))
        self._on_moves()

    async def _forget_the_dead(self, connection: AsyncConnection, view: _View) -> None:
        old = members.c.expires_at < database_time() - _FORGET_AFTER_S
        same_broker = members.c.broker == self._member.broker
        has_shards = sa.exists().where(shards.c.owner == members.c.member_id)
        await connection.execute(
            sa.delete(members).where(
                members.c.verifier_id == self._member.verifier_id,
                members.c.member_id.not_in(view.alive),
                ~has_shards,
                sa.or_(members.c.broker.is_(None), old, same_broker),
            )
        )

    def _ours(self) -> tuple[sa.ColumnElement[bool], ...]:
        return shards.c.verifier_id == self._member.verifier_id, shards.c.owner == self._member.member_id


def _has_ended(process: str) -> bool:
    identity = ProcessIdentity.parse(process)
    return identity is not None and identity.has_ended()
