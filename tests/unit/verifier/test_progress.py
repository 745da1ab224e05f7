"""The bookkeeping after each outcome, and which of it may be written a second later."""

import dataclasses

import pytest
from msgspec.structs import replace

from keylime.appraisal.checkpoint import BootSession, Checkpoint
from keylime.appraisal.verdict import Accepted, AcceptedQuote, Incomplete, Rejected
from keylime.findings.finding import Finding
from keylime.findings.severity import SeverityPolicy
from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime_verifier.agents.lifecycle import (
    Cadence,
    Defect,
    Outcome,
    Polling,
    Refused,
    Unreachable,
    Unusable,
    VDelivered,
    WrongKey,
    advance,
)
from keylime_verifier.agents.progress import is_routine, progress_after
from keylime_verifier.agents.records import Progress

CADENCE = Cadence(quote_interval_s=2, retry_interval_s=2, max_retries=5, exponential_backoff=True)
SEVERITIES = SeverityPolicy(("info", "emergency"), [{"event_id": "ima.*", "severity_label": "info"}])
PROVEN = Checkpoint(boot=BootSession(1, 0, 5, 0), public_key="KEY")
QUOTE = AcceptedQuote(hash_alg="sha256", encryption_alg="rsa2048", signing_alg="rsassa")
MILD = Finding("ima.x", {}, recoverable=True, explanation="a file")
GRAVE = Finding("qoute_validation.x", {}, recoverable=False, explanation="a quote")


def after(before: Progress, outcome: Outcome, *, has_v: bool = False, now: int = 100) -> Progress:
    polling = Polling(
        agent=AgentId("a1"),
        state=before.operational_state,
        attestation_count=before.attestation_count,
        severity_rank=before.severity_level,
        has_v=has_v,
    )
    polling, _ = advance(polling, outcome, CADENCE, SEVERITIES)
    return progress_after(
        before, polling, outcome, now=now, version="2.5", goes_on=True, severities=SEVERITIES
    )


NEW = Progress(supported_version="2.5")
PASSING = after(after(NEW, Accepted(PROVEN, QUOTE)), Accepted(PROVEN, QUOTE))


def test_a_pass_counts_and_moves_the_checkpoint() -> None:
    progress = after(NEW, Accepted(PROVEN, QUOTE))
    assert (progress.attestation_count, progress.checkpoint) == (1, PROVEN)
    assert progress.last_successful_attestation == progress.last_received_quote == 100
    assert progress.operational_state is OperationalState.GET_QUOTE


def test_the_first_pass_is_written_at_once_and_later_ones_may_wait() -> None:
    assert not is_routine(NEW, after(NEW, Accepted(PROVEN, QUOTE)))
    assert is_routine(PASSING, after(PASSING, Accepted(PROVEN, QUOTE), now=200))


@pytest.mark.parametrize(
    "outcome",
    [Rejected((MILD,), PROVEN), Rejected((GRAVE,), PROVEN), Unreachable("x"), Refused("x")],
)
def test_what_changes_the_picture_is_written_at_once(outcome: Outcome) -> None:
    assert not is_routine(PASSING, after(PASSING, outcome))


def test_v_on_its_way_is_written_at_once() -> None:
    assert not is_routine(PASSING, after(PASSING, Accepted(PROVEN, QUOTE), has_v=True))
    assert not is_routine(PASSING, after(PASSING, VDelivered("KEY")))


def test_a_rejection_keeps_the_time_of_the_last_pass() -> None:
    progress = after(PASSING, Rejected((GRAVE,), PROVEN.restarted()), now=200)
    assert (progress.last_successful_attestation, progress.last_received_quote) == (100, 200)
    assert progress.attestation_count == PASSING.attestation_count
    assert [finding.explanation for finding in progress.last_findings] == ["a quote"]


def test_silence_is_dated_from_its_beginning() -> None:
    silent = after(after(PASSING, Unreachable("x"), now=200), Unreachable("x"), now=300)
    assert silent.unreachable_since == 200
    assert after(silent, Accepted(PROVEN, QUOTE)).unreachable_since is None
    assert after(silent, Incomplete("x", PROVEN)).unreachable_since is None
    assert after(silent, Defect("x")).unreachable_since == 200
    assert after(silent, Unusable("x")).unreachable_since is None, "a machine that answers is reachable"
    assert after(silent, WrongKey("x")).unreachable_since == 200, "another one answers"


def test_no_verdict_is_no_pass() -> None:
    progress = after(PASSING, Incomplete("x", PROVEN.restarted()), now=200)
    assert (progress.attestation_count, progress.last_successful_attestation) == (2, 100)


def test_a_thousand_findings_are_stored_in_part() -> None:
    many = tuple(dataclasses.replace(MILD, explanation=str(number)) for number in range(1000))
    assert len(after(PASSING, Rejected(many, PROVEN)).last_findings) == 50


def given_up(before: Progress, outcome: Outcome) -> Progress:
    """After the last attempt that the cadence allows."""
    polling = Polling(
        agent=AgentId("a1"), state=before.operational_state, attempts=CADENCE.max_retries, attestation_count=1
    )
    polling, _ = advance(polling, outcome, CADENCE, SEVERITIES)
    return progress_after(
        before, polling, outcome, now=1_790_000_000, version="2.5", goes_on=False, severities=SEVERITIES
    )


@pytest.mark.parametrize(
    ("outcome", "cause", "remedy"),
    [
        (Unreachable("cannot connect: Connection refused"), "Connection refused", "start keylime_agent"),
        (Unreachable("no answer within 60 s"), "no answer within", "firewall"),
        (WrongKey("another key than the pinned one"), "did not hold its key", "-c update -u a1"),
        (Unreachable("cannot connect: No route to host"), "No route", "address"),
        (Unreachable("certificate has expired"), "expired", "renew"),
        (Unusable("the answer is larger than 5 bytes"), "larger", "agent's log"),
        (Refused("no API version in common", version=True), "API version", "update the agent"),
    ],
)
def test_an_agent_that_is_given_up_shows_why_and_what_to_type(
    outcome: Outcome, cause: str, remedy: str
) -> None:
    progress = given_up(PASSING, outcome)
    assert progress.operational_state is OperationalState.FAILED
    (finding,) = progress.last_findings
    assert cause in finding.explanation
    assert remedy in (finding.hint or "")
    if not isinstance(outcome, WrongKey):
        assert "`keylime_tenant -c reactivate -u a1`" in (finding.hint or "")
    if isinstance(outcome, Unreachable):
        assert "6 times in a row" in finding.explanation
        assert "since 2026-09-21T" in finding.explanation


def test_the_reasons_of_a_rejection_stay_below_those_of_a_silence() -> None:
    mild = after(PASSING, Rejected((MILD,), Checkpoint.fresh()))
    once = given_up(mild, Unreachable("no answer within 60 s"))
    again = given_up(replace(once, operational_state=mild.operational_state), Unreachable("no route"))
    assert [found.event_id for found in again.last_findings] == ["internal.verifier.not_reachable", "ima.x"]


def test_silence_that_is_still_retried_changes_no_reasons() -> None:
    assert after(PASSING, Unreachable("x")).last_findings == ()
