"""The polling state machine against docs/reference/rest-api.md, 5 and the decisions that change it."""

import dataclasses

import pytest
from msgspec.structs import replace

from keylime.appraisal.checkpoint import Checkpoint
from keylime.appraisal.verdict import Accepted, AcceptedQuote, Incomplete, Rejected
from keylime.findings.finding import Finding
from keylime.findings.severity import SeverityPolicy
from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime.revocation.message import RevocationKind
from keylime_verifier.agents.lifecycle import (
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
    Unusable,
    VDelivered,
    WrongKey,
    advance,
    silence_remark,
)

CADENCE = Cadence(quote_interval_s=2, retry_interval_s=3, max_retries=2, exponential_backoff=True)
FINAL_SILENCE = dataclasses.replace(CADENCE, resume_after_silence=False)
ASKED_ON = PollAfter(15, renew_key=True)
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
    assert end == ASKED_ON


def test_n12_answers_that_nobody_can_use_are_retried_as_silence_is_but_not_called_that() -> None:
    polling = ATTESTED
    for attempt in (1, 2):
        polling, commands = advance(polling, Unusable("101 MiB"), CADENCE, EMERGENCY_ONLY)
        assert (polling.state, polling.attempts) == (OperationalState.GET_QUOTE, attempt)
        assert commands == (PollAfter(3**attempt, renew_key=True),)
    failed, commands = advance(polling, Unusable("101 MiB"), CADENCE, EMERGENCY_ONLY)
    assert failed.last_event_id == "internal.verifier.unusable_answer"
    notice, end = commands
    assert isinstance(notice, Notify)
    assert notice.kind is RevocationKind.COMM_ERROR
    reason = "the agent gave no answer that can be used 3 times in a row: 101 MiB"
    assert notice.finding.explanation == reason
    assert end == ASKED_ON
    owing, _ = advance(replace(NEW, has_v=True), ACCEPTED, CADENCE, EMERGENCY_ONLY)
    failed, _ = advance(replace(owing, attempts=2), Unusable("nonsense"), CADENCE, EMERGENCY_ONLY)
    assert failed.last_event_id == "internal.verifier.unusable_answer_v"


def test_who_answers_without_the_agents_key_is_retried_and_not_called_silence() -> None:
    polling = ATTESTED
    for attempt in (1, 2):
        polling, commands = advance(polling, WrongKey("another key"), CADENCE, EMERGENCY_ONLY)
        assert (polling.state, polling.attempts) == (OperationalState.GET_QUOTE, attempt)
        assert commands == (PollAfter(3**attempt, renew_key=True),)
    failed, (notice, end) = advance(polling, WrongKey("another key"), CADENCE, EMERGENCY_ONLY)
    assert failed.last_event_id == "internal.verifier.wrong_key"
    assert failed.failure is not None
    assert f"keylime_tenant -c update -u {polling.agent}" in (failed.failure.hint or "")
    assert isinstance(notice, Notify)
    assert notice.kind is RevocationKind.COMM_ERROR, "nothing was proven against the machine"
    assert end == ASKED_ON


def test_a_machine_that_comes_back_repaired_after_a_silence_shows_its_new_key_and_what_to_type() -> None:
    failed, _ = advance(replace(ATTESTED, attempts=2), Unreachable("off"), CADENCE, EMERGENCY_ONLY)
    back, commands = advance(failed, WrongKey("another key"), CADENCE, EMERGENCY_ONLY)
    assert back.last_event_id == "internal.verifier.wrong_key"
    assert back.failure is not None
    assert back.failure.explanation.endswith("did not hold its key: another key")
    assert "-c update" in (back.failure.hint or "")
    assert commands == (ASKED_ON,), "nobody is told a second time"
    assert advance(back, WrongKey("another key"), CADENCE, EMERGENCY_ONLY)[0] == back


def test_silence_of_an_agent_that_never_passed_is_not_told() -> None:
    polling, commands = advance(replace(NEW, attempts=2), Unreachable("no route"), CADENCE, EMERGENCY_ONLY)
    assert polling.state is OperationalState.FAILED
    assert commands == (ASKED_ON,)


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
def test_a_refusal_is_not_told(outcome: Refused, event: str) -> None:
    polling, commands = advance(ATTESTED, outcome, CADENCE, EMERGENCY_ONLY)
    assert (polling.state, polling.last_event_id, commands) == (
        OperationalState.FAILED,
        event,
        (ASKED_ON,),
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


SILENCES: list[Unreachable | Unusable | WrongKey | Refused] = [
    Unreachable("down"),
    WrongKey("another key"),
    Unusable("101 MiB"),
    Refused("404"),
    Refused("v9.9", version=True),
]


@pytest.mark.parametrize("silence", SILENCES)
def test_silence_is_never_final(silence: Unreachable | Unusable | WrongKey | Refused) -> None:
    failed, _ = advance(replace(ATTESTED, attempts=2), silence, CADENCE, EMERGENCY_ONLY)
    silent = failed
    for again in SILENCES:
        silent, commands = advance(failed, again, CADENCE, EMERGENCY_ONLY)
        assert silent.state is OperationalState.FAILED
        assert commands == (ASKED_ON,), "what was told is not told again"
    back, commands = advance(silent, ACCEPTED, CADENCE, EMERGENCY_ONLY)
    assert (back.state, back.severity_rank, back.attempts) == (OperationalState.GET_QUOTE, None, 0)
    assert commands == (PollAfter(2),)


@pytest.mark.parametrize("silence", [Unreachable("down"), WrongKey("pinned")])
def test_silence_is_final_for_those_who_want_it(silence: Unreachable | WrongKey) -> None:
    _, commands = advance(replace(ATTESTED, attempts=2), silence, FINAL_SILENCE, EMERGENCY_ONLY)
    assert commands[-1] == StopPolling()


@pytest.mark.parametrize("answer", [Unusable("500"), Refused("404"), Refused("v9.9", version=True)])
def test_who_answers_and_proves_nothing_is_asked_on_whatever_is_wanted_of_silence(
    answer: Unusable | Refused,
) -> None:
    polling = replace(ATTESTED, attempts=2)
    for _ in range(3):
        polling, commands = advance(polling, answer, FINAL_SILENCE, EMERGENCY_ONLY)
        assert commands[-1] == ASKED_ON
    back, _ = advance(polling, ACCEPTED, FINAL_SILENCE, EMERGENCY_ONLY)
    assert back.state is OperationalState.GET_QUOTE


def test_who_was_silent_and_answers_again_is_not_called_unreachable_any_more() -> None:
    silent, _ = advance(replace(ATTESTED, attempts=2), Unreachable("down"), CADENCE, EMERGENCY_ONLY)
    answering, commands = advance(silent, Unusable("500"), CADENCE, EMERGENCY_ONLY)
    assert answering.last_event_id == "internal.verifier.unusable_answer"
    assert answering.failure is not None
    assert answering.failure.explanation == "the agent gave no answer that can be used: 500"
    assert commands == (ASKED_ON,)
    same, _ = advance(answering, Unusable("503"), CADENCE, EMERGENCY_ONLY)
    assert same == answering, "nothing to write"
    gone, commands = advance(answering, Unreachable("down"), CADENCE, EMERGENCY_ONLY)
    assert gone.last_event_id == "internal.verifier.not_reachable"
    assert commands == (ASKED_ON,)


def test_the_severity_of_proving_nothing_is_the_operators() -> None:
    mild = {"event_id": r"internal\.verifier\.unusable_answer.*", "severity_label": "info"}
    severities = SeverityPolicy(LABELS, [mild])
    failed, commands = advance(replace(ATTESTED, attempts=2), Unusable("500"), CADENCE, severities)
    notice = commands[0]
    assert isinstance(notice, Notify)
    assert notice.severity_label == "info"
    silent, commands = advance(replace(ATTESTED, attempts=2), Unreachable("down"), CADENCE, severities)
    assert isinstance(commands[0], Notify)
    assert commands[0].severity_label == "emergency"
    assert (failed.severity_rank or 0) < (silent.severity_rank or 0)


def test_silence_does_not_hide_what_evidence_shows_afterwards() -> None:
    failed, _ = advance(replace(ATTESTED, attempts=2), Unreachable("down"), CADENCE, EMERGENCY_ONLY)
    rejected_now, commands = advance(failed, rejected(BAD_FILE), CADENCE, EMERGENCY_ONLY)
    assert rejected_now.state is OperationalState.INVALID_QUOTE
    assert commands == (Notify(RevocationKind.REVOCATION, BAD_FILE, "emergency"), StopPolling())


def test_v_that_was_owed_before_a_silence_follows_the_pass_after_it() -> None:
    owing, _ = advance(replace(NEW, has_v=True), ACCEPTED, CADENCE, EMERGENCY_ONLY)
    failed, _ = advance(replace(owing, attempts=2), Unreachable("down"), CADENCE, EMERGENCY_ONLY)
    _, commands = advance(failed, ACCEPTED, CADENCE, EMERGENCY_ONLY)
    assert commands == (ProvideV("KEY"),)


def test_the_pause_before_a_retry_grows_to_a_minute_and_not_further() -> None:
    cadence = dataclasses.replace(CADENCE, max_retries=10**9)
    assert [cadence.retry_delay_s(attempt) for attempt in (3, 4, 1000)] == [27, 60, 60]
    assert dataclasses.replace(cadence, retry_interval_s=90).retry_delay_s(2) == 90


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


def test_the_log_hears_once_of_silence_that_is_asked_on_and_of_its_end() -> None:
    failed = replace(ATTESTED, state=OperationalState.FAILED, last_event_id="verifier.comm_error")
    said = silence_remark(ATTESTED, failed, (ASKED_ON,), CADENCE)
    assert said == "Failed (verifier.comm_error), asked on every 15 s until it answers"
    assert silence_remark(failed, failed, (ASKED_ON,), CADENCE) is None
    assert silence_remark(ATTESTED, failed, (StopPolling(),), CADENCE) is None
    assert silence_remark(failed, ATTESTED, (ASKED_ON,), CADENCE) == (
        "back and good, it passes again after its silence"
    )
    assert silence_remark(ATTESTED, ATTESTED, (ASKED_ON,), CADENCE) is None
