"""Active and pending registrations."""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None


def _identity_columns() -> tuple[sa.Column[object], ...]:
    return (
        sa.Column("ek_tpm", sa.LargeBinary, nullable=False),
        sa.Column("ekcert", sa.LargeBinary),
        sa.Column("aik_tpm", sa.LargeBinary, nullable=False),
        sa.Column("iak_tpm", sa.LargeBinary),
        sa.Column("iak_cert", sa.LargeBinary),
        sa.Column("idevid_tpm", sa.LargeBinary),
        sa.Column("idevid_cert", sa.LargeBinary),
        sa.Column("ip", sa.String(255)),
        sa.Column("port", sa.Integer),
        sa.Column("mtls_cert", sa.Text),
        sa.Column("tag_hash", sa.LargeBinary(32), nullable=False),
    )


def upgrade() -> None:
    op.create_table(
        "registrations",
        sa.Column("agent_id", sa.String(80), primary_key=True),
        *_identity_columns(),
        sa.Column("ek_hash", sa.LargeBinary(32), nullable=False, index=True),
        sa.Column("regcount", sa.Integer, nullable=False),
        sa.Column("activated_at", sa.Integer, nullable=False),
    )
    op.create_table(
        "pending_registrations",
        sa.Column("pending_id", sa.Integer, primary_key=True),
        sa.Column("agent_id", sa.String(80), nullable=False, index=True),
        *_identity_columns(),
        sa.Column("source", sa.String(64), nullable=False, index=True),
        sa.Column("wrong_tags", sa.Integer, nullable=False),
        sa.Column("expires_at", sa.Integer, nullable=False, index=True),
    )
