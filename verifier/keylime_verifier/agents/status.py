"""An agent's record as the API shows it. What it says of trust follows from the age of the last pass (P7)."""

from msgspec import UNSET

from keylime.messages.verifier import (
    NOTHING_JUDGED,
    STOPPED_BY_OPERATOR,
    AgentStatus,
    OperationalState,
    PolicyPart,
)
from keylime_verifier.agents.lifecycle import POLLED_STATES, Cadence
from keylime_verifier.agents.pushing import INTERVALS_ALLOWED, status_of
from keylime_verifier.agents.records import AgentRecord

_FAILED_STATES = frozenset(
    {OperationalState.FAILED, OperationalState.INVALID_QUOTE, OperationalState.TENANT_FAILED}
)
_TEXTS = {"PASS": "attested", "PENDING": "pending", "FAIL": "failed", "TIMEOUT": "overdue"}

_SLACK_S = 1


def shown_record(
    row: AgentRecord, known: AgentRecord | None, unwritten: AgentRecord | None
) -> tuple[AgentRecord, bool]:
    """Which record of an agent is shown, and whether that is one which waits to be written.

    `row` is what the database has, `known` what is known here, `unwritten` the verdict that waits here.
    """
    if unwritten is not None and unwritten.generation == row.generation:
        if row.progress.operational_state is OperationalState.INVALID_QUOTE:
            return row, False  # it stands rejected, and nothing that waits makes that better
        if unwritten.progress.operational_state is OperationalState.INVALID_QUOTE:
            # A rejection counts whoever owns the shard now, or had the agent judged again.
            return unwritten.counting_on(row), True
    else:
        unwritten = None
    # Another verifier may have taken the agent over, or judged it, without this one knowing yet.
    is_fresh = known is not None and known.row_version == row.row_version
    return (known if known is not None and is_fresh else row), unwritten is not None


def describe(
    record: AgentRecord,
    *,
    has_runtime_policy: bool,
    judges_nothing: bool,
    cadence: Cadence,
    now: int,
    is_unwritten: bool = False,
    policy_versions: tuple[int | None, int | None] = (None, None),
) -> AgentStatus:
    """The status of one agent at `now`, in seconds since the epoch by the clock that stamps verdicts.

    A verdict that `is_unwritten` is pending, whatever it says: other verifiers cannot know of it yet.
    `policy_versions` are the numbers of its runtime policy's version and of that for its boot.
    """
    enrolment, progress = record.enrolment, record.progress
    status = "PENDING" if is_unwritten else attestation_status(record, cadence, now)
    push = record.push
    return AgentStatus(
        operational_state=_shown_state(record),
        v=None,  # the field stays for clients that expect it; the share itself goes to the agent alone (P14)
        ip=None if enrolment.is_pushing else enrolment.ip,
        port=None if enrolment.is_pushing else enrolment.port,
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
        attestation_status=status,
        attestation_period=f"{int(cadence.quote_interval_s)}s",
        maximum_attestation_interval=f"{int(_max_age_s(cadence))}s",
        last_findings=list(progress.last_findings),
        unreachable_since=progress.unreachable_since,
        reboots=progress.checkpoint.reboots,
        runtime_policy_name=_runtime_policy_name(record, has_runtime_policy=has_runtime_policy),
        mb_policy_name=enrolment.measured_boot_policy,
        attestation_text=STOPPED_BY_OPERATOR
        if progress.operational_state is OperationalState.TENANT_FAILED
        else attestation_text(status, judges_nothing=judges_nothing),
        runtime_policies=[
            PolicyPart(part.name, part.until, not part.holds(now)) for part in enrolment.runtime_parts
        ]
        or UNSET,
        runtime_policy_version=UNSET if policy_versions[0] is None else policy_versions[0],
        mb_policy_version=UNSET if policy_versions[1] is None else policy_versions[1],
        attestation_mode="push" if enrolment.is_pushing else UNSET,
        deadline=UNSET if push is None else push.deadline,
        ima_entries=progress.checkpoint.ima.next_entry if has_runtime_policy else UNSET,
    )


def _shown_state(record: AgentRecord) -> int:
    """Of an agent that attests by itself the wire's state only says whether an operator stopped it."""
    state = record.progress.operational_state
    if record.enrolment.is_pushing and state is not OperationalState.TENANT_FAILED:
        return int(OperationalState.GET_QUOTE)
    return int(state)


def _runtime_policy_name(record: AgentRecord, *, has_runtime_policy: bool) -> str | None:
    """The name of the runtime policy; the empty one of an agent that was added without has its id for one."""
    name = record.enrolment.runtime_policy
    return name if has_runtime_policy or name != record.agent_id else None


def attestation_text(status: str, *, judges_nothing: bool) -> str:
    """The attestation status in words. The wire's PASS says too much where no policy makes a demand."""
    text = _TEXTS[status]
    return f"{text}, {NOTHING_JUDGED}" if judges_nothing and status != "FAIL" else text


def attestation_status(record: AgentRecord, cadence: Cadence, now: int) -> str:
    """PASS only while the last pass is recent and of this generation; FAIL after a verdict; else PENDING."""
    progress = record.progress
    if record.push is not None:
        return status_of(progress, record.push, cadence, now)
    if progress.operational_state in _FAILED_STATES:
        return "FAIL"
    passed_now = progress.checkpoint.boot is not None and progress.operational_state in POLLED_STATES
    age_s = now - progress.last_successful_attestation
    # Times are whole seconds, and verifiers know the database's to some milliseconds. A pass of the future is
    # one from before that clock was set back: nobody can tell how old it is.
    is_recent = -_SLACK_S <= age_s <= _max_age_s(cadence) + _SLACK_S
    return "PASS" if passed_now and is_recent else "PENDING"


def _max_age_s(cadence: Cadence) -> float:
    return max(INTERVALS_ALLOWED * cadence.quote_interval_s, 1.0)
