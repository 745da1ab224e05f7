"""The verifier's tables. Migrations make them; this is what the queries are written against."""

import sqlalchemy as sa

metadata = sa.MetaData()

# A policy text is stored once, whatever number of agents use it, under the SHA-256 of its bytes.
policy_texts = sa.Table(
    "policy_texts",
    metadata,
    sa.Column("content_hash", sa.String(64), primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
)

# `kind` is "runtime" or "measured_boot". A policy given with an agent has the agent's id as its name.
policies = sa.Table(
    "policies",
    metadata,
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("content_hash", sa.ForeignKey("policy_texts.content_hash"), nullable=False),
    sa.Column("tpm_policy", sa.Text),
)

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("agent_id", sa.String(80), primary_key=True),
    sa.Column(
        "incarnation", sa.String(32), nullable=False
    ),  # new at add, stop and reactivate: stale writes miss
    sa.Column("ip", sa.String(255), nullable=False),
    sa.Column("port", sa.Integer, nullable=False),
    sa.Column("mtls_cert", sa.Text),
    sa.Column("ak_tpm", sa.Text, nullable=False),
    sa.Column("supported_version", sa.String(16), nullable=False),
    sa.Column("verifier_id", sa.String(100), nullable=False),
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
    sa.Column("shard", sa.Integer, nullable=False),  # of the agent's id, see `ownership`
    sa.Column("is_polled", sa.Boolean, nullable=False),  # false after a final verdict or a stop
)

# The verifier processes that share this database. `expires_at` is in seconds since the epoch by the clock of
# the database; `process` tells others on the same machine whether it still runs; `broker` names the ZeroMQ
# broker in it.
members = sa.Table(
    "members",
    metadata,
    sa.Column("member_id", sa.String(32), primary_key=True),
    sa.Column("verifier_id", sa.String(100), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("process", sa.String(255), nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("broker", sa.String(255)),
)

# Who polls the agents of a shard. Every change of owner begins a new epoch; writes of an old one are refused.
shards = sa.Table(
    "shards",
    metadata,
    sa.Column("verifier_id", sa.String(100), primary_key=True),
    sa.Column("shard", sa.Integer, primary_key=True),
    sa.Column("owner", sa.String(32)),
    sa.Column("epoch", sa.Integer, nullable=False),
)

# Incremented in each transaction that changes something which other verifiers must learn.
change_counters = sa.Table(
    "change_counters",
    metadata,
    sa.Column("topic", sa.String(16), primary_key=True),
    sa.Column("changes", sa.BigInteger, nullable=False),
)

# A revocation is written with the state change that causes it, and kept until every delivery has ended.
revocations = sa.Table(
    "revocations",
    metadata,
    sa.Column("revocation_id", sa.String(32), primary_key=True),
    sa.Column("agent_id", sa.String(80), nullable=False),
    sa.Column("created_at", sa.Integer, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("signature", sa.Text, nullable=False),
    # Who posts it to the webhook is decided by its agent's shard, also when the agent is gone.
    sa.Column("verifier_id", sa.String(100), nullable=False),
    sa.Column("shard", sa.Integer, nullable=False),
    # Counts up in the order of the commits; 0 when agents are not told, or have a row of `deliveries` each.
    sa.Column("number", sa.BigInteger, nullable=False),
)

# Each agent is still to be told the revocations of its verifier with a number above `through`, see `backlog`.
recipients = sa.Table(
    "recipients",
    metadata,
    sa.Column("agent_id", sa.String(80), primary_key=True),
    sa.Column("through", sa.BigInteger, nullable=False),
)

# `channel` is "agent", "zeromq" or "webhook"; `target` an agent id, a broker or a URL. An agent has a row
# from the first attempt on.
deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column(
        "revocation_id", sa.ForeignKey("revocations.revocation_id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("channel", sa.String(16), primary_key=True),
    sa.Column("target", sa.String(255), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),  # pending, delivered, failed
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("last_error", sa.Text),
    sa.Column("updated_at", sa.Integer, nullable=False),
)
