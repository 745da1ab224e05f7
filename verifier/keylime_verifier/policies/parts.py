"""Agents with several runtime policies: whether a new text fits among them."""

import asyncio

import sqlalchemy as sa

from keylime.database.transactions import Database
from keylime.errors import PolicyError
from keylime.ima.policy_union import unite
from keylime_verifier.agents.policy_categories import RUNTIME
from keylime_verifier.agents.policy_parts import decode_parts
from keylime_verifier.agents.refusals import InTheWay
from keylime_verifier.database.schema import agents
from keylime_verifier.policies.references import References
from keylime_verifier.policies.runtime import compile_stored_policy
from keylime_verifier.policies.store import used_by


async def check_users(database: Database, references: References, name: str, text: str) -> None:
    """Raises InTheWay for a text that cannot hold together with others that some agent has beside `name`."""
    query = (
        sa.select(agents.c.runtime_parts)
        .where(used_by(RUNTIME, name), agents.c.runtime_parts.is_not(None))
        .distinct()
    )
    rows = await database.read(
        "find who uses a policy", lambda connection: connection.execute(query).scalars().all()
    )
    together = {tuple(part.name for part in decode_parts(row)) for row in rows}
    for names in sorted(one for one in together if name in one):
        try:
            new = await asyncio.to_thread(compile_stored_policy, text)
            others = await references.compiled_parts([one for one in names if one != name])
            parts = dict(others) | {name: new}
            await asyncio.to_thread(unite, [parts[one] for one in names])
        except PolicyError as error:
            raise InTheWay(
                f"Runtime policy {name} holds together with others ({', '.join(names)}) for some agents, and "
                f"this text cannot: {error}"
            ) from error
