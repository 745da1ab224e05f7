"""The verifier's tables. Migrations make them; this is what the queries are written against."""

from pathlib import Path

import sqlalchemy as sa

from keylime.database.schema import Schema

metadata = sa.MetaData()

SCHEMA = Schema(Path(__file__).parent / "migrations", "keylime_verifier_schema", "keylime_verifier", metadata)

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
    sa.Column("version", sa.Integer, nullable=False, server_default="1"),
)

# The last versions of policies that were replaced, with the current one. A policy that never was has no row.
# `policy_hash` is a runtime policy's own, see `RuntimePolicy.content_hash`; the versions from `covers` on are
# those of which this one accepts everything.
policy_versions = sa.Table(
    "policy_versions",
    metadata,
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("content_hash", sa.ForeignKey("policy_texts.content_hash"), nullable=False),
    sa.Column("tpm_policy", sa.Text),
    sa.Column("at", sa.BigInteger),
    sa.Column("actor", sa.Text),
    sa.Column("policy_hash", sa.String(64)),
    sa.Column("covers", sa.Integer),
)

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("agent_id", sa.String(80), primary_key=True),
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
    sa.Column("runtime_parts", sa.Text),  # JSON, of an agent with several runtime policies
    sa.Column("measured_boot_policy", sa.String(255)),
    sa.Column("ima_sign_verification_keys", sa.Text, nullable=False),
    sa.Column("accept_tpm_hash_algs", sa.Text, nullable=False),
    sa.Column("accept_tpm_encryption_algs", sa.Text, nullable=False),
    sa.Column("accept_tpm_signing_algs", sa.Text, nullable=False),
    sa.Column("operational_state", sa.Integer, nullable=False),
    sa.Column("severity_level", sa.Integer),
    sa.Column("last_event_id", sa.String(255)),
    sa.Column("last_findings", sa.Text),
    sa.Column("unreachable_since", sa.Integer),
    sa.Column("hash_alg", sa.String(16), nullable=False),
    sa.Column("enc_alg", sa.String(16), nullable=False),
    sa.Column("sign_alg", sa.String(16), nullable=False),
    sa.Column("v_delivered_to", sa.Text),
    sa.Column("checkpoint", sa.Text),  # what lasts of it; where polling stands is in `progress`
    sa.Column("shard", sa.Integer, nullable=False),  # of the agent's id, see `ownership`
    # False after a final verdict or a stop. Whoever pushes is asked nothing, but attested while it is true.
    sa.Column("is_polled", sa.Boolean, nullable=False),
    sa.Column("is_pushing", sa.Boolean, nullable=False, server_default=sa.sql.expression.false()),
)

# What a pass changes, and what it is refused by; a row for each agent, of some 200 bytes. No index holds a
# column that changes. Transactions that lock both rows of an agent lock that of `agents` first.
progress = sa.Table(
    "progress",
    metadata,
    sa.Column("agent_id", sa.String(80), primary_key=True),
    # New at add, stop and reactivate: stale writes miss.
    sa.Column("incarnation", sa.String(32), nullable=False),
    # Counts up when the shard's owner is to judge the agent again at once, whatever it knows of it.
    sa.Column("recalls", sa.Integer, nullable=False),
    sa.Column("attestation_count", sa.Integer, nullable=False),
    sa.Column("last_received_quote", sa.Integer, nullable=False),
    sa.Column("last_successful_attestation", sa.Integer, nullable=False),
    # Where the checkpoint stands, see `rows`; empty until the first pass after an update of this program.
    sa.Column("tpm_clock", sa.BigInteger),
    sa.Column("next_entry", sa.Integer),
    sa.Column("ima_pcr", sa.LargeBinary),
    sa.Column("matched", sa.Integer),
    sa.Column("length", sa.Integer),
    sa.Column("incomplete_rounds", sa.Integer),
)

# Of each agent that attests by itself: the number of its next attestation and of the last that was judged,
# and until when, in seconds since the epoch, the next one is to be there. No index holds what changes.
pushing = sa.Table(
    "pushing",
    metadata,
    sa.Column("agent_id", sa.String(80), primary_key=True),
    sa.Column("next_number", sa.Integer, nullable=False),
    sa.Column("judged", sa.Integer),
    sa.Column("deadline", sa.BigInteger),
)

# Attestations of those agents, see `pushing/attestation_rows.py`: what was offered and asked for, and of what
# came the quote; no logs. Times are seconds since the epoch; those that are kept outlast a later pass.
attestations = sa.Table(
    "push_attestations",
    metadata,
    sa.Column("agent_id", sa.String(80), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("generation", sa.String(32), nullable=False),  # of the agent, when it was negotiated
    sa.Column("stage", sa.String(24), nullable=False),
    sa.Column("evaluation", sa.String(8), nullable=False),
    sa.Column("failure_reason", sa.String(24)),
    sa.Column("boot_time", sa.Double, nullable=False),
    sa.Column("received_at", sa.Double, nullable=False, index=True),
    sa.Column("expires_at", sa.Double),
    sa.Column("evidence_at", sa.Double),
    sa.Column("completed_at", sa.Double),
    sa.Column("is_kept", sa.Boolean, nullable=False),
    sa.Column("items", sa.Text, nullable=False),  # JSON
)

# Sessions of those agents, and of whoever says that he is one. `state` is one of `pushing/sessions.py`; until
# it is "active" nothing is proven. `key_hash` is that of the AK that it was proven with.
sessions = sa.Table(
    "push_sessions",
    metadata,
    sa.Column("session_id", sa.String(36), primary_key=True),
    sa.Column("agent_id", sa.String(80), nullable=False),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("challenge", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False, index=True),
    sa.Column("address", sa.String(64), nullable=False),  # the prefixes that it was asked for from
    sa.Column("network", sa.String(64), nullable=False),
    sa.Column("key_hash", sa.String(64)),
    sa.Column("token_salt", sa.String(32)),
    sa.Column("token_hash", sa.String(64)),
    sa.Column("token_expires_at", sa.Double),
    sa.Index("ix_push_sessions_agent_id", "agent_id", "state"),
    sa.Index("ix_push_sessions_address", "address", "created_at"),
)

# The verifier processes that share this database. One is alive while its `renewals` move: the others watch
# them, each by its own clock, and wait for `lease` seconds. `expires_at` is what the release before goes by,
# which leaves `lease` empty; `process` tells others on the same machine whether it still runs; `broker` names
# the ZeroMQ broker in it.
members = sa.Table(
    "members",
    metadata,
    sa.Column("member_id", sa.String(32), primary_key=True),
    sa.Column("verifier_id", sa.String(100), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("process", sa.String(255), nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("broker", sa.String(255)),
    sa.Column("renewals", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("lease", sa.Double),
)

# Who polls the agents of a shard. Every change of owner begins an epoch, whose number is drawn at random;
# passes of another owner or epoch are refused.
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
    sa.Column("created_at", sa.Integer, nullable=False, index=True),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("signature", sa.Text, nullable=False),
    # Who posts it to the webhook is decided by its agent's shard, also when the agent is gone.
    sa.Column("verifier_id", sa.String(100), nullable=False),
    sa.Column("shard", sa.Integer, nullable=False),
    # Counts up in the order of the commits; 0 when agents are not told, or have a row of `deliveries` each.
    sa.Column("number", sa.BigInteger, nullable=False),
    # Its place among all revocations, whoever is told; 0 for those of an earlier release that have no number.
    sa.Column("made", sa.BigInteger, nullable=False),
)

# Each agent is still to be told the revocations of its verifier with a number above `through`, see `backlog`.
# It was told those above `since`, when it was enrolled, unless `deliveries` says otherwise.
recipients = sa.Table(
    "recipients",
    metadata,
    sa.Column("agent_id", sa.String(80), primary_key=True),
    sa.Column("through", sa.BigInteger, nullable=False),
    sa.Column("since", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),  # at what it was told
    sa.Column("told_at", sa.Integer),  # the last time
)

# `channel` is "agent", "zeromq" or "webhook"; `target` an agent id, a broker or a URL. An agent has a row
# from a first attempt in vain until it was told.
deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column(
        "revocation_id", sa.ForeignKey("revocations.revocation_id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("channel", sa.String(16), primary_key=True),
    sa.Column("target", sa.String(255), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),  # see revocations/outbox.py
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("last_error", sa.Text),
    sa.Column("updated_at", sa.Integer, nullable=False),
)

# What happened, for as long as it is to be known: see `history`. Only the counter's row makes ids, one
# transaction after the other. `details` is JSON.
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("token", sa.String(32), nullable=False, unique=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("agent_id", sa.String(80)),
    sa.Column("policy", sa.String(272)),
    sa.Column("actor", sa.Text),
    sa.Column("request_id", sa.String(36)),
    sa.Column("details", sa.Text, nullable=False),
    sa.Index("ix_events_agent_id", "agent_id", "id"),
    sa.Index("ix_events_policy", "policy", "id"),
)

# Up to which event somebody was told of them: `name` is "webhook URL's origin".
event_followers = sa.Table(
    "event_followers",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("through", sa.BigInteger, nullable=False),
)

event_counter = sa.Table(
    "event_counter",
    metadata,
    sa.Column("counter", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("last", sa.BigInteger, nullable=False),
)
