"""The polling state machine: an agent's state and what just happened in, the next state and commands out.

States, retries and severities are those of the protocol (rest-api 5); an agent that is polled on after a
recoverable failure is asked as after any other retry, and the next accepted round brings it back.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from keylime.appraisal.findings import Finding
from keylime.appraisal.severity import SeverityPolicy
from keylime.appraisal.verdict import Accepted, Incomplete, Rejected
from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime.revocation.message import RevocationKind

# States that a verifier goes on polling when it starts, and that may be shown as passing.
POLLED_STATES = frozenset(
    {
        OperationalState.START,
        OperationalState.GET_QUOTE,
        OperationalState.GET_QUOTE_RETRY,
        OperationalState.PROVIDE_V,
        OperationalState.PROVIDE_V_RETRY,
    }
)


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often agents are asked and how silence is retried; seconds."""

    quote_interval_s: float
    retry_interval_s: float
    max_retries: int
    exponential_backoff: bool

    def retry_delay_s(self, attempt: int) -> float:
        """The wait before retry number `attempt` (from 1)."""
        if self.exponential_backoff and self.retry_interval_s > 1:
            return float(self.retry_interval_s**attempt)
        return abs(self.retry_interval_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Polling:
    """One agent as the state machine sees it.

    `attempts` counts silent rounds in a row, `setbacks` those that ended in a recoverable rejection or in a
    defect of ours: they lengthen the pause, but never add up to "not reachable".
    """

    agent: AgentId
    state: OperationalState
    attempts: int = 0
    setbacks: int = 0
    attestation_count: int = 0
    severity_rank: int | None = None  # of the failure it is in, None when it is in none
    last_event_id: str | None = None
    has_v: bool = False
    v_delivered_to: str | None = None  # the public key (PEM) that V went to
    v_owed_to: str | None = None  # the public key (PEM) that V is on its way to


# What can happen to a polled agent, beside the three verdicts


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No usable answer: connection, TLS, time-out, or a server error."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The agent answered with a status that no retry will change."""

    reason: str
    version: bool = False  # no API version in common


@dataclass(frozen=True, slots=True)
class VDelivered:
    """The agent took the V share, encrypted to `public_key`."""

    public_key: str


@dataclass(frozen=True, slots=True)
class Defect:
    """Our own code failed; says nothing about the machine."""

    reason: str


Outcome: TypeAlias = Accepted | Rejected | Incomplete | Unreachable | Refused | VDelivered | Defect


# What the daemon must do


@dataclass(frozen=True, slots=True)
class PollAfter:
    """Ask for the next quote after `delay_s`; `renew_key` asks for the public key as well."""

    delay_s: float
    renew_key: bool = False


@dataclass(frozen=True, slots=True)
class ProvideV:
    """Send the V share after `delay_s`, encrypted to `public_key`."""

    public_key: str
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Notify:
    """Publish a revocation message of type `kind` about `finding`."""

    kind: RevocationKind
    finding: Finding
    severity_label: str


@dataclass(frozen=True, slots=True)
class StopPolling:
    """Leave the agent alone until an operator acts."""


Command: TypeAlias = PollAfter | ProvideV | Notify | StopPolling


def advance(
    polling: Polling, outcome: Outcome, cadence: Cadence, severities: SeverityPolicy
) -> tuple[Polling, tuple[Command, ...]]:
    """The state after `outcome`, and what the daemon must do about it, in order."""
    match outcome:
        case Accepted():
            return _accepted(polling, outcome, cadence)
        case Rejected():
            return _rejected(polling, outcome, cadence, severities)
        case Incomplete():
            return replace(polling, attempts=0), (PollAfter(0.0, renew_key=True),)
        case Unreachable(reason):
            return _unreachable(polling, reason, cadence, severities)
        case Refused():
            return _refused(polling, outcome, severities)
        case VDelivered(public_key):
            delivered = replace(
                polling,
                state=OperationalState.GET_QUOTE,
                attempts=0,
                setbacks=0,
                v_delivered_to=public_key,
                v_owed_to=None,
            )
            return delivered, (PollAfter(cadence.quote_interval_s),)
        case Defect():
            setback = _next_setback(polling, cadence)
            pause_s = cadence.retry_delay_s(setback)
            # V that was on its way follows the next pass.
            again = replace(polling, setbacks=setback, v_owed_to=None)
            return again, (PollAfter(pause_s, renew_key=True),)
        case _:
            assert_never(outcome)


def _accepted(polling: Polling, verdict: Accepted, cadence: Cadence) -> tuple[Polling, tuple[Command, ...]]:
    """Good news: V follows when it has not gone to this public key yet; V never leaves before (Y11)."""
    public_key = verdict.checkpoint.public_key
    passed = replace(
        polling,
        state=OperationalState.GET_QUOTE,
        attempts=0,
        setbacks=0,
        attestation_count=polling.attestation_count + 1,
        severity_rank=None,
    )
    if polling.has_v and public_key is not None and public_key != polling.v_delivered_to:
        owing = replace(passed, state=OperationalState.PROVIDE_V, v_owed_to=public_key)
        return owing, (ProvideV(public_key),)
    return passed, (PollAfter(cadence.quote_interval_s),)


def _rejected(
    polling: Polling, verdict: Rejected, cadence: Cadence, severities: SeverityPolicy
) -> tuple[Polling, tuple[Command, ...]]:
    """A failure is told when it is graver than the one the agent is in; the gravest end the polling."""
    gravest = severities.gravest(verdict.findings)
    final = not verdict.recoverable or gravest.severity == severities.highest
    setback = _next_setback(polling, cadence)
    go_on: Command = StopPolling() if final else PollAfter(cadence.retry_delay_s(setback), renew_key=True)
    answered = replace(polling, attempts=0, setbacks=setback)
    if polling.severity_rank is not None and gravest.severity.rank <= polling.severity_rank:
        return answered, (go_on,)
    failed = replace(
        answered,
        state=OperationalState.INVALID_QUOTE,
        v_owed_to=None,
        severity_rank=gravest.severity.rank,
        last_event_id=gravest.finding.event_id,
    )
    return failed, (Notify(RevocationKind.REVOCATION, gravest.finding, gravest.severity.label), go_on)


def _next_setback(polling: Polling, cadence: Cadence) -> int:
    """The number of this setback, which stops growing where silence would be given up."""
    return min(polling.setbacks + 1, max(cadence.max_retries, 1))


def _unreachable(
    polling: Polling, reason: str, cadence: Cadence, severities: SeverityPolicy
) -> tuple[Polling, tuple[Command, ...]]:
    """Silence is retried ever later; given up, it is told if the agent was ever attested, or was owed V."""
    owed_to = polling.v_owed_to
    if polling.attempts < cadence.max_retries:
        attempt = polling.attempts + 1
        delay_s = cadence.retry_delay_s(attempt)
        again: Command = PollAfter(delay_s, renew_key=True) if owed_to is None else ProvideV(owed_to, delay_s)
        return replace(polling, attempts=attempt), (again,)
    event = "not_reachable" if owed_to is None else "not_reachable_v"
    finding = _internal(event, f"the agent did not answer {polling.attempts + 1} times in a row: {reason}")
    told: tuple[Command, ...] = ()
    if owed_to is not None or polling.attestation_count > 0:
        told = (Notify(RevocationKind.COMM_ERROR, finding, severities.severity_of(finding).label),)
    return _failed(polling, finding, severities), (*told, StopPolling())


def _refused(
    polling: Polling, outcome: Refused, severities: SeverityPolicy
) -> tuple[Polling, tuple[Command, ...]]:
    event = "no_quote" if polling.v_owed_to is None else "no_v"
    finding = _internal("version_not_supported" if outcome.version else event, outcome.reason)
    return _failed(polling, finding, severities), (StopPolling(),)


def _failed(polling: Polling, finding: Finding, severities: SeverityPolicy) -> Polling:
    return replace(
        polling,
        state=OperationalState.FAILED,
        v_owed_to=None,
        severity_rank=severities.severity_of(finding).rank,
        last_event_id=finding.event_id,
    )


def _internal(event: str, message: str) -> Finding:
    return Finding(f"internal.verifier.{event}", {"message": message}, recoverable=False, explanation=message)
