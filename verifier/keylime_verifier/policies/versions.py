"""Versions of named policies: the current one and those before it, as many as are to be kept."""

from dataclasses import dataclass

import sqlalchemy as sa

from keylime.database.clock import database_time
from keylime.ima.runtime_policy import PolicyHash
from keylime.messages.verification import PolicyVersion
from keylime_verifier.agents.events import Actor
from keylime_verifier.agents.policy_categories import TextHash
from keylime_verifier.database.schema import policies, policy_texts, policy_versions
from keylime_verifier.policies.store import forget_texts, put_text


@dataclass(frozen=True, slots=True)
class Current:
    """What is stored under a name."""

    version: int
    text_hash: TextHash
    text: str
    tpm_policy: str | None


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What is to be; `covered` names a text of which all is accepted."""

    text: str
    tpm_policy: str | None
    policy_hash: PolicyHash | None
    covered: TextHash | None = None


def current(connection: sa.Connection, kind: str, name: str) -> Current | None:
    """What is stored under `name`, if anything."""
    row = connection.execute(
        sa.select(policies, policy_texts.c.text)
        .join(policy_texts, policy_texts.c.content_hash == policies.c.content_hash)
        .where(policies.c.kind == kind, policies.c.name == name)
    ).first()
    return None if row is None else Current(row.version, row.content_hash, row.text, row.tpm_policy)


def former(connection: sa.Connection, kind: str, name: str, version: int) -> Current | None:
    """A version that is kept, if it is."""
    row = connection.execute(
        sa.select(policy_versions, policy_texts.c.text)
        .join(policy_texts, policy_texts.c.content_hash == policy_versions.c.content_hash)
        .where(*_named(kind, name), policy_versions.c.version == version)
    ).first()
    return None if row is None else Current(row.version, row.content_hash, row.text, row.tpm_policy)


def note_first(connection: sa.Connection, kind: str, name: str, new: NewVersion, by: Actor) -> None:
    """Notes who has stored a policy, which is there already."""
    stored = current(connection, kind, name)
    if stored is not None:
        _insert(connection, kind, name, stored.version, stored.text_hash, new, None, by)


def put_version(
    connection: sa.Connection, kind: str, name: str, before: Current, new: NewVersion, by: Actor, *, kept: int
) -> int:
    """Stores a new version in the place of the current one, which is `before`; its number.

    The last `kept` versions stay. What says the same as before is no new version.
    """
    text_hash = put_text(connection, new.text)
    if text_hash == before.text_hash and new.tpm_policy == before.tpm_policy:
        return before.version
    earlier = connection.execute(
        sa.select(policy_versions.c.covers).where(
            *_named(kind, name), policy_versions.c.version == before.version
        )
    ).first()
    if earlier is None:  # it came with an agent, or from an earlier release
        unknown = NewVersion(before.text, before.tpm_policy, None)
        _insert(connection, kind, name, before.version, before.text_hash, unknown, None, None)
    covers = None
    if new.covered == before.text_hash:
        covers = before.version if earlier is None or earlier.covers is None else earlier.covers
    version = before.version + 1
    _insert(connection, kind, name, version, text_hash, new, covers, by)
    connection.execute(
        sa.update(policies)
        .where(policies.c.kind == kind, policies.c.name == name)
        .values(content_hash=text_hash, tpm_policy=new.tpm_policy, version=version)
    )
    _forget(connection, kind, name, version - kept)
    return version


def list_versions(connection: sa.Connection, kind: str, name: str) -> list[PolicyVersion]:
    """The versions that are kept, the newest first; nothing when there is no such policy."""
    stored = current(connection, kind, name)
    if stored is None:
        return []
    rows = connection.execute(
        sa.select(policy_versions).where(*_named(kind, name)).order_by(policy_versions.c.version.desc())
    ).all()
    if not rows:
        return [PolicyVersion(stored.version, stored.text_hash, None, None, is_current=True)]
    return [
        PolicyVersion(
            row.version, row.content_hash, row.at, row.actor, is_current=row.version == stored.version
        )
        for row in rows
    ]


def _insert(
    connection: sa.Connection,
    kind: str,
    name: str,
    version: int,
    text_hash: TextHash,
    new: NewVersion,
    covers: int | None,
    by: Actor | None,
) -> None:
    now = None if by is None else int(connection.execute(sa.select(database_time())).scalar_one())
    connection.execute(
        sa.insert(policy_versions).values(
            kind=kind,
            name=name,
            version=version,
            content_hash=text_hash,
            tpm_policy=new.tpm_policy,
            at=now,
            actor=None if by is None else by.certificate,
            policy_hash=new.policy_hash,
            covers=covers,
        )
    )


def _forget(connection: sa.Connection, kind: str, name: str, last: int) -> None:
    old = (*_named(kind, name), policy_versions.c.version <= last)
    hashes = set(connection.execute(sa.select(policy_versions.c.content_hash).where(*old)).scalars())
    if hashes:
        connection.execute(sa.delete(policy_versions).where(*old))
        forget_texts(connection, hashes)


def _named(kind: str, name: str) -> tuple[sa.ColumnElement[bool], ...]:
    return policy_versions.c.kind == kind, policy_versions.c.name == name
