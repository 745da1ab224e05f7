"""The polling state machine against rest-api 5 and the decisions that change it."""

from dataclasses import replace

import pytest

from keylime.appraisal.checkpoint import Checkpoint
from keylime.appraisal.findings import Finding
from keylime.appraisal.severity import SeverityPolicy
from keylime.appraisal.verdict import Accepted, AcceptedQuote, Incomplete, Rejected
from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime.revocation.message import RevocationKind
from keylime_verifier.lifecycle import (
    Cadence,
    Command,
    Defect,
    Notify,
    PollAfter,
    Polling,
    ProvideV,
    Refused,
    StopPolling,
    Unreachable,
    VDelivered,
    advance,
)

CADENCE = Cadence(quote_interval_s=2, retry_interval_s=3, max_retries=2, exponential_backoff=True)
LABELS = ("info", "warning", "emergency")
EMERGENCY_ONLY = SeverityPolicy(LABELS, [{"event_id": ".*", "severity_label": "emergency"}])
IMA_IS_MILD = SeverityPolicy(LABELS, [{"event_id": r"ima\..*", "severity_label": "warning"}])

NEW = Polling(agent=AgentId("a1"), state=OperationalState.START)
ATTESTED = replace(NEW, state=OperationalState.GET_QUOTE, attestation_count=7)
ACCEPTED = Accepted(
    Checkpoint(public_key="KEY"),
    AcceptedQuote(hash_alg="sha256", encryption_alg="rsa2048", signing_alg="rsassa"),
)
BAD_FILE = Finding("ima.validation.ima-ng.not_in_allowlist", {}, recoverable=True, explanation="unknown file")
BAD_QUOTE = Finding("qoute_validation.quote_validation", {}, recoverable=False, explanation="bad signature")


def rejected(*findings: Finding) -> Rejected:
    return Rejected(findings, Checkpoint.fresh())


def test_an_accepted_quote_leads_to_polling_at_the_interval() -> None:
    polling, commands = advance(NEW, ACCEPTED, CADENCE, EMERGENCY_ONLY)
    assert polling == replace(NEW, state=OperationalState.GET_QUOTE, attestation_count=1)
    assert commands == (PollAfter(2),)


def test_v_follows_the_first_accepted_quote_and_nothing_else() -> None:
    owed = replace(NEW, has_v=True)
    for outcome in (
        rejected(BAD_FILE),
        Incomplete("early", Checkpoint.fresh()),
        Unreachable("down"),
        Defect("bug"),
    ):
        _, commands = advance(owed, outcome, CADENCE, EMERGENCY_ONLY)
        assert not any(isinstance(command, ProvideV) for command in commands), outcome
    polling, commands = advance(owed, ACCEPTED, CADENCE, EMERGENCY_ONLY)
    assert (polling.state, commands) == (OperationalState.PROVIDE_V, (ProvideV("KEY"),))
    polling, commands = advance(polling, VDelivered("KEY"), CADENCE, EMERGENCY_ONLY)
    assert (polling.state, polling.v_delivered_to, commands) == (
        OperationalState.GET_QUOTE,
        "KEY",
        (PollAfter(2),),
    )
    polling, commands = advance(polling, ACCEPTED, CADENCE, EMERGENCY_ONLY)
    assert commands == (PollAfter(2),), "V is not sent twice to one key"


def test_v_goes_again_to_a_new_public_key() -> None:
    delivered = replace(ATTESTED, has_v=True, v_delivered_to="OLD KEY")
    _, commands = advance(delivered, ACCEPTED, CADENCE, EMERGENCY_ONLY)
    assert commands == (ProvideV("KEY"),)


@pytest.mark.parametrize(
    ("attempts", "expected"), [(0, PollAfter(3, renew_key=True)), (1, PollAfter(9, renew_key=True))]
)
def test_silence_is_retried_ever_later(attempts: int, expected: Command) -> None:
    polling, commands = advance(
        replace(ATTESTED, attempts=attempts), Unreachable("no route"), CADENCE, EMERGENCY_ONLY
    )
    assert (polling.state, polling.attempts, commands) == (
        OperationalState.GET_QUOTE,
        attempts + 1,
        (expected,),
    )


def test_silence_of_an_attested_agent_is_told_when_given_up() -> None:
    polling, commands = advance(
        replace(ATTESTED, attempts=2), Unreachable("no route"), CADENCE, EMERGENCY_ONLY
    )
    assert polling.state is OperationalState.FAILED
    assert polling.last_event_id == "internal.verifier.not_reachable"
    notice, end = commands
    assert isinstance(notice, Notify)
    assert notice.kind is RevocationKind.COMM_ERROR
    assert end == StopPolling()


def test_silence_of_an_agent_that_never_passed_is_not_told() -> None:
    polling, commands = advance(replace(NEW, attempts=2), Unreachable("no route"), CADENCE, EMERGENCY_ONLY)
    assert polling.state is OperationalState.FAILED
    assert commands == (StopPolling(),)


def test_v_that_cannot_be_delivered_is_retried_and_then_told() -> None:
    owing, _ = advance(replace(NEW, has_v=True), ACCEPTED, CADENCE, EMERGENCY_ONLY)
    owing, commands = advance(owing, Unreachable("down"), CADENCE, EMERGENCY_ONLY)
    assert commands == (ProvideV("KEY", 3),)
    failed, commands = advance(replace(owing, attempts=2), Unreachable("down"), CADENCE, EMERGENCY_ONLY)
    assert failed.last_event_id == "internal.verifier.not_reachable_v"
    assert isinstance(commands[0], Notify)


@pytest.mark.parametrize(
    ("outcome", "event"),
    [
        (Refused("404"), "internal.verifier.no_quote"),
        (Refused("v9.9", version=True), "internal.verifier.version_not_supported"),
    ],
)
def test_a_refusal_is_final_and_not_told(outcome: Refused, event: str) -> None:
    polling, commands = advance(ATTESTED, outcome, CADENCE, EMERGENCY_ONLY)
    assert (polling.state, polling.last_event_id, commands) == (
        OperationalState.FAILED,
        event,
        (StopPolling(),),
    )


def test_the_gravest_failure_ends_the_polling_and_is_told() -> None:
    polling, commands = advance(ATTESTED, rejected(BAD_FILE), CADENCE, EMERGENCY_ONLY)
    assert (polling.state, polling.severity_rank) == (OperationalState.INVALID_QUOTE, 2)
    assert commands == (Notify(RevocationKind.REVOCATION, BAD_FILE, "emergency"), StopPolling())


def test_an_irrecoverable_finding_is_final_whatever_the_rules_say() -> None:
    _, commands = advance(ATTESTED, rejected(BAD_FILE, BAD_QUOTE), CADENCE, IMA_IS_MILD)
    assert commands == (Notify(RevocationKind.REVOCATION, BAD_QUOTE, "emergency"), StopPolling())


def test_a_mild_failure_is_told_once_and_polled_on_until_it_heals() -> None:
    failing, commands = advance(ATTESTED, rejected(BAD_FILE), CADENCE, IMA_IS_MILD)
    assert commands == (Notify(RevocationKind.REVOCATION, BAD_FILE, "warning"), PollAfter(3, renew_key=True))
    failing, commands = advance(failing, rejected(BAD_FILE), CADENCE, IMA_IS_MILD)
    assert commands == (PollAfter(9, renew_key=True),), "the same severity is not told twice"
    assert failing.state is OperationalState.INVALID_QUOTE
    healed, _ = advance(failing, ACCEPTED, CADENCE, IMA_IS_MILD)
    assert (healed.state, healed.severity_rank) == (OperationalState.GET_QUOTE, None)


def test_silence_does_not_hide_a_failure() -> None:
    failing, _ = advance(ATTESTED, rejected(BAD_FILE), CADENCE, IMA_IS_MILD)
    silent, _ = advance(failing, Unreachable("down"), CADENCE, IMA_IS_MILD)
    assert silent.state is OperationalState.INVALID_QUOTE


def test_no_verdict_asks_for_everything_at_once_and_changes_no_state() -> None:
    polling, commands = advance(NEW, Incomplete("early", Checkpoint.fresh()), CADENCE, EMERGENCY_ONLY)
    assert (polling.state, polling.attestation_count) == (OperationalState.START, 0)
    assert commands == (PollAfter(0, renew_key=True),)


def test_a_defect_of_ours_is_retried_and_says_nothing_about_the_machine() -> None:
    polling = ATTESTED
    for _ in range(10):
        polling, commands = advance(polling, Defect("bug"), CADENCE, EMERGENCY_ONLY)
        assert polling.state is OperationalState.GET_QUOTE
        assert isinstance(commands[0], PollAfter)


@pytest.mark.parametrize(
    ("exponential", "interval", "delays"),
    [(True, 2, [2, 4, 8]), (True, 1, [1, 1, 1]), (True, 0.5, [0.5, 0.5, 0.5]), (False, 2, [2, 2, 2])],
)
def test_delays_grow_only_when_exponential_and_above_a_second(
    exponential: bool, interval: float, delays: list[float]
) -> None:
    cadence = Cadence(2, interval, 5, exponential)
    assert [cadence.retry_delay_s(attempt) for attempt in (1, 2, 3)] == delays


def test_defects_and_rejections_never_add_up_to_silence() -> None:
    polling = replace(ATTESTED, attempts=1)
    for outcome in (Defect("bug"), Defect("bug"), rejected(BAD_FILE), Unreachable("down")):
        polling, commands = advance(polling, outcome, CADENCE, IMA_IS_MILD)
        assert polling.state is not OperationalState.FAILED
        assert isinstance(commands[-1], PollAfter)
    assert polling.attempts == 1, "the rejection was an answer: counting begins anew"
