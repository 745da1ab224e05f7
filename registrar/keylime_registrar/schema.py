"""The registrar's tables, as its queries see them; the migrations make them."""

from pathlib import Path

import sqlalchemy as sa

from keylime.database.schema import Schema

metadata = sa.MetaData()

SCHEMA = Schema(
    Path(__file__).parent / "migrations", "keylime_registrar_schema", "keylime_registrar", metadata
)


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
    )


def _tag_hash() -> sa.Column[bytes]:
    """SHA-256 of the activation tag. Only the hash is kept: who reads the table learns no tag."""
    return sa.Column("tag_hash", sa.LargeBinary(32), nullable=False)


# Agents that have proven to hold their AK in the TPM of their EK.
registrations = sa.Table(
    "registrations",
    metadata,
    sa.Column("agent_id", sa.String(80), primary_key=True),
    *_identity_columns(),
    _tag_hash(),
    sa.Column("ek_hash", sa.LargeBinary(32), nullable=False, index=True),
    sa.Column("regcount", sa.Integer, nullable=False),
    sa.Column("activated_at", sa.Integer, nullable=False),  # epoch seconds
)

# Registrations whose proof is outstanding. They change nothing until it comes, and expire without it. What is
# looked at for all of them stands before what fills pages.
pending_registrations = sa.Table(
    "pending_registrations",
    metadata,
    sa.Column("pending_id", sa.Integer, primary_key=True),  # rises with time
    sa.Column("agent_id", sa.String(80), nullable=False),
    sa.Column("source", sa.String(64), nullable=False),  # the narrowest prefix of the address it came from
    sa.Column("network", sa.String(64), nullable=False),  # the widest
    sa.Column("ek_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("size", sa.Integer, nullable=False),  # bytes
    sa.Column("expires_at", sa.Integer, nullable=False),  # epoch seconds
    sa.Column("submission", sa.LargeBinary(32), nullable=False),  # SHA-256 of all that the agent says
    # A submission that comes again within one epoch is the same registration, with the same secret.
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("key_id", sa.Integer, nullable=False),  # of the key that the secret is derived from
    sa.Column("salt", sa.LargeBinary, nullable=False),
    _tag_hash(),
    sa.Column("wrong_tags", sa.Integer, nullable=False),
    *_identity_columns(),
    sa.UniqueConstraint("agent_id", "source", "submission", "epoch", name="uq_pending_submission"),
    sa.Index("ix_pending_tag_hash", "tag_hash"),
    # All that the search for room reads, so that it reads nothing else.
    sa.Index("ix_pending_room", "network", "source", "ek_hash", "agent_id", "size", "expires_at"),
)

# The secrets of challenges are derived from these, by all registrars that share the database.
challenge_keys = sa.Table(
    "challenge_keys",
    metadata,
    sa.Column("key_id", sa.Integer, primary_key=True, autoincrement=False),  # the highest one is in use
    sa.Column("secret", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Integer, nullable=False),  # epoch seconds
)

# What was done to registrations, and what was refused; see `audit`. A verifier may have its own in the same
# database.
events = sa.Table(
    "registrar_events",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("token", sa.String(32), nullable=False, unique=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("agent_id", sa.String(80)),
    sa.Column("actor", sa.Text),
    sa.Column("request_id", sa.String(36)),
    sa.Column("details", sa.Text, nullable=False),
)

event_counter = sa.Table(
    "registrar_event_counter",
    metadata,
    sa.Column("counter", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("last", sa.BigInteger, nullable=False),
)
