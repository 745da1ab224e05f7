"""Up to which event of the history others have been told of it."""

import sqlalchemy as sa
from alembic import op

revision = "v0009"
down_revision = "v0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "event_followers",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("through", sa.BigInteger, nullable=False),
    )
