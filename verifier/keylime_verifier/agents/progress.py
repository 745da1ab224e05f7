"""An agent's stored progress after an outcome: pure bookkeeping, with the time given as a value."""

import dataclasses
from datetime import UTC, datetime
from itertools import islice
from operator import attrgetter
from typing import Any

from msgspec.structs import replace

from keylime.appraisal.verdict import Accepted, Incomplete, Rejected
from keylime.findings.explain import joined, summarise_finding
from keylime.findings.finding import Finding
from keylime.findings.severity import SeverityPolicy
from keylime.messages.verifier import FindingSummary, OperationalState
from keylime_verifier.agents.lifecycle import (
    Defect,
    Outcome,
    Polling,
    Refused,
    Unreachable,
    Unusable,
    VDelivered,
    WrongKey,
)
from keylime_verifier.agents.records import AgentRecord, Progress

# What a status answer and a database row can carry; the log has them all.
MAX_STORED_FINDINGS = 50
_SILENCE = "internal.verifier."
_ROUTINE = {"attestation_count", "last_received_quote", "last_successful_attestation", "checkpoint"}
_VERDICT = attrgetter(*(name for name in Progress.__struct_fields__ if name not in _ROUTINE))


def polling_of(record: AgentRecord) -> Polling:
    """The state machine's view of a stored agent; one in the middle of something starts again."""
    progress = record.progress
    return Polling(
        agent=record.agent_id,
        state=progress.operational_state,
        attestation_count=progress.attestation_count,
        severity_rank=progress.severity_level,
        last_event_id=progress.last_event_id,
        has_v=record.enrolment.has_v,
        v_delivered_to=progress.v_delivered_to,
    )


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

    def moved(**changes: Any) -> Progress:
        return replace(
            before,
            operational_state=polling.state,
            is_polled=goes_on,
            supported_version=version,
            severity_level=polling.severity_rank,
            last_event_id=polling.last_event_id,
            attestation_count=polling.attestation_count,
            v_delivered_to=polling.v_delivered_to,
            **changes,
        )

    match outcome:
        case Accepted(checkpoint, quote):
            return moved(
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
            return moved(
                last_received_quote=now,
                unreachable_since=None,
                last_findings=summarise(findings, severities),
                checkpoint=checkpoint,
            )
        case Incomplete(_, checkpoint):
            return moved(last_received_quote=now, unreachable_since=None, checkpoint=checkpoint)
        case Unreachable() | WrongKey():
            since = before.unreachable_since or now
            causes = _causes(before, polling, severities, since)
            return moved(unreachable_since=since, last_findings=causes)
        case Unusable():
            causes = _causes(before, polling, severities, None)
            return moved(unreachable_since=None, last_findings=causes)
        case Refused():
            return moved(last_findings=_causes(before, polling, severities, None))
        case VDelivered():
            return moved(unreachable_since=None)
        case Defect():
            return moved()


def _causes(
    before: Progress, polling: Polling, severities: SeverityPolicy, since: int | None
) -> tuple[FindingSummary, ...]:
    """What the agent is given up for, when it is now, before what it was rejected for."""
    if polling.state is not OperationalState.FAILED or polling.failure is None:
        return before.last_findings
    failure = polling.failure
    if since is not None:
        moment = datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds")
        failure = dataclasses.replace(
            failure, explanation=f"{failure.explanation}; unreachable since {moment}"
        )
    rejections = [found for found in before.last_findings if not found.event_id.startswith(_SILENCE)]
    return (*summarise((failure,), severities), *rejections)[:MAX_STORED_FINDINGS]


def is_routine(before: Progress, after: Progress) -> bool:
    """Whether only counters, times and the checkpoint changed, so that losing the write loses no verdict."""
    return bool(_VERDICT(before) == _VERDICT(after))


def summarise(findings: tuple[Finding, ...], severities: SeverityPolicy) -> tuple[FindingSummary, ...]:
    """The findings as operators read them, the first ones of many."""
    return tuple(
        summarise_finding(finding, severities.severity_of(finding).label)
        for finding in islice(joined(findings, severities.severity_of), MAX_STORED_FINDINGS)
    )
