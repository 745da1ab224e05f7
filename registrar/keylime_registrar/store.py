"""The registrar's records: active registrations, and those whose proof is outstanding."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keylime.database.engine import database_errors, reading
from keylime.errors import KeylimeError
from keylime.identifiers import AgentId
from keylime_registrar.activation import Outcome, PendingProof, Proven, WrongTag, decide
from keylime_registrar.identity import Registration, check_unchanged
from keylime_registrar.schema import pending_registrations as pending
from keylime_registrar.schema import registrations


class RegistrationConflict(KeylimeError):
    """Another process activated the same id in the same moment."""


class TooManyPending(KeylimeError):
    """No room for another unproven registration, from this address or at all."""


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


_IDENTITY = tuple(field.name for field in dataclasses.fields(Registration) if field.name != "agent_id")


class Store:
    """Reads and writes the registrar's tables. Every method raises DatabaseUnavailable."""

    def __init__(self, engine: AsyncEngine, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits

    async def active(self, agent_id: AgentId) -> ActiveRegistration | None:
        """The active registration of an agent."""
        with database_errors("read a registration"):
            async with reading(self._engine) as connection:
                return await _active(connection, agent_id)

    async def is_pending(self, agent_id: AgentId, now: int) -> bool:
        """Whether a registration of this agent waits for its proof."""
        query = sa.select(pending.c.pending_id).where(
            pending.c.agent_id == agent_id, pending.c.expires_at > now
        )
        with database_errors("read a registration"):
            async with reading(self._engine) as connection:
                return (await connection.execute(query.limit(1))).first() is not None

    async def agent_ids(self, now: int) -> list[str]:
        """The ids of all agents, active or not, sorted."""
        waiting = sa.select(pending.c.agent_id).where(pending.c.expires_at > now)
        query = sa.select(registrations.c.agent_id).union(waiting)
        with database_errors("list the registrations"):
            async with reading(self._engine) as connection:
                return sorted((await connection.execute(query)).scalars())

    async def ids_of_ek(self, ek_tpm: bytes) -> list[str]:
        """The ids under which the TPM with this EK is active."""
        query = sa.select(registrations.c.agent_id).where(registrations.c.ek_hash == _hash(ek_tpm))
        with database_errors("read the registrations"):
            async with reading(self._engine) as connection:
                return list((await connection.execute(query)).scalars())

    async def add_pending(self, registration: Registration, tag_hash: bytes, source: str, now: int) -> None:
        """Keeps a registration until its proof comes or its time is up. Raises TooManyPending."""
        row = {
            **{name: getattr(registration, name) for name in _IDENTITY},
            "agent_id": registration.agent_id,
            "tag_hash": tag_hash,
            "source": source,
            "wrong_tags": 0,
            "expires_at": now + self._limits.lifetime_s,
        }
        with database_errors("store a registration"):
            async with self._engine.begin() as connection:
                await connection.execute(sa.delete(pending).where(pending.c.expires_at <= now))
                await self._make_room(connection, registration.agent_id, source)
                await connection.execute(sa.insert(pending).values(row))

    async def activate(self, agent_id: AgentId, tag_hash: bytes, source: str, now: int) -> Outcome:
        """What the tag with this hash does, done.

        Raises IdentityChanged when the proven registration contradicts one that became active meanwhile, and
        RegistrationConflict when another process was faster.
        """
        try:
            with database_errors("activate a registration"):
                async with self._engine.begin() as connection:
                    return await self._activate(connection, agent_id, tag_hash, source, now)
        except KeylimeError as error:
            if isinstance(error.__cause__, IntegrityError):
                raise RegistrationConflict(agent_id) from error
            raise

    async def delete(self, agent_id: AgentId) -> bool:
        """Removes all that is known of an agent; False when there was nothing."""
        with database_errors("delete a registration"):
            async with self._engine.begin() as connection:
                waiting = await connection.execute(sa.delete(pending).where(pending.c.agent_id == agent_id))
                active = await connection.execute(
                    sa.delete(registrations).where(registrations.c.agent_id == agent_id)
                )
                return waiting.rowcount + active.rowcount > 0

    async def _make_room(self, connection: AsyncConnection, agent_id: AgentId, source: str) -> None:
        count = sa.select(sa.func.count()).select_from(pending)
        if (
            await connection.execute(count.where(pending.c.source == source))
        ).scalar_one() >= self._limits.per_source:
            raise TooManyPending(f"{source} has {self._limits.per_source} registrations without proof")
        if (await connection.execute(count)).scalar_one() >= self._limits.total:
            raise TooManyPending(f"there are {self._limits.total} registrations without proof")
        siblings = sa.select(pending.c.pending_id).where(pending.c.agent_id == agent_id)
        await _keep_newest(
            connection, siblings.where(pending.c.source == source), self._limits.per_agent_and_source - 1
        )
        await _keep_newest(connection, siblings, self._limits.per_agent - 1)

    async def _activate(
        self, connection: AsyncConnection, agent_id: AgentId, tag_hash: bytes, source: str, now: int
    ) -> Outcome:
        query = sa.select(pending).where(pending.c.agent_id == agent_id, pending.c.expires_at > now)
        waiting = {row.pending_id: row._mapping for row in await connection.execute(query.with_for_update())}
        tag_query = sa.select(registrations.c.tag_hash).where(registrations.c.agent_id == agent_id)
        outcome = decide(
            tag_hash,
            source=source,
            pending=[
                PendingProof(row["pending_id"], row["tag_hash"], row["source"], row["wrong_tags"])
                for row in waiting.values()
            ],
            active_tag=(await connection.execute(tag_query)).scalar_one_or_none(),
            max_wrong_tags=self._limits.max_wrong_tags,
        )
        match outcome:
            case Proven(pending_id):
                await _promote(connection, waiting[pending_id], now)
            case WrongTag(counted, discarded):
                await _count_wrong_tag(connection, counted, discarded)
            case _:
                pass
        return outcome


async def _keep_newest(connection: AsyncConnection, ids: sa.Select[tuple[int]], count: int) -> None:
    query = ids.order_by(pending.c.pending_id.desc()).offset(count)
    surplus = list((await connection.execute(query)).scalars())
    if surplus:
        await connection.execute(sa.delete(pending).where(pending.c.pending_id.in_(surplus)))


async def _active(
    connection: AsyncConnection, agent_id: AgentId, *, lock: bool = False
) -> ActiveRegistration | None:
    query = sa.select(registrations).where(registrations.c.agent_id == agent_id)
    row = (await connection.execute(query.with_for_update() if lock else query)).first()
    return ActiveRegistration(_registration(row._mapping), row.regcount) if row is not None else None


async def _promote(connection: AsyncConnection, row: sa.RowMapping, now: int) -> None:
    """Makes a pending registration the active one, in the place of an earlier one of the same TPM."""
    registration = _registration(row)
    active = await _active(connection, registration.agent_id, lock=True)
    if active is not None:
        check_unchanged(registration, active.registration)
    values = {
        **{name: row[name] for name in _IDENTITY},
        "tag_hash": row["tag_hash"],
        "ek_hash": _hash(registration.ek_tpm),
        "regcount": 1 if active is None else active.regcount + 1,
        "activated_at": now,
    }
    agent_id = registration.agent_id
    if active is None:
        await connection.execute(sa.insert(registrations).values(agent_id=agent_id, **values))
    else:
        update = sa.update(registrations).where(registrations.c.agent_id == agent_id)
        await connection.execute(update.values(values))
    await connection.execute(sa.delete(pending).where(pending.c.agent_id == agent_id))


async def _count_wrong_tag(
    connection: AsyncConnection, counted: tuple[int, ...], discarded: tuple[int, ...]
) -> None:
    if counted:
        update = sa.update(pending).where(pending.c.pending_id.in_(counted))
        await connection.execute(update.values(wrong_tags=pending.c.wrong_tags + 1))
    if discarded:
        await connection.execute(sa.delete(pending).where(pending.c.pending_id.in_(discarded)))


def _registration(row: Mapping[str, object] | sa.RowMapping) -> Registration:
    values = {name: row[name] for name in _IDENTITY}
    return Registration(agent_id=AgentId(str(row["agent_id"])), **values)  # type: ignore[arg-type]  # typed by the schema


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
