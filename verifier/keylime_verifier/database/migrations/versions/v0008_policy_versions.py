"""Former versions of policies, and agents with several runtime policies."""

import sqlalchemy as sa
from alembic import op

revision = "v0008"
down_revision = "v0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("policies", sa.Column("version", sa.Integer, nullable=False, server_default="1"))
    op.add_column("agents", sa.Column("runtime_parts", sa.Text))
    op.create_table(
        "policy_versions",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("content_hash", sa.String(64), sa.ForeignKey("policy_texts.content_hash"), nullable=False),
        sa.Column("tpm_policy", sa.Text),
        sa.Column("at", sa.BigInteger),
        sa.Column("actor", sa.Text),
        sa.Column("policy_hash", sa.String(64)),
        sa.Column("covers", sa.Integer),
    )
