"""The registrar's records: active registrations, and those whose proof is outstanding."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from keylime.database.engine import DatabaseUnavailable
from keylime.database.ledger import Entry
from keylime.database.transactions import Database
from keylime.identifiers import AgentId
from keylime_registrar import attempts
from keylime_registrar.activation import KnownAgent, Outcome, Own, Proven, WrongTag, decide
from keylime_registrar.attempts import IDENTITY, Origin, PendingLimits, Waiting
from keylime_registrar.audit import LEDGER, Act, entry
from keylime_registrar.identity import Registration, check_unchanged, tls_key_of
from keylime_registrar.refusals import RegistrationConflict
from keylime_registrar.schema import registrations

__all__ = ["Activation", "ActiveRegistration", "Origin", "PendingLimits", "Store"]


@dataclass(frozen=True, slots=True)
class ActiveRegistration:
    """A proven registration; `regcount` says how many times the agent has proven one."""

    registration: Registration
    regcount: int


ResultT = TypeVar("ResultT")

_SHOWN_IDS = 5
_TRUSTED = ("ek_tpm", "ekcert", "aik_tpm", "iak_tpm", "iak_cert", "idevid_tpm", "idevid_cert")
_TRIES = 3  # of what another process may get in the way of
_ROOM_EVERY_S = 60
_ROOM_EVERY = 64  # times, while the whole capacity is filled


# Built once, as in `attempts`.
_BY_AGENT = registrations.c.agent_id == sa.bindparam("_agent_id")
_ACTIVE = sa.select(registrations).where(_BY_AGENT)
_ACTIVE_LOCKED = _ACTIVE.with_for_update()
_ACTIVE_TAG = sa.select(registrations.c.tag_hash).where(_BY_AGENT)
_ADD_ACTIVE = sa.insert(registrations)
_REPLACE_ACTIVE = sa.update(registrations).where(_BY_AGENT)
_IDS_OF_EK = (
    sa.select(registrations.c.agent_id)
    .where(registrations.c.ek_hash == sa.bindparam("_ek_hash"), ~_BY_AGENT)
    .limit(_SHOWN_IDS)
)


@dataclass(frozen=True, slots=True)
class Activation:
    """What a tag did; with Proven, how many times the agent has proven itself, and other ids of its TPM.

    `new_key` is the SHA-256 of the key of its TLS certificate if the registration before had another one;
    `changed` names what else it has that the one before had not.
    """

    outcome: Outcome
    regcount: int = 0
    same_tpm: tuple[str, ...] = ()
    new_key: str | None = None
    changed: tuple[str, ...] = ()
    registration: Registration | None = None


class Store:
    """Reads and writes the registrar's tables. Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database, limits: PendingLimits) -> None:
        self._database = database
        self._limits = limits
        # Room is made by the way: after so many bytes of new attempts, or after so long.
        self._added = limits.capacity
        self._room_made_at = 0

    async def active(self, agent_id: AgentId) -> ActiveRegistration | None:
        """The active registration of an agent."""
        return await self._database.read("read a registration", partial(_active, agent_id=agent_id))

    async def is_pending(self, agent_id: AgentId, now: int) -> bool:
        """Whether a registration of this agent waits for its proof."""
        work = partial(attempts.is_any, agent_id=agent_id, now=now)
        return await self._database.read("read a registration", work)

    async def agent_ids(self) -> list[str]:
        """The ids of all agents that have proven themselves, sorted."""

        def work(connection: sa.Connection) -> list[str]:
            return sorted(connection.execute(sa.select(registrations.c.agent_id)).scalars())

        return await self._database.read("list the registrations", work)

    async def certificates_after(self, agent_id: str, limit: int) -> list[tuple[str, str]]:
        """Ids of active agents after this one, in their order, with their TLS certificates in PEM."""
        query = (
            sa.select(registrations.c.agent_id, registrations.c.mtls_cert)
            .where(registrations.c.agent_id > agent_id, registrations.c.mtls_cert.is_not(None))
            .order_by(registrations.c.agent_id)
            .limit(limit)
        )

        def work(connection: sa.Connection) -> list[tuple[str, str]]:
            return [(row.agent_id, row.mtls_cert) for row in connection.execute(query)]

        return await self._database.read("read certificates of agents", work)

    async def add_pending(self, registration: Registration, origin: Origin, now: int) -> bytes:
        """The secret to challenge a registration with, which from now on waits for its proof.

        One that waits already, unchanged and from the same source, keeps its secret. Raises IdentityChanged
        for another TPM under the id of an active agent.
        """
        waiting = Waiting.for_proof(registration, origin)
        must_make_room = (
            self._added + waiting.size > self._limits.capacity // _ROOM_EVERY
            or abs(now - self._room_made_at) >= _ROOM_EVERY_S
        )

        def work(connection: sa.Connection) -> bytes | None:
            active = _active(connection, registration.agent_id)
            if active is not None:
                check_unchanged(registration, active.registration)
            secret = attempts.secret_for(connection, waiting, self._limits, now)
            if must_make_room and secret is not None:
                attempts.make_room(connection, self._limits, now)
            return secret

        secret = await self._again_on_conflict("store a registration", work)
        if must_make_room:
            self._added, self._room_made_at = 0, now
        self._added += waiting.size
        return secret

    async def activate(self, agent_id: AgentId, tag_hash: bytes, origin: Origin, now: int) -> Activation:
        """What the tag with this hash does, done; what that changes is in the audit.

        Raises IdentityChanged when the proven registration contradicts one that became active meanwhile, and
        RegistrationConflict when other processes were faster again and again.
        """

        named = entry(Act.REGISTERED, agent_id, {})

        def work(connection: sa.Connection) -> Activation:
            activation = _activate(
                connection, agent_id, tag_hash, origin.source, now, self._limits.max_wrong_tags
            )
            if told := _told(activation, origin, named):
                LEDGER.append(connection, [told])
            return activation

        try:
            return await self._again_on_conflict("activate a registration", work)
        except DatabaseUnavailable as error:
            if isinstance(error.__cause__, IntegrityError):
                raise RegistrationConflict(agent_id) from error
            raise

    async def delete(self, agent_id: AgentId, administrator: str) -> bool:
        """Removes all that is known of an agent, and notes who did it; False when there was nothing."""
        told = entry(Act.REGISTRATION_DELETED, agent_id, {}, administrator=administrator)

        def work(connection: sa.Connection) -> bool:
            # In the order of activations, so that neither waits for the other.
            deletion = sa.delete(registrations).where(registrations.c.agent_id == agent_id)
            deleted = connection.execute(deletion).rowcount
            is_done = deleted + attempts.forget(connection, agent_id) > 0
            if is_done:
                LEDGER.append(connection, [told])
            return is_done

        return await self._database.write("delete a registration", work)

    async def _again_on_conflict(
        self, action: str, work: Callable[[sa.Connection], ResultT | None]
    ) -> ResultT:
        """What the work gives, in another transaction where another process wrote the same in this moment."""
        for _ in range(_TRIES - 1):
            try:
                result = await self._database.write(action, work)
            except DatabaseUnavailable as error:
                if not isinstance(error.__cause__, IntegrityError):
                    raise
            else:
                if result is not None:
                    return result
        result = await self._database.write(action, work)
        if result is None:
            raise DatabaseUnavailable(f"database: cannot {action}: others do the same all the time")
        return result


def _activate(
    connection: sa.Connection, agent_id: AgentId, tag_hash: bytes, source: str, now: int, max_wrong_tags: int
) -> Activation:
    proven = attempts.with_tag(connection, agent_id, tag_hash, now)
    if proven is not None:
        activation = _promote(connection, agent_id, proven, now)
        if activation is not None:
            return activation
    own = attempts.newest_from(connection, agent_id, source, now)
    outcome = decide(
        tag_hash,
        KnownAgent(
            own=None if own is None else Own(*own),
            is_pending=own is not None or attempts.is_any(connection, agent_id, now),
            active_tag=connection.execute(_ACTIVE_TAG, {"_agent_id": agent_id}).scalar_one_or_none(),
        ),
        max_wrong_tags=max_wrong_tags,
    )
    if isinstance(outcome, WrongTag) and outcome.counted is not None:
        attempts.count_wrong_tag(connection, outcome.counted)
    return Activation(outcome)


def _promote(connection: sa.Connection, agent_id: AgentId, pending_id: int, now: int) -> Activation | None:
    """Makes a pending registration the active one, in the place of an earlier one of the same TPM.

    None when another process made one of this id active meanwhile, which ends all others.
    """
    active = _active(connection, agent_id, lock=True)
    row = attempts.row_of(connection, agent_id, pending_id, now)
    if row is None:
        return None
    registration = _registration(row)
    if active is not None:
        check_unchanged(registration, active.registration)
    regcount = 1 if active is None else active.regcount + 1
    ek_hash = hashlib.sha256(registration.ek_tpm).digest()
    values = {
        **{name: row[name] for name in IDENTITY},
        "tag_hash": row["tag_hash"],
        "ek_hash": ek_hash,
        "regcount": regcount,
        "activated_at": now,
    }
    if active is None:
        connection.execute(_ADD_ACTIVE, {"agent_id": agent_id, **values})
    else:
        connection.execute(_REPLACE_ACTIVE, {"_agent_id": agent_id, **values})
    attempts.forget(connection, agent_id)
    key, former_key = tls_key_of(registration), None
    changed: tuple[str, ...] = ()
    if active is not None:
        is_same = active.registration.mtls_cert == registration.mtls_cert
        former_key = key if is_same else tls_key_of(active.registration)
        changed = _changed(active.registration, registration)
        changed = changed if former_key == key else (*changed, "mtls_key")
    is_new = former_key not in (None, key)
    same_tpm = _ids_of_ek(connection, ek_hash, agent_id)
    return Activation(Proven(pending_id), regcount, same_tpm, key if is_new else None, changed, registration)


def _changed(before: Registration, after: Registration) -> tuple[str, ...]:
    """What of a registration that others trust is another one: addresses and counts are not."""
    return tuple(name for name in _TRUSTED if getattr(before, name) != getattr(after, name))


def _told(activation: Activation, origin: Origin, named: Entry) -> Entry | None:
    """What the audit has of an activation; None where it changed nothing of what is trusted."""
    registration = activation.registration
    if registration is None or (activation.regcount > 1 and not activation.changed):
        return None
    details = {
        "source": origin.source,
        "regcount": activation.regcount,
        "ek_sha256": hashlib.sha256(registration.ek_tpm).hexdigest(),
        "mtls_key_sha256": tls_key_of(registration),
    }
    if activation.changed:
        details["changed"] = list(activation.changed)
    if activation.same_tpm:
        details["same_tpm"] = list(activation.same_tpm)
    act = Act.REGISTERED if activation.regcount == 1 else Act.KEYS_REPLACED
    return {**named, "kind": act.value, "details": json.dumps(details)}


def _active(connection: sa.Connection, agent_id: AgentId, *, lock: bool = False) -> ActiveRegistration | None:
    query = _ACTIVE_LOCKED if lock else _ACTIVE
    row = connection.execute(query, {"_agent_id": agent_id}).mappings().first()
    return None if row is None else ActiveRegistration(_registration(row), row["regcount"])


def _ids_of_ek(connection: sa.Connection, ek_hash: bytes, but: AgentId) -> tuple[str, ...]:
    return tuple(connection.execute(_IDS_OF_EK, {"_ek_hash": ek_hash, "_agent_id": but}).scalars())


def _registration(row: sa.RowMapping) -> Registration:
    values = {name: row[name] for name in IDENTITY}
    return Registration(agent_id=AgentId(row["agent_id"]), **values)
