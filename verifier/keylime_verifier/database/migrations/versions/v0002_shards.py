"""Agents in shards, which the verifiers of a database divide among them; counters that tell of changes."""

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "v0002"
down_revision = "v0001"
branch_labels = None
depends_on = None

_POLLED_STATES = (1, 3, 4, 5, 6)  # of revision v0001, which knew it from the state alone
_TOPICS = ("agents", "shards", "revocations")


def upgrade() -> None:
    # Existing rows get their values below; the defaults only let the columns be added to them.
    op.add_column("agents", sa.Column("shard", sa.Integer, nullable=False, server_default="0"))
    op.add_column("agents", sa.Column("is_polled", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("revocations", sa.Column("shard", sa.Integer, nullable=False, server_default="0"))
    op.add_column(
        "revocations", sa.Column("verifier_id", sa.String(100), nullable=False, server_default="default")
    )
    op.create_index("ix_agents_verifier_id_shard", "agents", ["verifier_id", "shard"])
    op.create_table(
        "members",
        sa.Column("member_id", sa.String(32), primary_key=True),
        sa.Column("verifier_id", sa.String(100), nullable=False, index=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("process", sa.String(255), nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("broker", sa.String(255)),
    )
    op.create_table(
        "shards",
        sa.Column("verifier_id", sa.String(100), primary_key=True),
        sa.Column("shard", sa.Integer, primary_key=True),
        sa.Column("owner", sa.String(32)),
        sa.Column("epoch", sa.Integer, nullable=False),
    )
    counters = op.create_table(
        "change_counters",
        sa.Column("topic", sa.String(16), primary_key=True),
        sa.Column("changes", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(counters, [{"topic": topic, "changes": 0} for topic in _TOPICS])
    _fill(op.get_bind())


def _fill(connection: sa.Connection) -> None:
    agents = sa.table(
        "agents",
        *(sa.column(name) for name in ("agent_id", "verifier_id", "operational_state", "shard", "is_polled")),
    )
    revocations = sa.table("revocations", *(sa.column(name) for name in ("agent_id", "verifier_id", "shard")))
    connection.execute(sa.update(agents).values(is_polled=agents.c.operational_state.in_(_POLLED_STATES)))
    watched_by = {row.agent_id: row.verifier_id for row in connection.execute(sa.select(agents))}
    for agent_id in watched_by:
        connection.execute(
            sa.update(agents).where(agents.c.agent_id == agent_id).values(shard=_shard_of(agent_id))
        )
    # Agents may be gone while their revocations are still on the way: any verifier may carry those.
    somebody = min(watched_by.values(), default="default")
    for agent_id in set(connection.execute(sa.select(revocations.c.agent_id)).scalars()):
        connection.execute(
            sa.update(revocations)
            .where(revocations.c.agent_id == agent_id)
            .values(shard=_shard_of(agent_id), verifier_id=watched_by.get(agent_id, somebody))
        )


def _shard_of(agent_id: str) -> int:
    return hashlib.sha256(agent_id.encode()).digest()[0]
