"""Policy texts in the verifier's database, each kept once, found by kind and name."""

import hashlib

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keylime_verifier.schema import policies, policy_texts
from keylime_verifier.transactions import read

RUNTIME = "runtime"
MEASURED_BOOT = "measured_boot"


class PolicyStore:
    """Reads policies; they are written with the agents that bring them, or under names of their own."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def content_hash(self, kind: str, name: str) -> str | None:
        """The SHA-256 (hex) of the policy `name` of `kind`, which names this version of it, or None."""
        query = sa.select(policies.c.content_hash).where(policies.c.kind == kind, policies.c.name == name)
        async with read(self._engine, "find a policy") as connection:
            found: str | None = (await connection.execute(query)).scalar()
        return found

    async def content_hashes(self, kind: str) -> dict[str, str]:
        """The content hashes of all policies of `kind`, by name."""
        query = sa.select(policies.c.name, policies.c.content_hash).where(policies.c.kind == kind)
        async with read(self._engine, "list policies") as connection:
            return {row.name: row.content_hash for row in await connection.execute(query)}

    async def text(self, content_hash: str) -> str | None:
        """The policy text with this hash, or None."""
        query = sa.select(policy_texts.c.text).where(policy_texts.c.content_hash == content_hash)
        async with read(self._engine, "read a policy") as connection:
            found: str | None = (await connection.execute(query)).scalar()
        return found


async def put_policy(
    connection: AsyncConnection, kind: str, name: str, text: str, tpm_policy: str | None = None
) -> None:
    """Stores a new policy. Raises sqlalchemy's IntegrityError when the name is taken."""
    content_hash = hashlib.sha256(text.encode()).hexdigest()
    known = await connection.execute(
        sa.select(policy_texts.c.content_hash).where(policy_texts.c.content_hash == content_hash)
    )
    if known.first() is None:
        await connection.execute(sa.insert(policy_texts).values(content_hash=content_hash, text=text))
    await connection.execute(
        sa.insert(policies).values(kind=kind, name=name, content_hash=content_hash, tpm_policy=tpm_policy)
    )


async def delete_policy(connection: AsyncConnection, kind: str, name: str) -> bool:
    """Removes a policy, and its text when no other name has the same. False when it is not there."""
    where = (policies.c.kind == kind, policies.c.name == name)
    content_hash = (await connection.execute(sa.select(policies.c.content_hash).where(*where))).scalar()
    if content_hash is None:
        return False
    await connection.execute(sa.delete(policies).where(*where))
    still_used = sa.exists().where(policies.c.content_hash == content_hash)
    await connection.execute(
        sa.delete(policy_texts).where(policy_texts.c.content_hash == content_hash, ~still_used)
    )
    return True
