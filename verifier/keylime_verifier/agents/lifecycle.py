"""The polling state machine: an agent's state and what just happened in, the next state and commands out.

States, retries and severities are those of the protocol (docs/reference/rest-api.md, 5); an agent that is
polled on after a recoverable failure is asked as after any other retry, and the next accepted round brings it
back. So it does with an agent that was given up as silent: only what evidence shows is final.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, assert_never

import msgspec
from msgspec.structs import replace

from keylime.appraisal.verdict import Accepted, Incomplete, Rejected
from keylime.findings.finding import Finding
from keylime.findings.severity import SeverityPolicy
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

_LONGEST_RETRY_S = 60.0
_LAST_GROWTH = 64
_WRONG_KEY = "wrong_key"


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often agents are asked and how silence is retried; seconds."""

    quote_interval_s: float
    retry_interval_s: float
    max_retries: int
    exponential_backoff: bool
    silence_interval_s: float = 15.0  # between questions to an agent that was given up
    resume_after_silence: bool = True

    def retry_delay_s(self, attempt: int) -> float:
        """The wait before retry number `attempt` (from 1)."""
        if self.exponential_backoff and self.retry_interval_s > 1:
            longest_s = max(_LONGEST_RETRY_S, self.retry_interval_s)
            # No power that floats do not have.
            return min(float(self.retry_interval_s) ** min(attempt, _LAST_GROWTH), longest_s)
        return abs(self.retry_interval_s)


class Polling(msgspec.Struct, frozen=True, kw_only=True):
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
    failure: Finding | None = None  # why it is given up, without a verdict about the machine


# What can happen to a polled agent, beside the three verdicts


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No usable answer: connection, TLS, time-out, or a server error."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """The agent is there, but it proves nothing: it has no quote to give, or says too much, or nonsense."""

    reason: str


@dataclass(frozen=True, slots=True)
class WrongKey:
    """Somebody answers who does not hold the agent's key: the agent with a new one, or another machine."""

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


# In the order in which they are looked for.
_REMEDIES = (
    ("certificate has expired", "renew the certificate that has ended, here or at the agent"),
    ("certificate expired", "renew the verifier's client certificate, which has ended"),
    ("unknown ca", "the agent's trusted_client_ca must hold the verifier's CA (cv_ca/cacert.crt)"),
    ("connection refused", "nothing listens there: start the agent (systemctl start keylime_agent)"),
    ("no route", "the network does not lead to the machine: check its address and the routes"),
    ("no answer within", "the machine is off, or a firewall drops packets to the agent's port"),
    ("api version", "update the agent, or the verifier"),
)


Silence: TypeAlias = Unreachable | Unusable | WrongKey
Outcome: TypeAlias = Accepted | Rejected | Incomplete | Silence | Refused | VDelivered | Defect


# What the daemon must do


class PollAfter(msgspec.Struct, frozen=True):
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
        case Unreachable() | Unusable() | WrongKey():
            return _unanswered(polling, outcome, cadence, severities)
        case Refused():
            return _refused(polling, outcome, cadence, severities)
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
    if polling.state is OperationalState.FAILED:  # by silence, which is no measure of what evidence shows
        polling = replace(polling, severity_rank=None)
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


def _unanswered(
    polling: Polling, outcome: Silence, cadence: Cadence, severities: SeverityPolicy
) -> tuple[Polling, tuple[Command, ...]]:
    """Silence is retried ever later; given up, it is told if the agent was ever attested, or was owed V.

    So are answers that nobody can use, and those who answer without the agent's key: they prove nothing, for
    or against the machine. Who was given up is asked on, slowly, and nobody is told again, for nothing was
    proven; of an agent that answers, that is no matter of choice.
    """
    on = _given_up(cadence, answers=isinstance(outcome, Unusable))
    if polling.state is OperationalState.FAILED:
        return _failing(polling, outcome, severities), (on,)
    owed_to = polling.v_owed_to
    if polling.attempts < cadence.max_retries:
        attempt = polling.attempts + 1
        delay_s = cadence.retry_delay_s(attempt)
        again: Command = PollAfter(delay_s, renew_key=True) if owed_to is None else ProvideV(owed_to, delay_s)
        return replace(polling, attempts=attempt), (again,)
    finding = _cause(outcome, f" {polling.attempts + 1} times in a row", owes_v=owed_to is not None)
    told: tuple[Command, ...] = ()
    if owed_to is not None or polling.attestation_count > 0:
        told = (Notify(RevocationKind.COMM_ERROR, finding, severities.severity_of(finding).label),)
    return _failed(polling, finding, severities), (*told, on)


def _words(outcome: Silence) -> tuple[str, str]:
    """The event, and what happened."""
    match outcome:
        case Unreachable():
            return "not_reachable", "the agent did not answer"
        case Unusable():
            return "unusable_answer", "the agent gave no answer that can be used"
        case WrongKey():
            return _WRONG_KEY, "whoever answers at the agent's address did not hold its key"
        case _:
            assert_never(outcome)


def _cause(outcome: Silence, how_often: str, *, owes_v: bool) -> Finding:
    """Why an agent is given up that proves nothing."""
    event, failed = _words(outcome)
    message = f"{failed}{how_often}: {outcome.reason}"
    # How grave it is that a machine answers and proves nothing, severity_policy says; silence is gravest.
    answers = isinstance(outcome, Unusable)
    return _internal(f"{event}_v" if owes_v else event, message, recoverable=answers)


def _failing(polling: Polling, outcome: Silence, severities: SeverityPolicy) -> Polling:
    """An agent that was given up before. When it fails in another way now, that is what is shown.

    A machine that was repaired comes back with a new key after days of silence, and there is something to do.
    """
    finding = _cause(outcome, "", owes_v=False)
    if finding.event_id == (polling.last_event_id or "").removesuffix("_v"):
        return polling
    return _failed(polling, finding, severities)


def _given_up(cadence: Cadence, *, answers: bool) -> Command:
    """How to go on with an agent that proves nothing: one that answers is asked on in any case, slowly."""
    if not answers and not cadence.resume_after_silence:
        return StopPolling()
    return PollAfter(cadence.silence_interval_s, renew_key=True)


def _refused(
    polling: Polling, outcome: Refused, cadence: Cadence, severities: SeverityPolicy
) -> tuple[Polling, tuple[Command, ...]]:
    event = "no_quote" if polling.v_owed_to is None else "no_v"
    finding = _internal("version_not_supported" if outcome.version else event, outcome.reason)
    return _failed(polling, finding, severities), (_given_up(cadence, answers=True),)


def _failed(polling: Polling, finding: Finding, severities: SeverityPolicy) -> Polling:
    return replace(
        polling,
        state=OperationalState.FAILED,
        v_owed_to=None,
        severity_rank=severities.severity_of(finding).rank,
        last_event_id=finding.event_id,
        failure=dataclasses.replace(finding, hint=_remedy(polling.agent, finding)),
    )


def _remedy(agent_id: AgentId, finding: Finding) -> str:
    """What an operator does about an agent that gives no quote, by the words that name the cause."""
    if f".{_WRONG_KEY}" in finding.event_id:
        return (
            "if the agent was installed anew or has a new key, take up what it has registered since: "
            f"`keylime_tenant -c update -u {agent_id}`; if not, another machine answers at its address"
        )
    reason = finding.explanation
    again = f"`keylime_tenant -c reactivate -u {agent_id}`"
    for words, remedy in _REMEDIES:
        if words in reason.lower():
            return f"{remedy}; then {again}"
    return f"see the agent's log (journalctl -u keylime_agent); then {again}"


def _internal(event: str, message: str, *, recoverable: bool = False) -> Finding:
    event_id = f"internal.verifier.{event}"
    return Finding(event_id, {"message": message}, recoverable=recoverable, explanation=message)


def silence_remark(
    before: Polling, after: Polling, commands: Sequence[Command], cadence: Cadence
) -> str | None:
    """What the log says when an agent is given up but asked on, and when it is back; else nothing."""
    was_given_up = before.state is OperationalState.FAILED
    is_given_up = after.state is OperationalState.FAILED
    if is_given_up and not was_given_up and not any(isinstance(one, StopPolling) for one in commands):
        return (
            f"{after.state.text} ({after.last_event_id}), "
            f"asked on every {cadence.silence_interval_s:g} s until it answers"
        )
    if was_given_up and after.state in POLLED_STATES:
        return "back and good, it passes again after its silence"
    return None
