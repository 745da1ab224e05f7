"""Registrations that wait for their proof, as rows: found again, added, matched by a tag, and making room.

Functions of a connection, each inside a transaction of the store. Every attempt belongs to one source alone,
the prefix it came from: what a stranger sends, even the very words of an agent, is a row of his own.
"""

import dataclasses
import functools
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from keylime.database.many import insert_or_conflict
from keylime.identifiers import AgentId
from keylime_registrar.challenges import KEY_SIZE, SALT_SIZE, ChallengeKey, derive_secret, submission_digest
from keylime_registrar.fairness import PendingAttempt, surplus
from keylime_registrar.identity import Registration, tag_hash
from keylime_registrar.schema import challenge_keys
from keylime_registrar.schema import pending_registrations as pending

_ROW_SIZE = 2048  # bytes, of a row without what the agent says: index entries, pages that are half full
_KEY_LIFETIME_S = 24 * 3600
IDENTITY = tuple(item.name for item in dataclasses.fields(Registration) if item.name != "agent_id")


@dataclass(frozen=True, slots=True)
class PendingLimits:
    """What registrations without proof may take up. Times in seconds, sizes in bytes.

    With 64 MiB, agents that share an address have room for 180 attempts at a time while 64 networks full of
    strangers try to take it, and for 15,000 while nobody does.
    """

    lifetime_s: int = 600
    max_wrong_tags: int = 5
    capacity: int = 64 << 20
    # Of one id. Several coexist; a stranger's never take the place of the agent's.
    per_agent: int = 16 << 20
    # Attempts of one id from one address.
    per_agent_and_source: int = 32


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a registration comes from: the narrowest and the widest prefix of its address."""

    source: str
    network: str

    @classmethod
    def of(cls, prefixes: tuple[str, ...]) -> "Origin":
        """The origin with these prefixes, narrowest first."""
        return cls(prefixes[0], prefixes[-1])


@dataclass(frozen=True, slots=True)
class Waiting:
    """A registration that is about to wait: what it is, and what it takes up."""

    registration: Registration
    origin: Origin
    submission: bytes
    ek_hash: bytes
    size: int

    @classmethod
    def for_proof(cls, registration: Registration, origin: Origin) -> "Waiting":
        """The registration, measured."""
        values = (getattr(registration, name) for name in IDENTITY)
        size = sum(len(value) for value in values if isinstance(value, bytes | str))
        return cls(
            registration,
            origin,
            submission_digest(registration),
            hashlib.sha256(registration.ek_tpm).digest(),
            _ROW_SIZE + size,
        )


# Built once: SQLAlchemy takes longer to build a statement than SQLite to execute it. Names of parameters that
# are no columns begin with an underscore.
_BY_AGENT = pending.c.agent_id == sa.bindparam("_agent_id")
_FROM_SOURCE = pending.c.source == sa.bindparam("_source")
_ALIVE = pending.c.expires_at > sa.bindparam("_now")
_SIBLINGS = (
    sa.select(
        pending.c.pending_id,
        pending.c.ek_hash,
        pending.c.submission,
        pending.c.epoch,
        pending.c.key_id,
        pending.c.salt,
        pending.c.expires_at,
        pending.c.wrong_tags,
    )
    .where(_BY_AGENT, _FROM_SOURCE)
    .order_by(pending.c.pending_id)
)
_WITH_TAG = sa.select(pending.c.pending_id).where(
    pending.c.tag_hash == sa.bindparam("_tag_hash"), _BY_AGENT, _ALIVE
)
_ANY = sa.select(pending.c.pending_id).where(_BY_AGENT, _ALIVE).limit(1)
_ROW = sa.select(pending).where(pending.c.pending_id == sa.bindparam("_pending_id"), _BY_AGENT, _ALIVE)
_BY_ID = pending.c.pending_id == sa.bindparam("_pending_id")
_EXTEND = sa.update(pending).where(_BY_ID).values(expires_at=sa.bindparam("_expires_at"))
_COUNT_WRONG_TAG = sa.update(pending).where(_BY_ID).values(wrong_tags=pending.c.wrong_tags + 1)
_DELETE_ONE = sa.delete(pending).where(_BY_ID)
_DELETE_OF_AGENT = sa.delete(pending).where(_BY_AGENT)
_KEYS = sa.select(challenge_keys).order_by(challenge_keys.c.key_id.desc())
_ROOM = sa.select(
    pending.c.pending_id,
    pending.c.network,
    pending.c.source,
    pending.c.ek_hash,
    pending.c.size,
)
# Processes that make room at the same moment must not wait for each other's rows: SQLite has one writer.
_EXPIRED = sa.select(pending.c.pending_id).where(~_ALIVE).with_for_update(skip_locked=True)
_FREE = (
    sa.select(pending.c.pending_id)
    .where(pending.c.pending_id.in_(sa.bindparam("_ids", expanding=True)))
    .with_for_update(skip_locked=True)
)
_DELETE_LOCKED = sa.delete(pending).where(pending.c.pending_id.in_(sa.bindparam("_ids", expanding=True)))
_ID_CHUNK = 500
_TOTAL = sa.select(sa.func.coalesce(sa.func.sum(pending.c.size), 0))
_LARGE_AGENTS = (
    sa.select(pending.c.agent_id)
    .group_by(pending.c.agent_id)
    .having(sa.func.sum(pending.c.size) > sa.bindparam("_per_agent"))
)


def secret_for(connection: sa.Connection, waiting: Waiting, limits: PendingLimits, now: int) -> bytes | None:
    """The secret that this registration is challenged with, from now on kept until its time is up.

    One that waits already, from the same source, keeps its secret. None when another process added the same
    one in this moment: then once more.
    """
    registration, epoch = waiting.registration, now // max(1, limits.lifetime_s // 2)
    parameters = {"_agent_id": registration.agent_id, "_source": waiting.origin.source}
    siblings = connection.execute(_SIBLINGS, parameters).all()
    keys = _keys(connection, now)
    for row in siblings:
        if row.submission == waiting.submission and row.epoch == epoch:
            key = keys.get(row.key_id)
            if row.expires_at > now and key is not None:
                until = {"_pending_id": row.pending_id, "_expires_at": now + limits.lifetime_s}
                connection.execute(_EXTEND, until)
                return derive_secret(key, row.salt, waiting.submission)
            connection.execute(_DELETE_ONE, {"_pending_id": row.pending_id})
    key = keys[max(keys)]
    salt = secrets.token_bytes(SALT_SIZE)
    secret = derive_secret(key, salt, waiting.submission)
    values = {
        **{name: getattr(registration, name) for name in IDENTITY},
        "agent_id": registration.agent_id,
        "source": waiting.origin.source,
        "network": waiting.origin.network,
        "ek_hash": waiting.ek_hash,
        "size": waiting.size,
        "expires_at": now + limits.lifetime_s,
        "submission": waiting.submission,
        "epoch": epoch,
        "key_id": key.key_id,
        "salt": salt,
        "tag_hash": tag_hash(secret, registration.agent_id),
        # Sending something else does not start the count anew.
        "wrong_tags": max((row.wrong_tags for row in siblings), default=0),
    }
    if connection.execute(_insert_on(connection.dialect.name), values).rowcount != 1:
        return None
    if len(siblings) >= limits.per_agent_and_source:
        attempts = [PendingAttempt(row.pending_id, (row.ek_hash,), 1) for row in siblings]
        _drop(connection, surplus(attempts, limits.per_agent_and_source - 1))
    return secret


@functools.cache
def _insert_on(dialect: str) -> sa.Insert:
    if dialect == "mariadb":
        return sa.insert(pending)  # one that is there is an error, after which the store begins anew
    return insert_or_conflict(dialect, pending).on_conflict_do_nothing()


def make_room(connection: sa.Connection, limits: PendingLimits, now: int) -> None:
    """Deletes what has expired, and where that is not enough what is too much."""
    _delete(connection, connection.execute(_EXPIRED, {"_now": now}).scalars().all())
    total = connection.execute(_TOTAL).scalar_one()
    if total <= min(limits.capacity, limits.per_agent):
        return
    # Somewhat more goes than must, so that it is not to be done again at once.
    if total > limits.capacity:
        rows = connection.execute(_ROOM).all()
        _drop(connection, surplus(_attempts(rows), limits.capacity - limits.capacity // 16))
    for agent_id in connection.execute(_LARGE_AGENTS, {"_per_agent": limits.per_agent}).scalars().all():
        rows = connection.execute(_ROOM.where(_BY_AGENT), {"_agent_id": agent_id}).all()
        _drop(connection, surplus(_attempts(rows), limits.per_agent - limits.per_agent // 16))


def with_tag(connection: sa.Connection, agent_id: AgentId, tag: bytes, now: int) -> int | None:
    """The registration of this agent that the tag with this hash proves."""
    parameters = {"_agent_id": agent_id, "_tag_hash": tag, "_now": now}
    found: int | None = connection.execute(_WITH_TAG, parameters).scalars().first()
    return found


def row_of(connection: sa.Connection, agent_id: AgentId, pending_id: int, now: int) -> sa.RowMapping | None:
    """All of one registration, while it waits."""
    parameters = {"_agent_id": agent_id, "_pending_id": pending_id, "_now": now}
    return connection.execute(_ROW, parameters).mappings().first()


def newest_from(
    connection: sa.Connection, agent_id: AgentId, source: str, now: int
) -> tuple[int, int] | None:
    """The newest registration of this agent from `source` that waits, and how many wrong tags came after."""
    rows = connection.execute(_SIBLINGS, {"_agent_id": agent_id, "_source": source}).all()
    alive = [row for row in rows if row.expires_at > now]
    if not alive:
        return None
    return alive[-1].pending_id, max(row.wrong_tags for row in alive)


def is_any(connection: sa.Connection, agent_id: AgentId, now: int) -> bool:
    """Whether a registration of this agent waits for its proof."""
    return connection.execute(_ANY, {"_agent_id": agent_id, "_now": now}).first() is not None


def count_wrong_tag(connection: sa.Connection, pending_id: int) -> None:
    """One more wrong tag from the source of this registration."""
    connection.execute(_COUNT_WRONG_TAG, {"_pending_id": pending_id})


def forget(connection: sa.Connection, agent_id: AgentId) -> int:
    """Deletes all registrations of this agent that wait; how many there were."""
    return connection.execute(_DELETE_OF_AGENT, {"_agent_id": agent_id}).rowcount


def _keys(connection: sa.Connection, now: int) -> Mapping[int, ChallengeKey]:
    """The keys. New challenges get the highest one, which is made where there is none of this day."""
    rows = connection.execute(_KEYS).all()
    keys = {row.key_id: ChallengeKey(row.key_id, row.secret) for row in rows}
    if rows and abs(now - rows[0].created_at) < _KEY_LIFETIME_S:
        return keys
    fresh = ChallengeKey(rows[0].key_id + 1 if rows else 1, secrets.token_bytes(KEY_SIZE))
    # Two processes at once: the second one fails, and comes back to find the first one's.
    connection.execute(
        sa.insert(challenge_keys), {"key_id": fresh.key_id, "secret": fresh.secret, "created_at": now}
    )
    # The one before still serves registrations that wait.
    connection.execute(sa.delete(challenge_keys).where(challenge_keys.c.key_id < fresh.key_id - 1))
    return {
        **{key_id: key for key_id, key in keys.items() if key_id >= fresh.key_id - 1},
        fresh.key_id: fresh,
    }


def _attempts(rows: Sequence[Any]) -> list[PendingAttempt]:
    return [PendingAttempt(row.pending_id, (row.network, row.source, row.ek_hash), row.size) for row in rows]


def _drop(connection: sa.Connection, pending_ids: frozenset[int]) -> None:
    ordered = sorted(pending_ids)
    for start in range(0, len(ordered), _ID_CHUNK):
        chosen = {"_ids": ordered[start : start + _ID_CHUNK]}
        _delete(connection, connection.execute(_FREE, chosen).scalars().all())


def _delete(connection: sa.Connection, locked: Sequence[int]) -> None:
    """Deletes what this transaction has locked; on MariaDB one statement for both would wait for others."""
    for start in range(0, len(locked), _ID_CHUNK):
        connection.execute(_DELETE_LOCKED, {"_ids": locked[start : start + _ID_CHUNK]})
