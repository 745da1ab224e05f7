"""Agents are told revocations from a backlog: a number for each agent in place of a row for each pair."""

import sqlalchemy as sa
from alembic import op

revision = "v0003"
down_revision = "v0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # What is stored has its rows of `deliveries` already and is carried by them: its number is 0.
    op.add_column("revocations", sa.Column("number", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index("ix_revocations_number", "revocations", ["number"])
    op.create_table(
        "recipients",
        sa.Column("agent_id", sa.String(80), primary_key=True),
        sa.Column("through", sa.BigInteger, nullable=False),
    )
    op.execute(
        "INSERT INTO recipients (agent_id, through) SELECT agents.agent_id, change_counters.changes "
        "FROM agents CROSS JOIN change_counters WHERE change_counters.topic = 'revocations'"
    )
