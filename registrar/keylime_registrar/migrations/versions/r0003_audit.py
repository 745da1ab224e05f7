"""What was done to registrations and by whom, and the counter that its ids are drawn from."""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "registrar_events",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("token", sa.String(32), nullable=False, unique=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("agent_id", sa.String(80)),
        sa.Column("actor", sa.Text),
        sa.Column("request_id", sa.String(36)),
        sa.Column("details", sa.Text, nullable=False),
    )
    counter = op.create_table(
        "registrar_event_counter",
        sa.Column("counter", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("last", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(counter, [{"counter": 1, "last": 0}])
