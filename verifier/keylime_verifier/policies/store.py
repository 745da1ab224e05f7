"""Policy texts in the verifier's database, each kept once, found by kind and name."""

import hashlib
from collections.abc import Collection

import msgspec
import sqlalchemy as sa

from keylime.database.transactions import Database
from keylime_verifier.agents.policy_categories import RUNTIME
from keylime_verifier.database.schema import agents, policies, policy_texts, policy_versions

_REMEMBERED = 1000  # policies of which it is known what they cover


class PolicyStore:
    """Reads policies; they are written with the agents that bring them, or under names of their own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._covered: dict[tuple[str, str], frozenset[str]] = {}

    async def content_hash(self, kind: str, name: str) -> str | None:
        """The SHA-256 (hex) of the policy `name` of `kind`, which names this version of it, or None."""
        query = sa.select(policies.c.content_hash).where(policies.c.kind == kind, policies.c.name == name)
        return await self._database.read(
            "find a policy", lambda connection: connection.execute(query).scalar()
        )

    async def content_hashes(self, kind: str) -> dict[str, str]:
        """The content hashes of all policies of `kind`, by name."""
        query = sa.select(policies.c.name, policies.c.content_hash).where(policies.c.kind == kind)

        def work(connection: sa.Connection) -> dict[str, str]:
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

    async def covered(self, name: str, content_hash: str) -> frozenset[str]:
        """Former versions of a runtime policy of which its current text accepts everything.

        Their content hashes, as `RuntimePolicy` has them; nothing if the text is not the current one.
        """
        known = self._covered.get((name, content_hash))
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
                    policies.c.content_hash == content_hash,
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
            known = self._covered[name, content_hash] = frozenset(rows)
        return known

    async def text(self, content_hash: str) -> str | None:
        """The policy text with this hash, or None."""
        query = sa.select(policy_texts.c.text).where(policy_texts.c.content_hash == content_hash)
        return await self._database.read(
            "read a policy", lambda connection: connection.execute(query).scalar()
        )


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
    content_hash = put_text(connection, text)
    connection.execute(
        sa.insert(policies).values(
            kind=kind, name=name, content_hash=content_hash, tpm_policy=tpm_policy, version=version
        )
    )


def put_text(connection: sa.Connection, text: str) -> str:
    """The hash under which `text` is stored from now on, if it was not already."""
    content_hash = hashlib.sha256(text.encode()).hexdigest()
    known = connection.execute(
        sa.select(policy_texts.c.content_hash).where(policy_texts.c.content_hash == content_hash)
    )
    if known.first() is None:
        connection.execute(sa.insert(policy_texts).values(content_hash=content_hash, text=text))
    return content_hash


def delete_policy(connection: sa.Connection, kind: str, name: str) -> bool:
    """Removes a policy with all its versions, and texts that no other has. False when it is not there."""
    where = (policies.c.kind == kind, policies.c.name == name)
    content_hash = connection.execute(sa.select(policies.c.content_hash).where(*where)).scalar()
    if content_hash is None:
        return False
    connection.execute(sa.delete(policies).where(*where))
    versions = (policy_versions.c.kind == kind, policy_versions.c.name == name)
    hashes = set(connection.execute(sa.select(policy_versions.c.content_hash).where(*versions)).scalars())
    connection.execute(sa.delete(policy_versions).where(*versions))
    forget_texts(connection, hashes | {content_hash})
    return True


def forget_texts(connection: sa.Connection, hashes: Collection[str]) -> None:
    """Removes those of the texts that no policy has or had."""
    text = policy_texts.c.content_hash
    connection.execute(
        sa.delete(policy_texts).where(
            text.in_(hashes),
            ~sa.exists().where(policies.c.content_hash == text),
            ~sa.exists().where(policy_versions.c.content_hash == text),
        )
    )
