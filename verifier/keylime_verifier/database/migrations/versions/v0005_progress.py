"""What a pass changes has a narrow table of its own; what is wide is written when it changes."""

import sqlalchemy as sa
from alembic import op

revision = "v0005"
down_revision = "v0004"
branch_labels = None
depends_on = None

_MOVED = (
    "incarnation",
    "recalls",
    "attestation_count",
    "last_received_quote",
    "last_successful_attestation",
)


def upgrade() -> None:
    op.create_table(
        "progress",
        sa.Column("agent_id", sa.String(80), primary_key=True),
        sa.Column("incarnation", sa.String(32), nullable=False),
        sa.Column("recalls", sa.Integer, nullable=False),
        sa.Column("attestation_count", sa.Integer, nullable=False),
        sa.Column("last_received_quote", sa.Integer, nullable=False),
        sa.Column("last_successful_attestation", sa.Integer, nullable=False),
        sa.Column("tpm_clock", sa.BigInteger),
        sa.Column("next_entry", sa.Integer),
        sa.Column("ima_pcr", sa.LargeBinary),
        sa.Column("matched", sa.Integer),
        sa.Column("length", sa.Integer),
        sa.Column("incomplete_rounds", sa.Integer),
        # Room on each page for the next version of its rows, so that no index changes with them.
        postgresql_with={"fillfactor": "50"},
    )
    names = ", ".join(_MOVED)
    # Where polling stood follows from the checkpoint until the next pass.
    op.execute(f"INSERT INTO progress (agent_id, {names}) SELECT agent_id, {names} FROM agents")  # noqa: S608
    for name in _MOVED:
        op.drop_column("agents", name)
