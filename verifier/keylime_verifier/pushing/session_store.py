"""Sessions in the database: any process, of any verifier, goes on with what another one has begun."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from keylime.database.transactions import Database
from keylime.identifiers import AgentId
from keylime_verifier.database.schema import agents, sessions
from keylime_verifier.pushing.sessions import (
    ACTIVE,
    CLOCK_SLACK_S,
    FAILED,
    PENDING,
    Begun,
    PushSession,
    SessionLimits,
    StoredToken,
    wait_s,
)

MOST_UNPROVEN = 20_000
"""Sessions that nobody has proven, of all sources together: some five megabytes."""

_ROOM = 64  # so much of it is made at a time: a part like this of all
_PROVING_S = 10.0  # in which an agent proves what it has begun, also over a slow network
_EXPIRED_KEPT_S = 3600.0  # for so long a token is called expired and not unknown
_COLUMNS = [sessions.c[name] for name in PushSession.__struct_fields__]
SELECT_SESSIONS = sa.select(*_COLUMNS)
_UNPROVEN = sessions.c.state != ACTIVE
_LENGTHEN = (
    sa.update(sessions)
    .where(
        sessions.c.agent_id == sa.bindparam("of_agent"),
        sessions.c.state == ACTIVE,
        sessions.c.token_expires_at < sa.bindparam("until"),
    )
    .values(token_expires_at=sa.bindparam("until"))
)


@dataclass(frozen=True, slots=True)
class TooMany:
    """A session that was not begun; seconds until one may be."""

    wait_s: float


def session_of(row: Sequence[Any]) -> PushSession:
    """The session in a row of `SELECT_SESSIONS`."""
    return PushSession(*row)


class SessionStore:
    """Each method is one transaction."""

    def __init__(
        self, database: Database, limits: SessionLimits, *, most_unproven: int = MOST_UNPROVEN
    ) -> None:
        self._database = database
        self._limits = limits
        self._most_unproven = most_unproven

    async def begin(self, session: PushSession, now: float) -> TooMany | None:
        """Stores a session that is pending, unless there are too many from its source."""

        def work(connection: sa.Connection) -> TooMany | None:
            delay = wait_s(_begun(connection, session, self._limits, now), self._limits, now)
            if delay is not None:
                return TooMany(delay)
            _make_room(connection, self._most_unproven, now)
            connection.execute(
                sa.insert(sessions).values(
                    {column.name: getattr(session, column.name) for column in _COLUMNS}
                )
            )
            return None

        return await self._database.write("begin a session", work)

    async def find(self, session_id: str) -> PushSession | None:
        """The session with this id."""
        query = SELECT_SESSIONS.where(sessions.c.session_id == session_id)

        def work(connection: sa.Connection) -> PushSession | None:
            row = connection.execute(query).first()
            return None if row is None else session_of(row)

        return await self._database.read("find a session", work)

    async def fail(self, session_id: str) -> bool:
        """Ends a session that was to be proven; whether it was pending."""
        change = (
            sa.update(sessions)
            .where(sessions.c.session_id == session_id, sessions.c.state == PENDING)
            .values(state=FAILED)
        )
        return await self._database.write(
            "end a session", lambda connection: connection.execute(change).rowcount == 1
        )

    async def prove(
        self, session: PushSession, token: StoredToken, key_hash: str, expires_at: float, ak_tpm: str
    ) -> bool:
        """Makes a pending session the only active one of its agent.

        False when somebody was faster, or the agent has another AK by now.
        """
        change = (
            sa.update(sessions)
            .where(sessions.c.session_id == session.session_id, sessions.c.state == PENDING)
            .values(
                state=ACTIVE,
                key_hash=key_hash,
                token_salt=token.salt,
                token_hash=token.digest,
                token_expires_at=expires_at,
            )
        )
        agent = sa.select(agents.c.ak_tpm).where(agents.c.agent_id == session.agent_id).with_for_update()
        others = sa.delete(sessions).where(
            sessions.c.agent_id == session.agent_id,
            sessions.c.state == ACTIVE,
            sessions.c.session_id != session.session_id,
        )

        def work(connection: sa.Connection) -> bool:
            # The agent's row is locked: of two proofs at once one ends the other.
            if connection.execute(agent).scalar() != ak_tpm:
                return False
            # A proof that comes twice ends nothing: the session is the one that it has made active.
            if connection.execute(change).rowcount != 1:
                return False
            connection.execute(others)
            return True

        return await self._database.write("prove a session", work)

    async def prune(self, now: float) -> None:
        """Forgets sessions that nobody can go on with, and that count no more."""
        is_current = sessions.c.created_at.between(now - self._limits.longest_window_s, now + CLOCK_SLACK_S)
        unproven = sa.and_(_UNPROVEN, sa.not_(is_current))
        over = sa.and_(sessions.c.state == ACTIVE, sessions.c.token_expires_at < now - _EXPIRED_KEPT_S)
        await self._database.write(
            "forget sessions",
            lambda connection: connection.execute(sa.delete(sessions).where(unproven | over)),
        )


def lengthen_sessions(connection: sa.Connection, until: Mapping[AgentId, float]) -> None:
    """Lets the tokens of agents hold longer."""
    if until:
        connection.execute(
            _LENGTHEN, [{"of_agent": agent_id, "until": moment} for agent_id, moment in until.items()]
        )


def _begun(connection: sa.Connection, session: PushSession, limits: SessionLimits, now: float) -> Begun:
    of_agent = sa.and_(
        sessions.c.agent_id == session.agent_id, sessions.c.created_at > now - limits.agent_window_s
    )
    in_window = sessions.c.created_at > now - limits.address_window_s
    longest = max(limits.address_window_s, limits.agent_window_s)
    query = sa.select(
        sa.func.coalesce(sa.func.sum(sa.case((in_window, 1), else_=0)), 0),
        sa.func.min(sa.case((in_window, sessions.c.created_at))),
        sa.func.coalesce(sa.func.sum(sa.case((of_agent, 1), else_=0)), 0),
        sa.func.min(sa.case((of_agent, sessions.c.created_at))),
    ).where(
        sessions.c.address == session.address,
        sessions.c.created_at.between(now - longest, now + CLOCK_SLACK_S),
        _UNPROVEN,
    )
    from_address, first_from_address, for_agent, first_for_agent = connection.execute(query).one()
    return Begun(int(from_address), first_from_address, int(for_agent), first_for_agent)


def _make_room(connection: sa.Connection, most: int, now: float) -> None:
    """Where strangers have begun too many sessions, the fullest networks give up their oldest ones.

    Strangers may have as many networks as there are sessions, and agents be many in one. So those that are
    just being proven go last: no flood is so fast that there are no others.
    """
    count = sa.select(sa.func.count()).select_from(sessions).where(_UNPROVEN)
    if connection.execute(count).scalar_one() < most:
        return
    is_young = sessions.c.created_at.between(now - _PROVING_S, now + CLOCK_SLACK_S)
    is_being_proven = sa.and_(sessions.c.state == PENDING, is_young)
    newest_first = sessions.c.created_at.desc(), sessions.c.session_id
    ranked = (
        sa.select(
            sessions.c.session_id,
            sessions.c.created_at,
            sa.case((is_being_proven, 1), else_=0).label("is_being_proven"),
            sa.func.row_number().over(partition_by=sessions.c.network, order_by=newest_first).label("place"),
        )
        .where(_UNPROVEN)
        .subquery()
    )
    surplus = connection.execute(
        sa.select(ranked.c.session_id)
        .order_by(ranked.c.is_being_proven, ranked.c.place.desc(), ranked.c.created_at)
        .limit(max(1, most // _ROOM))
    ).scalars()
    connection.execute(sa.delete(sessions).where(sessions.c.session_id.in_(list(surplus))))
