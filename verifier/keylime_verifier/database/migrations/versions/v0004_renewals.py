"""Leases by counters that others watch; agents that are recalled, because a verdict about them did not count.

`expires_at` stays for verifiers of the release before, which may still run on the same database.
"""

import sqlalchemy as sa
from alembic import op

revision = "v0004"
down_revision = "v0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("members", sa.Column("renewals", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("members", sa.Column("lease", sa.Double))
    op.add_column("agents", sa.Column("recalls", sa.Integer, nullable=False, server_default="0"))
