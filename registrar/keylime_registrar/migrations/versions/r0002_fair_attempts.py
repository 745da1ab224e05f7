"""Pending registrations are counted by where they come from, and their secrets derived from a key.

Those that wait at this moment go on: their tags are known by their hashes, as before.
"""

import hashlib
import ipaddress
import secrets

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"
branch_labels = None
depends_on = None

_IDENTITY = (
    "ek_tpm",
    "ekcert",
    "aik_tpm",
    "iak_tpm",
    "iak_cert",
    "idevid_tpm",
    "idevid_cert",
    "ip",
    "port",
    "mtls_cert",
)
_KEPT = ("agent_id", "tag_hash", "wrong_tags", "expires_at", *_IDENTITY)
_MOST = 10_000  # a table that strangers filled does not hold up the upgrade


def upgrade() -> None:
    before = sa.table("pending_registrations", *map(sa.column, ("pending_id", "source", *_KEPT)))
    # The youngest: those whose agents are still at it.
    query = sa.select(before).order_by(before.c.pending_id.desc()).limit(_MOST)
    waiting = [dict(row) for row in op.get_bind().execute(query).mappings()]
    op.drop_table("pending_registrations")
    after = op.create_table(
        "pending_registrations",
        sa.Column("pending_id", sa.Integer, primary_key=True),
        sa.Column("agent_id", sa.String(80), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("network", sa.String(64), nullable=False),
        sa.Column("ek_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("expires_at", sa.Integer, nullable=False),
        sa.Column("submission", sa.LargeBinary(32), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("key_id", sa.Integer, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("tag_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("wrong_tags", sa.Integer, nullable=False),
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
        sa.UniqueConstraint("agent_id", "source", "submission", "epoch", name="uq_pending_submission"),
    )
    op.create_index("ix_pending_tag_hash", "pending_registrations", ["tag_hash"])
    op.create_index(
        "ix_pending_room",
        "pending_registrations",
        ["network", "source", "ek_hash", "agent_id", "size", "expires_at"],
    )
    op.create_table(
        "challenge_keys",
        sa.Column("key_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
    )
    if waiting:
        op.bulk_insert(after, [_as_attempt(row) for row in reversed(waiting)])


def _as_attempt(row: dict[str, object]) -> dict[str, object]:
    source, network = _prefixes(str(row["source"]))
    ek = row["ek_tpm"]
    return {
        **{name: row[name] for name in _KEPT},
        "source": source,
        "network": network,
        "ek_hash": hashlib.sha256(ek if isinstance(ek, bytes) else b"").digest(),
        "size": 8192,
        # No later submission is the same: the secret of this one is not derived from any key.
        "submission": secrets.token_bytes(32),
        "epoch": 0,
        "key_id": 0,
        "salt": b"",
    }


def _prefixes(address: str) -> tuple[str, str]:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown", "unknown"
    lengths = (32, 24) if parsed.version == 4 else (64, 64)
    narrow, wide = (str(ipaddress.ip_network((address, length), strict=False)) for length in lengths)
    return narrow, wide
