"""The registrar's tables, as its queries see them; the migrations make them."""

from pathlib import Path

import sqlalchemy as sa

from keylime.database.migrate import Schema

SCHEMA = Schema(Path(__file__).parent / "migrations", "keylime_registrar_schema", "keylime_registrar")

metadata = sa.MetaData()


def _identity_columns() -> tuple[sa.Column[object], ...]:
    """What an agent says about itself; TPM structures and certificates as their bytes."""
    return (
        sa.Column("ek_tpm", sa.LargeBinary, nullable=False),  # TPM2B_PUBLIC
        sa.Column("ekcert", sa.LargeBinary),  # DER
        sa.Column("aik_tpm", sa.LargeBinary, nullable=False),  # TPM2B_PUBLIC
        sa.Column("iak_tpm", sa.LargeBinary),
        sa.Column("iak_cert", sa.LargeBinary),
        sa.Column("idevid_tpm", sa.LargeBinary),
        sa.Column("idevid_cert", sa.LargeBinary),
        sa.Column("ip", sa.String(255)),
        sa.Column("port", sa.Integer),
        sa.Column("mtls_cert", sa.Text),  # PEM, or "disabled"
        # SHA-256 of the activation tag. Only the hash is kept: who reads the table learns no tag.
        sa.Column("tag_hash", sa.LargeBinary, nullable=False),
    )


# Agents that have proven to hold their AK in the TPM of their EK.
registrations = sa.Table(
    "registrations",
    metadata,
    sa.Column("agent_id", sa.String(80), primary_key=True),
    *_identity_columns(),
    sa.Column("ek_hash", sa.LargeBinary, nullable=False, index=True),
    sa.Column("regcount", sa.Integer, nullable=False),
    sa.Column("activated_at", sa.Integer, nullable=False),  # epoch seconds
)

# Registrations whose proof is outstanding. They change nothing until it comes, and expire without it.
pending_registrations = sa.Table(
    "pending_registrations",
    metadata,
    sa.Column("pending_id", sa.Integer, primary_key=True),
    sa.Column("agent_id", sa.String(80), nullable=False, index=True),
    *_identity_columns(),
    sa.Column("source", sa.String(64), nullable=False, index=True),  # the IP address it came from
    sa.Column("wrong_tags", sa.Integer, nullable=False),
    sa.Column("expires_at", sa.Integer, nullable=False, index=True),  # epoch seconds
)
