"""An agent's stored progress after an outcome: pure bookkeeping, with the time given as a value."""

from dataclasses import replace

from keylime.appraisal.explain import summarise_finding
from keylime.appraisal.findings import Finding
from keylime.appraisal.severity import SeverityPolicy
from keylime.appraisal.verdict import Accepted, Incomplete, Rejected
from keylime.messages.verifier import FindingSummary
from keylime_verifier.lifecycle import Defect, Outcome, Polling, Refused, Unreachable, VDelivered
from keylime_verifier.records import Progress

# What a status answer and a database row can carry; the log has them all.
_MAX_STORED_FINDINGS = 50


def progress_after(
    before: Progress,
    polling: Polling,
    outcome: Outcome,
    *,
    now: int,
    version: str,
    goes_on: bool,
    severities: SeverityPolicy,
) -> Progress:
    """`before` with what `outcome` and the new state change. `now` is in seconds since the epoch.

    `goes_on` is false when polling ends with this outcome.
    """
    common = replace(
        before,
        operational_state=polling.state,
        is_polled=goes_on,
        supported_version=version,
        severity_level=polling.severity_rank,
        last_event_id=polling.last_event_id,
        attestation_count=polling.attestation_count,
        v_delivered_to=polling.v_delivered_to,
    )
    match outcome:
        case Accepted(checkpoint, quote):
            return replace(
                common,
                last_received_quote=now,
                last_successful_attestation=now,
                unreachable_since=None,
                last_findings=(),
                hash_alg=quote.hash_alg,
                enc_alg=quote.encryption_alg,
                sign_alg=quote.signing_alg,
                checkpoint=checkpoint,
            )
        case Rejected(findings, checkpoint):
            return replace(
                common,
                last_received_quote=now,
                unreachable_since=None,
                last_findings=summarise(findings, severities),
                checkpoint=checkpoint,
            )
        case Incomplete(_, checkpoint):
            return replace(common, last_received_quote=now, unreachable_since=None, checkpoint=checkpoint)
        case Unreachable():
            return replace(common, unreachable_since=before.unreachable_since or now)
        case VDelivered():
            return replace(common, unreachable_since=None)
        case Refused() | Defect():
            return common


def is_routine(before: Progress, after: Progress) -> bool:
    """Whether only counters, times and the checkpoint changed, so that losing the write loses no verdict."""
    return before == replace(
        after,
        attestation_count=before.attestation_count,
        last_received_quote=before.last_received_quote,
        last_successful_attestation=before.last_successful_attestation,
        checkpoint=before.checkpoint,
    )


def summarise(findings: tuple[Finding, ...], severities: SeverityPolicy) -> tuple[FindingSummary, ...]:
    """The findings as operators read them, the first ones of many."""
    return tuple(
        summarise_finding(finding, severities.severity_of(finding).label)
        for finding in findings[:_MAX_STORED_FINDINGS]
    )
