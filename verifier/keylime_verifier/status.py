"""An agent's record as the API shows it. What it says of trust follows from the age of the last pass (P7)."""

from keylime.messages.verifier import AgentStatus, OperationalState
from keylime_verifier.lifecycle import POLLED_STATES, Cadence
from keylime_verifier.records import AgentRecord

_FAILED_STATES = frozenset(
    {OperationalState.FAILED, OperationalState.INVALID_QUOTE, OperationalState.TENANT_FAILED}
)
_INTERVALS_ALLOWED = 5


def describe(record: AgentRecord, *, has_runtime_policy: bool, cadence: Cadence, now: int) -> AgentStatus:
    """The status of one agent at `now`, in seconds since the epoch."""
    enrolment, progress = record.enrolment, record.progress
    return AgentStatus(
        operational_state=int(progress.operational_state),
        v=None,  # the field stays for clients that expect it; the share itself goes to the agent alone (P14)
        ip=enrolment.ip,
        port=enrolment.port,
        tpm_policy=enrolment.tpm_policy,
        meta_data=enrolment.meta_data,
        has_mb_refstate=int(enrolment.measured_boot_policy is not None),
        has_runtime_policy=int(has_runtime_policy),
        accept_tpm_hash_algs=list(enrolment.accept_tpm_hash_algs),
        accept_tpm_encryption_algs=list(enrolment.accept_tpm_encryption_algs),
        accept_tpm_signing_algs=list(enrolment.accept_tpm_signing_algs),
        hash_alg=progress.hash_alg,
        enc_alg=progress.enc_alg,
        sign_alg=progress.sign_alg,
        verifier_id=enrolment.verifier_id,
        verifier_ip=enrolment.verifier_ip,
        verifier_port=enrolment.verifier_port,
        severity_level=progress.severity_level,
        last_event_id=progress.last_event_id,
        attestation_count=progress.attestation_count,
        last_received_quote=progress.last_received_quote,
        last_successful_attestation=progress.last_successful_attestation,
        attestation_status=attestation_status(record, cadence, now),
        attestation_period=f"{int(cadence.quote_interval_s)}s",
        maximum_attestation_interval=f"{int(_max_age_s(cadence))}s",
        last_findings=list(progress.last_findings),
        unreachable_since=progress.unreachable_since,
        reboots=progress.checkpoint.reboots,
    )


def attestation_status(record: AgentRecord, cadence: Cadence, now: int) -> str:
    """PASS only while the last pass is recent and of this incarnation; FAIL after a verdict; else PENDING."""
    progress = record.progress
    if progress.operational_state in _FAILED_STATES:
        return "FAIL"
    passed_now = progress.checkpoint.boot is not None and progress.operational_state in POLLED_STATES
    recent = now - progress.last_successful_attestation <= _max_age_s(cadence) + 1  # times are whole seconds
    return "PASS" if passed_now and recent else "PENDING"


def _max_age_s(cadence: Cadence) -> float:
    return max(_INTERVALS_ALLOWED * cadence.quote_interval_s, 1.0)
