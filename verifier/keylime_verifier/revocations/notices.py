"""A notice of the state machine as a signed message, ready for the outbox."""

import logging
import uuid
from datetime import datetime

from keylime.errors import CredentialError
from keylime.findings.finding import Finding
from keylime.revocation.message import RevocationKind, build_revocation
from keylime.revocation.signing import sign_revocation
from keylime_verifier.agents.lifecycle import Notify
from keylime_verifier.agents.records import AgentRecord, StoredRevocation

log = logging.getLogger("keylime.verifier")

CLEARED = Notify(
    RevocationKind.CLEARED,
    Finding(
        "internal.verifier.cleared",
        {"message": "the agent passes its attestation again"},
        recoverable=True,
        explanation="the agent passes its attestation again",
    ),
    "info",
)
"""That an agent which others may have been warned of passes again."""


def signed_notice(record: AgentRecord, notice: Notify, key: str, now: int) -> StoredRevocation:
    """What is told of an agent, signed with `key` (PEM), at `now` in seconds since the epoch."""
    agent_id, enrolment = record.agent_id, record.enrolment
    message = build_revocation(
        notice.kind,
        agent_id=agent_id,
        ip=enrolment.ip,
        port=enrolment.port,
        tpm_policy=enrolment.tpm_policy,
        meta_data=enrolment.meta_data,
        finding=notice.finding,
        severity_label=notice.severity_label,
        when=datetime.fromtimestamp(now).astimezone(),
        timestamp=now,
    )
    try:
        signed = sign_revocation(message, key)
    except CredentialError as error:
        log.error("agent %s: its revocation cannot be signed and is sent unsigned: %s", agent_id, error)
        signed = sign_revocation(message, "")
    return StoredRevocation(uuid.uuid4().hex, agent_id, now, signed.msg, signed.signature)
