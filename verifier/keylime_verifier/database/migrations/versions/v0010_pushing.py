"""Agents that attest by themselves: how they stand, their sessions, their attestations."""

import sqlalchemy as sa
from alembic import op

revision = "v0010"
down_revision = "v0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "agents",
        sa.Column("is_pushing", sa.Boolean, nullable=False, server_default=sa.sql.expression.false()),
    )
    op.create_table(
        "pushing",
        sa.Column("agent_id", sa.String(80), primary_key=True),
        sa.Column("next_number", sa.Integer, nullable=False),
        sa.Column("judged", sa.Integer),
        sa.Column("deadline", sa.BigInteger),
    )
    op.create_table(
        "push_attestations",
        sa.Column("agent_id", sa.String(80), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("generation", sa.String(32), nullable=False),
        sa.Column("stage", sa.String(24), nullable=False),
        sa.Column("evaluation", sa.String(8), nullable=False),
        sa.Column("failure_reason", sa.String(24)),
        sa.Column("boot_time", sa.Double, nullable=False),
        sa.Column("received_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("evidence_at", sa.Double),
        sa.Column("completed_at", sa.Double),
        sa.Column("is_kept", sa.Boolean, nullable=False),
        sa.Column("items", sa.Text, nullable=False),
    )
    op.create_index("ix_push_attestations_received_at", "push_attestations", ["received_at"])
    op.create_table(
        "push_sessions",
        sa.Column("session_id", sa.String(36), primary_key=True),
        sa.Column("agent_id", sa.String(80), nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("challenge", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("network", sa.String(64), nullable=False),
        sa.Column("key_hash", sa.String(64)),
        sa.Column("token_salt", sa.String(32)),
        sa.Column("token_hash", sa.String(64)),
        sa.Column("token_expires_at", sa.Double),
    )
    op.create_index("ix_push_sessions_agent_id", "push_sessions", ["agent_id", "state"])
    op.create_index("ix_push_sessions_address", "push_sessions", ["address", "created_at"])
    op.create_index("ix_push_sessions_created_at", "push_sessions", ["created_at"])
