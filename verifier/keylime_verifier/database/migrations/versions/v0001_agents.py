"""Agents, their policies, and the outbox of revocations."""

import sqlalchemy as sa
from alembic import op

revision = "v0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "policy_texts",
        sa.Column("content_hash", sa.String(64), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_table(
        "policies",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column(
            "content_hash",
            sa.String(64),
            sa.ForeignKey("policy_texts.content_hash"),
            nullable=False,
            index=True,
        ),
        sa.Column("tpm_policy", sa.Text),
    )
    op.create_table(
        "agents",
        sa.Column("agent_id", sa.String(80), primary_key=True),
        sa.Column("incarnation", sa.String(32), nullable=False),
        sa.Column("ip", sa.String(255), nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("mtls_cert", sa.Text),
        sa.Column("ak_tpm", sa.Text, nullable=False),
        sa.Column("supported_version", sa.String(16), nullable=False),
        sa.Column("verifier_id", sa.String(100), nullable=False, index=True),
        sa.Column("verifier_ip", sa.String(255)),
        sa.Column("verifier_port", sa.Integer),
        sa.Column("v", sa.Text),
        sa.Column("revocation_key", sa.Text, nullable=False),
        sa.Column("meta_data", sa.Text, nullable=False),
        sa.Column("tpm_policy", sa.Text, nullable=False),
        sa.Column("runtime_policy", sa.String(255), nullable=False),
        sa.Column("measured_boot_policy", sa.String(255)),
        sa.Column("ima_sign_verification_keys", sa.Text, nullable=False),
        sa.Column("accept_tpm_hash_algs", sa.Text, nullable=False),
        sa.Column("accept_tpm_encryption_algs", sa.Text, nullable=False),
        sa.Column("accept_tpm_signing_algs", sa.Text, nullable=False),
        sa.Column("operational_state", sa.Integer, nullable=False),
        sa.Column("severity_level", sa.Integer),
        sa.Column("last_event_id", sa.String(255)),
        sa.Column("last_findings", sa.Text),
        sa.Column("attestation_count", sa.Integer, nullable=False),
        sa.Column("last_received_quote", sa.Integer, nullable=False),
        sa.Column("last_successful_attestation", sa.Integer, nullable=False),
        sa.Column("unreachable_since", sa.Integer),
        sa.Column("hash_alg", sa.String(16), nullable=False),
        sa.Column("enc_alg", sa.String(16), nullable=False),
        sa.Column("sign_alg", sa.String(16), nullable=False),
        sa.Column("v_delivered_to", sa.Text),
        sa.Column("checkpoint", sa.Text),
    )
    op.create_table(
        "revocations",
        sa.Column("revocation_id", sa.String(32), primary_key=True),
        sa.Column("agent_id", sa.String(80), nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("signature", sa.Text, nullable=False),
    )
    op.create_table(
        "deliveries",
        sa.Column(
            "revocation_id",
            sa.String(32),
            sa.ForeignKey("revocations.revocation_id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("channel", sa.String(16), primary_key=True),
        sa.Column("target", sa.String(255), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("last_error", sa.Text),
        sa.Column("updated_at", sa.Integer, nullable=False),
    )
