"""Agents that attest by themselves: what a verdict, and silence, make of how one stands. Pure.

Nobody asks them, so nothing is retried: an agent passes until the next attestation is overdue, and a failure
lasts until an operator acts, whatever follows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeAlias, assert_never

from msgspec.structs import replace

from keylime.appraisal.verdict import Accepted, Incomplete, Rejected, Verdict
from keylime.findings.finding import Finding
from keylime.findings.severity import SeverityPolicy
from keylime.messages.push_attestation import FailureReason
from keylime.messages.verifier import OperationalState
from keylime.revocation.message import RevocationKind
from keylime_verifier.agents.lifecycle import Cadence, Notify, Polling, Unreachable, advance
from keylime_verifier.agents.progress import progress_after
from keylime_verifier.agents.records import Progress, PushState

INTERVALS_ALLOWED = 5
"""So many times the interval may pass between two attestations."""

OVERDUE = "internal.verifier.overdue"
PASSING = OperationalState.GET_QUOTE
_SLACK_S = 1

_UNPROVEN_CHAIN = ("qoute_validation.", "measured_boot.invalid_pcr_", "ima.pcr_mismatch")


class AttestationMode(StrEnum):
    """Whom a verifier attests: agents that it asks, agents that attest by themselves, or both."""

    PULL = "pull"
    PUSH = "push"
    BOTH = "both"

    @property
    def polls(self) -> bool:
        """Whether agents are asked."""
        return self is not AttestationMode.PUSH

    @property
    def takes_pushed(self) -> bool:
        """Whether agents attest by themselves."""
        return self is not AttestationMode.PULL


@dataclass(frozen=True, slots=True)
class AttestationLimits:
    """Seconds: between two attestations, for a challenge, and for a verdict before the next is negotiated."""

    interval_s: float
    challenge_s: float
    verdict_s: float


@dataclass(frozen=True, slots=True)
class PushRules:
    """What operators have configured; seconds."""

    cadence: Cadence
    severities: SeverityPolicy
    recovers: bool  # whether a pass ends a failure

    @property
    def longest_pause_s(self) -> int:
        """How long after an attestation the next one is overdue."""
        return longest_pause_s(self.cadence)


def longest_pause_s(cadence: Cadence) -> int:
    """How long after an attestation the next one is overdue: seconds, at least one."""
    return max(int(INTERVALS_ALLOWED * cadence.quote_interval_s), 1)


@dataclass(frozen=True, slots=True)
class Overdue:
    """No attestation came in time."""


Happening: TypeAlias = Verdict | Overdue


def stand_after(polling: Polling, happening: Happening, rules: PushRules) -> tuple[Polling, Notify | None]:
    """The state after `happening`, and what is to be told of it, if anything.

    START is an agent of which nothing is known yet, GET_QUOTE one that passes, INVALID_QUOTE one that failed,
    FAILED one that is silent, TENANT_FAILED one that was stopped.
    """
    match happening:
        case Accepted():
            return _passed(polling, rules), None
        case Rejected():
            failed, commands = advance(polling, happening, rules.cadence, rules.severities)
            notices = [command for command in commands if isinstance(command, Notify)]
            return replace(failed, setbacks=0), notices[0] if notices else None
        case Incomplete():
            return polling, None
        case Overdue():
            return _overdue(polling, rules)
        case _:
            assert_never(happening)


def _passed(polling: Polling, rules: PushRules) -> Polling:
    counted = replace(polling, attestation_count=polling.attestation_count + 1)
    match polling.state:
        case OperationalState.INVALID_QUOTE if not rules.recovers:
            return counted
        case OperationalState.TENANT_FAILED:
            return counted
        case _:
            return replace(counted, state=OperationalState.GET_QUOTE, severity_rank=None)


def _overdue(polling: Polling, rules: PushRules) -> tuple[Polling, Notify | None]:
    """Silence is told once, and only of an agent that passed: it makes no failure better or worse."""
    if polling.state is not OperationalState.GET_QUOTE:
        return polling, None
    message = f"no attestation came for {rules.longest_pause_s} s"
    finding = Finding(
        OVERDUE,
        {"message": message},
        recoverable=True,
        explanation=message,
        hint="is the machine on and in the network, and keylime_push_model_agent running? Its next "
        "attestation brings it back",
    )
    severity = rules.severities.severity_of(finding)
    silent = replace(
        polling,
        state=OperationalState.FAILED,
        severity_rank=severity.rank,
        last_event_id=OVERDUE,
        failure=finding,
    )
    return silent, Notify(RevocationKind.COMM_ERROR, finding, severity.label)


def progress_of(
    before: Progress, after: Polling, happening: Happening, *, now: int, rules: PushRules
) -> Progress:
    """What is stored of an agent that stands as `after` says; `now` is in seconds since the epoch."""
    outcome = Unreachable(OVERDUE) if isinstance(happening, Overdue) else happening
    progress = progress_after(
        before,
        after,
        outcome,
        now=now,
        version=before.supported_version,
        goes_on=before.is_polled,
        severities=rules.severities,
    )
    if isinstance(happening, Accepted) and after.state is OperationalState.INVALID_QUOTE:
        return replace(progress, last_findings=before.last_findings)  # why it stands as failed
    return progress


def pushed_after(
    before: PushState, happening: Happening, number: int, now: int, rules: PushRules
) -> PushState:
    """How far the attestations have come; without a verdict nothing is waited for any longer than before."""
    match happening:
        case Accepted() | Rejected():
            judged = number if before.judged is None else max(number, before.judged)
            return PushState(judged, now + rules.longest_pause_s)
        case Incomplete() | Overdue():
            return before
        case _:
            assert_never(happening)


def is_overdue(push: PushState, now: float) -> bool:
    """Whether the next attestation should have been there."""
    return push.deadline is not None and now > push.deadline + _SLACK_S


def status_of(progress: Progress, push: PushState, cadence: Cadence, now: float) -> str:
    """PENDING, PASS, FAIL or TIMEOUT, by whatever process it is asked for."""
    match progress.operational_state:
        case OperationalState.INVALID_QUOTE | OperationalState.TENANT_FAILED:
            return "FAIL"
        case OperationalState.FAILED:
            return "TIMEOUT"
        case OperationalState.GET_QUOTE if push.deadline is not None:
            # A deadline too far away is one from before the database's clock was set back.
            if push.deadline > now + longest_pause_s(cadence) + _SLACK_S:
                return "PENDING"
            return "TIMEOUT" if is_overdue(push, now) else "PASS"
        case _:
            return "PENDING"


def failure_reason(findings: Sequence[Finding]) -> FailureReason:
    """Whether evidence does not hold together, or shows what no policy allows."""
    is_broken = any(finding.event_id.startswith(_UNPROVEN_CHAIN) for finding in findings)
    return "broken_evidence_chain" if is_broken else "policy_violation"


def told_time(seconds: float) -> datetime:
    """Seconds since the epoch as a moment."""
    return datetime.fromtimestamp(seconds, UTC)
