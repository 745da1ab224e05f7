"""The registrar's records: active registrations, and those whose proof is outstanding."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from keylime.database.engine import DatabaseUnavailable
from keylime.database.transactions import Database
from keylime.errors import KeylimeError
from keylime.identifiers import AgentId
from keylime_registrar.activation import Outcome, PendingProof, Proven, WrongTag, decide
from keylime_registrar.identity import Registration, check_unchanged
from keylime_registrar.schema import pending_registrations as pending
from keylime_registrar.schema import registrations


class RegistrationConflict(KeylimeError):
    """Another process activated the same id in the same moment."""


class TooManyPending(KeylimeError):
    """No room for another unproven registration, from this address or at all; in `wait_s` there may be."""

    wait_s = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What registrations without proof may take up. Times in seconds."""

    lifetime_s: int = 600
    max_wrong_tags: int = 5
    # For one id, where the oldest makes room: a stranger neither shuts an agent out nor displaces its own.
    per_agent: int = 8
    per_agent_and_source: int = 2
    per_source: int = 2_000
    total: int = 20_000


@dataclass(frozen=True, slots=True)
class ActiveRegistration:
    """A proven registration; `regcount` says how many times the agent has proven one."""

    registration: Registration
    regcount: int


_SHOWN_IDS = 5
_IDENTITY = tuple(field.name for field in dataclasses.fields(Registration) if field.name != "agent_id")


# Built once: SQLAlchemy takes longer to build a statement than SQLite to execute it. Names of parameters that
# are no columns begin with an underscore.
_BY_AGENT = registrations.c.agent_id == sa.bindparam("_agent_id")
_PENDING_BY_AGENT = pending.c.agent_id == sa.bindparam("_agent_id")
_ACTIVE = sa.select(registrations).where(_BY_AGENT)
_ACTIVE_LOCKED = _ACTIVE.with_for_update()
_ACTIVE_TAG = sa.select(registrations.c.tag_hash).where(_BY_AGENT)
_REPLACE_ACTIVE = sa.update(registrations).where(_BY_AGENT)
_IDS_OF_EK = (
    sa.select(registrations.c.agent_id)
    .where(registrations.c.ek_hash == sa.bindparam("_ek_hash"), ~_BY_AGENT)
    .limit(_SHOWN_IDS)
)
_PENDING_LOCKED = (
    sa.select(pending).where(_PENDING_BY_AGENT, pending.c.expires_at > sa.bindparam("_now")).with_for_update()
)
_DELETE_PENDING = sa.delete(pending).where(_PENDING_BY_AGENT)
_DELETE_EXPIRED = sa.delete(pending).where(pending.c.expires_at <= sa.bindparam("_now"))
_COUNT = sa.select(sa.func.count()).select_from(pending)
_COUNTS = sa.select(
    _COUNT.where(pending.c.source == sa.bindparam("_source")).scalar_subquery(), _COUNT.scalar_subquery()
)
_SIBLINGS = (
    sa.select(pending.c.pending_id, pending.c.source)
    .where(_PENDING_BY_AGENT)
    .order_by(pending.c.pending_id.desc())
)


@dataclass(frozen=True, slots=True)
class Activation:
    """What a tag did; with Proven, how many times the agent has proven itself, and other ids of its TPM."""

    outcome: Outcome
    regcount: int = 0
    same_tpm: tuple[str, ...] = ()


class Store:
    """Reads and writes the registrar's tables. Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database = database
        self._limits = limits

    async def active(self, agent_id: AgentId) -> ActiveRegistration | None:
        """The active registration of an agent."""
        return await self._database.read("read a registration", partial(_active, agent_id=agent_id))

    async def is_pending(self, agent_id: AgentId, now: int) -> bool:
        """Whether a registration of this agent waits for its proof."""

        def work(connection: sa.Connection) -> bool:
            return bool(_pending(connection, agent_id, now))

        return await self._database.read("read a registration", work)

    async def agent_ids(self, now: int) -> list[str]:
        """The ids of all agents, active or not, sorted."""
        waiting = sa.select(pending.c.agent_id).where(pending.c.expires_at > now)
        query = sa.select(registrations.c.agent_id).union(waiting)

        def work(connection: sa.Connection) -> list[str]:
            return sorted(connection.execute(query).scalars())

        return await self._database.read("list the registrations", work)

    async def add_pending(self, registration: Registration, tag_hash: bytes, source: str, now: int) -> None:
        """Keeps a registration until its proof comes or its time is up. Raises TooManyPending."""
        limits = self._limits
        row = {
            **{name: getattr(registration, name) for name in _IDENTITY},
            "agent_id": registration.agent_id,
            "tag_hash": tag_hash,
            "source": source,
            "wrong_tags": 0,
            "expires_at": now + limits.lifetime_s,
        }

        def work(connection: sa.Connection) -> None:
            connection.execute(_DELETE_EXPIRED, {"_now": now})
            _make_room(connection, limits, registration.agent_id, source)
            connection.execute(sa.insert(pending), row)

        await self._database.write("store a registration", work)

    async def activate(self, agent_id: AgentId, tag_hash: bytes, source: str, now: int) -> Activation:
        """What the tag with this hash does, done.

        Raises IdentityChanged when the proven registration contradicts one that became active meanwhile, and
        RegistrationConflict when another process was faster.
        """

        def work(connection: sa.Connection) -> Activation:
            return _activate(connection, agent_id, tag_hash, source, now, self._limits.max_wrong_tags)

        try:
            return await self._database.write("activate a registration", work)
        except DatabaseUnavailable as error:
            if isinstance(error.__cause__, IntegrityError):
                raise RegistrationConflict(agent_id) from error
            raise

    async def delete(self, agent_id: AgentId) -> bool:
        """Removes all that is known of an agent; False when there was nothing."""

        def work(connection: sa.Connection) -> bool:
            deletions = [
                sa.delete(table).where(table.c.agent_id == agent_id) for table in (pending, registrations)
            ]
            return sum(connection.execute(deletion).rowcount for deletion in deletions) > 0

        return await self._database.write("delete a registration", work)


def _pending(connection: sa.Connection, agent_id: AgentId, now: int) -> Mapping[int, sa.RowMapping]:
    rows = connection.execute(_PENDING_LOCKED, {"_agent_id": agent_id, "_now": now}).mappings()
    return {row["pending_id"]: row for row in rows}


def _make_room(connection: sa.Connection, limits: Limits, agent_id: AgentId, source: str) -> None:
    from_source, total = connection.execute(_COUNTS, {"_source": source}).one()
    if from_source >= limits.per_source:
        raise TooManyPending(f"{source} has {limits.per_source} registrations without proof")
    if total >= limits.total:
        raise TooManyPending(f"there are {limits.total} registrations without proof")
    siblings = connection.execute(_SIBLINGS, {"_agent_id": agent_id}).all()
    own = [row.pending_id for row in siblings if row.source == source]
    surplus = {row.pending_id for row in siblings[limits.per_agent - 1 :]}
    surplus.update(own[limits.per_agent_and_source - 1 :])
    if surplus:
        connection.execute(sa.delete(pending).where(pending.c.pending_id.in_(surplus)))


def _activate(
    connection: sa.Connection, agent_id: AgentId, tag_hash: bytes, source: str, now: int, max_wrong_tags: int
) -> Activation:
    waiting = _pending(connection, agent_id, now)
    outcome = decide(
        tag_hash,
        source=source,
        pending=[
            PendingProof(row["pending_id"], row["tag_hash"], row["source"], row["wrong_tags"])
            for row in waiting.values()
        ],
        active_tag=connection.execute(_ACTIVE_TAG, {"_agent_id": agent_id}).scalar_one_or_none(),
        max_wrong_tags=max_wrong_tags,
    )
    match outcome:
        case Proven(pending_id):
            return _promote(connection, waiting[pending_id], now, outcome)
        case WrongTag(counted, discarded):
            _count_wrong_tag(connection, counted, discarded)
        case _:
            pass
    return Activation(outcome)


def _promote(connection: sa.Connection, row: sa.RowMapping, now: int, outcome: Proven) -> Activation:
    """Makes a pending registration the active one, in the place of an earlier one of the same TPM."""
    registration = _registration(row)
    agent_id = registration.agent_id
    active = _active(connection, agent_id, lock=True)
    if active is not None:
        check_unchanged(registration, active.registration)
    regcount = 1 if active is None else active.regcount + 1
    ek_hash = hashlib.sha256(registration.ek_tpm).digest()
    values = {
        **{name: row[name] for name in _IDENTITY},
        "tag_hash": row["tag_hash"],
        "ek_hash": ek_hash,
        "regcount": regcount,
        "activated_at": now,
    }
    if active is None:
        connection.execute(sa.insert(registrations), {"agent_id": agent_id, **values})
    else:
        connection.execute(_REPLACE_ACTIVE, {"_agent_id": agent_id, **values})
    connection.execute(_DELETE_PENDING, {"_agent_id": agent_id})
    return Activation(outcome, regcount, _ids_of_ek(connection, ek_hash, agent_id))


def _count_wrong_tag(connection: sa.Connection, counted: tuple[int, ...], discarded: tuple[int, ...]) -> None:
    if counted:
        update = sa.update(pending).where(pending.c.pending_id.in_(counted))
        connection.execute(update.values(wrong_tags=pending.c.wrong_tags + 1))
    if discarded:
        connection.execute(sa.delete(pending).where(pending.c.pending_id.in_(discarded)))


def _active(connection: sa.Connection, agent_id: AgentId, *, lock: bool = False) -> ActiveRegistration | None:
    query = _ACTIVE_LOCKED if lock else _ACTIVE
    row = connection.execute(query, {"_agent_id": agent_id}).mappings().first()
    return None if row is None else ActiveRegistration(_registration(row), row["regcount"])


def _ids_of_ek(connection: sa.Connection, ek_hash: bytes, but: AgentId) -> tuple[str, ...]:
    return tuple(connection.execute(_IDS_OF_EK, {"_ek_hash": ek_hash, "_agent_id": but}).scalars())


def _registration(row: sa.RowMapping) -> Registration:
    values = {name: row[name] for name in _IDENTITY}
    return Registration(agent_id=AgentId(row["agent_id"]), **values)
