"""Members that have died: noticed by each process on its own clock, and what they still hold is freed.

A process may stop, or be cut off, in the middle of a transaction. To the server its session is alive and
keeps its locks, and whoever takes shards over goes round locked rows: nobody would look after them. So the
sessions of a member that has shown no sign of life for two leases are ended, if they are in the transaction
that they were in at the look before: one that comes back begins others, and must be able to renew its lease.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from keylime.database.engine import DatabaseUnavailable
from keylime.database.locks import holders_of, how_to_end
from keylime.database.transactions import Database
from keylime_verifier.agents.shards import MemberId, VerifierId
from keylime_verifier.database.schema import members, shards
from keylime_verifier.sharing.signs_of_life import (
    ShardGap,
    SignsOfLife,
    lease_problem,
    missing_shards,
    taken_for_dead,
)

log = logging.getLogger("keylime.verifier")

_LOOKS = 2  # in each lease
_MOST = 0.75  # of a lease counts from one look to the next
# What changes with every renewal of a member's lease; verifiers of the release before have only the latter.
_RENEWAL = sa.case((members.c.lease.is_(None), members.c.expires_at), else_=members.c.renewals)
# As `Sessions` names them: PROGRAM:MEMBER:PID.
_MEMBER = "substring(application_name FROM '([0-9a-f]{32})[^0-9a-f][0-9]+$')"
_OPEN = sa.text(
    f"SELECT pid, xact_start, {_MEMBER} AS member FROM pg_stat_activity "  # noqa: S608 - a constant
    "WHERE datname = current_database() AND usename = current_user AND xact_start IS NOT NULL "
    f"AND {_MEMBER} = ANY(CAST(:members AS text[]))"
)
_END = sa.text(
    "SELECT pid, application_name, pg_terminate_backend(pid) AS ended FROM pg_stat_activity "
    "WHERE pid = :pid AND xact_start = :xact_start"
)


class Mortality:
    """Looks at the members of one group; two checks, see `health`, are about this process itself."""

    def __init__(
        self,
        database: Database,
        verifier_id: VerifierId,
        me: MemberId,
        *,
        lease_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._me = me
        self._lease_s = lease_s
        self._clock = clock
        renewals = sa.select(
            members.c.member_id.label("member"),
            _RENEWAL.label("mark"),
            sa.null().label("shards"),
            (members.c.verifier_id == verifier_id).label("is_ours"),
        )
        shares = (
            sa.select(shards.c.owner, sa.null(), sa.func.count(), sa.true())
            .where(shards.c.verifier_id == verifier_id)
            .group_by(shards.c.owner)
        )
        self._query = renewals.union_all(shares)
        self._watch = SignsOfLife()
        self._others = SignsOfLife()
        self._open: frozenset[tuple[int, datetime]] = frozenset()  # transactions of those that may be dead
        self._gap = ShardGap()
        self._told: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            with contextlib.suppress(DatabaseUnavailable):  # the lease, which needs it more, says so
                await self.look()
            await asyncio.sleep(self._lease_s / _LOOKS)

    async def look(self) -> None:
        """One look, and what follows from it. Raises DatabaseUnavailable."""
        rows = await self._database.read(
            "look at the members", lambda connection: connection.execute(self._query).all()
        )
        marks = {row.member: row.mark for row in rows if row.shards is None and row.is_ours}
        others = {row.member: row.mark for row in rows if row.shards is None and not row.is_ours}
        owned = {row.member: row.shards for row in rows if row.shards is not None}
        now = self._clock()
        self._watch = self._watch.after(marks, now, _MOST * self._lease_s)
        self._others = self._others.after(others, now, _MOST * self._lease_s)
        silent = self._watch.silent(self._lease_s * (1 + 1 / _LOOKS))
        self._gap = self._gap.after(missing_shards(self._me, silent, self._watch.signs, owned), now)
        if not self._gap.shards:
            self._told = frozenset()
        # MariaDB ends sessions by itself that stop within a transaction, wherever they do.
        if self._database.url.get_backend_name() == "postgresql":
            suspects = self._dead(within_s=self._lease_s / _LOOKS)
            if suspects:
                await self._end_sessions(suspects, self._dead())
            else:
                self._open = frozenset()
        if self._gap.is_long(now, self._lease_s):
            await self._say_who_holds()

    async def lease_problem(self) -> str | None:
        """The check of the lease."""
        return lease_problem(self._watch, self._me, self._clock(), self._lease_s * (1 + 1 / _LOOKS))

    async def shards_problem(self) -> str | None:
        """The check of the shards."""
        if not self._gap.is_long(self._clock(), self._lease_s):
            return None
        return (
            f"{self._gap.shards} shards that nobody looks after cannot be taken over: their rows are locked; "
            f"the log names the sessions; {how_to_end(self._database.url)}"
        )

    def _dead(self, within_s: float = 0.0) -> frozenset[MemberId]:
        """Who is taken for dead, or will be in that many seconds."""
        return taken_for_dead(self._watch, self._others, self._me, lease_s=self._lease_s, within_s=within_s)

    async def _end_sessions(self, suspects: frozenset[MemberId], dead: frozenset[MemberId]) -> None:
        seen = self._open

        def work(connection: sa.Connection) -> tuple[Sequence[sa.Row[Any]], list[sa.Row[Any]]]:
            rows = connection.execute(_OPEN, {"members": sorted(suspects)}).all()
            ended: list[sa.Row[Any]] = []
            for row in rows:
                if row.member in dead and (row.pid, row.xact_start) in seen:
                    found = connection.execute(_END, {"pid": row.pid, "xact_start": row.xact_start})
                    ended += found.all()
            return rows, ended

        rows, ended = await self._database.read("end the sessions of verifiers that are gone", work)
        self._open = frozenset((row.pid, row.xact_start) for row in rows)
        for row in ended:
            log.warning(
                "ended session %d of %s in the database: that verifier has not renewed its lease for long",
                row.pid,
                row.application_name,
            )

    async def _say_who_holds(self) -> None:
        found = await self._database.read(
            "find who holds the shards", lambda connection: holders_of(connection, [shards.name])
        )
        holders = frozenset(map(str, found))
        if holders - self._told:
            log.error(
                "%d shards that nobody looks after cannot be taken over; their rows are locked by: %s",
                self._gap.shards,
                ", ".join(sorted(holders)),
            )
        self._told |= holders
