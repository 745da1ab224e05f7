"""Policy texts in the verifier's database, each kept once, found by kind and name."""

from collections.abc import Collection

import msgspec
import sqlalchemy as sa

from keylime.database.transactions import Database
from keylime.ima.runtime_policy import PolicyHash
from keylime_verifier.agents.policy_categories import (
    MEASURED_BOOT,
    RUNTIME,
    PolicyHashes,
    TextHash,
    hash_of_text,
)
from keylime_verifier.agents.records import Enrolment
from keylime_verifier.database.schema import agents, policies, policy_texts, policy_versions

_HASHES = sa.select(policies.c.kind, policies.c.name, policies.c.content_hash).where(
    sa.or_(
        sa.and_(policies.c.kind == RUNTIME, policies.c.name.in_(sa.bindparam("runtime", expanding=True))),
        sa.and_(policies.c.kind == MEASURED_BOOT, policies.c.name == sa.bindparam("boot")),
    )
)
_REMEMBERED = 1000  # policies of which it is known what they cover


class PolicyStore:
    """Reads policies; they are written with the agents that bring them, or under names of their own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._covered: dict[tuple[str, TextHash], frozenset[PolicyHash]] = {}

    async def text_hash(self, kind: str, name: str) -> TextHash | None:
        """That of the current text of the policy `name` of `kind`, or None."""
        query = sa.select(policies.c.content_hash).where(policies.c.kind == kind, policies.c.name == name)
        return await self._database.read(
            "find a policy", lambda connection: connection.execute(query).scalar()
        )

    async def text_hashes(self, kind: str) -> dict[str, TextHash]:
        """Those of the current texts of all policies of `kind`, by name."""
        query = sa.select(policies.c.name, policies.c.content_hash).where(policies.c.kind == kind)

        def work(connection: sa.Connection) -> dict[str, TextHash]:
            return {row.name: row.content_hash for row in connection.execute(query)}

        return await self._database.read("list policies", work)

    async def numbers(self, kind: str) -> dict[str, int]:
        """The numbers of the current versions of all policies of `kind`, by name."""
        query = sa.select(policies.c.name, policies.c.version).where(policies.c.kind == kind)

        def work(connection: sa.Connection) -> dict[str, int]:
            return {row.name: row.version for row in connection.execute(query)}

        return await self._database.read("list policies", work)

    async def number(self, kind: str, name: str) -> int | None:
        """The number of the current version of a policy, or None."""
        query = sa.select(policies.c.version).where(policies.c.kind == kind, policies.c.name == name)
        return await self._database.read(
            "find a policy", lambda connection: connection.execute(query).scalar()
        )

    async def covered(self, name: str, text_hash: TextHash) -> frozenset[PolicyHash]:
        """Former versions of a runtime policy of which its current text accepts everything.

        Nothing if the text is not the current one.
        """
        known = self._covered.get((name, text_hash))
        if known is None:
            former = policy_versions.alias("former")
            query = (
                sa.select(former.c.policy_hash)
                .select_from(policies)
                .join(
                    policy_versions,
                    sa.and_(
                        policy_versions.c.kind == policies.c.kind,
                        policy_versions.c.name == policies.c.name,
                        policy_versions.c.version == policies.c.version,
                    ),
                )
                .join(former, sa.and_(former.c.kind == policies.c.kind, former.c.name == policies.c.name))
                .where(
                    policies.c.kind == RUNTIME,
                    policies.c.name == name,
                    policies.c.content_hash == text_hash,
                    former.c.version >= policy_versions.c.covers,
                    former.c.version < policies.c.version,
                    former.c.policy_hash.is_not(None),
                )
            )
            rows = await self._database.read(
                "read the versions of a policy", lambda connection: connection.execute(query).scalars().all()
            )
            if len(self._covered) > _REMEMBERED:
                self._covered.clear()
            known = self._covered[name, text_hash] = frozenset(rows)
        return known

    async def text(self, text_hash: TextHash) -> str | None:
        """The policy text with this hash, or None."""
        query = sa.select(policy_texts.c.text).where(policy_texts.c.content_hash == text_hash)
        return await self._database.read(
            "read a policy", lambda connection: connection.execute(query).scalar()
        )


def read_hashes(connection: sa.Connection, enrolment: Enrolment) -> PolicyHashes:
    """Those of the current texts of an agent's policies."""
    named = {"runtime": [part.name for part in enrolment.parts], "boot": enrolment.measured_boot_policy}
    return {(row.kind, row.name): row.content_hash for row in connection.execute(_HASHES, named)}


def used_by(kind: str, name: str) -> sa.ColumnElement[bool]:
    """Agents that use the policy `name`, and few others: JSON has case, which databases may not see."""
    if kind != RUNTIME:
        return agents.c.measured_boot_policy == name
    among_others = agents.c.runtime_parts.contains(f'"name":{_in_json(name)}', autoescape=True)
    return sa.or_(agents.c.runtime_policy == name, among_others)


def _in_json(text: str) -> str:
    return msgspec.json.encode(text).decode()


def put_policy(
    connection: sa.Connection,
    kind: str,
    name: str,
    text: str,
    tpm_policy: str | None = None,
    *,
    version: int = 1,
) -> None:
    """Stores a new policy. Raises sqlalchemy's IntegrityError when the name is taken."""
    text_hash = put_text(connection, text)
    connection.execute(
        sa.insert(policies).values(
            kind=kind, name=name, content_hash=text_hash, tpm_policy=tpm_policy, version=version
        )
    )


def put_text(connection: sa.Connection, text: str) -> TextHash:
    """The hash under which `text` is stored from now on, if it was not already."""
    text_hash = hash_of_text(text)
    known = connection.execute(
        sa.select(policy_texts.c.content_hash).where(policy_texts.c.content_hash == text_hash)
    )
    if known.first() is None:
        connection.execute(sa.insert(policy_texts).values(content_hash=text_hash, text=text))
    return text_hash


def delete_policy(connection: sa.Connection, kind: str, name: str) -> bool:
    """Removes a policy with all its versions, and texts that no other has. False when it is not there."""
    where = (policies.c.kind == kind, policies.c.name == name)
    text_hash = connection.execute(sa.select(policies.c.content_hash).where(*where)).scalar()
    if text_hash is None:
        return False
    connection.execute(sa.delete(policies).where(*where))
    versions = (policy_versions.c.kind == kind, policy_versions.c.name == name)
    hashes = set(connection.execute(sa.select(policy_versions.c.content_hash).where(*versions)).scalars())
    connection.execute(sa.delete(policy_versions).where(*versions))
    forget_texts(connection, hashes | {text_hash})
    return True


def forget_texts(connection: sa.Connection, hashes: Collection[TextHash]) -> None:
    """Removes those of the texts that no policy has or had."""
    text = policy_texts.c.content_hash
    connection.execute(
        sa.delete(policy_texts).where(
            text.in_(hashes),
            ~sa.exists().where(policies.c.content_hash == text),
            ~sa.exists().where(policy_versions.c.content_hash == text),
        )
    )
