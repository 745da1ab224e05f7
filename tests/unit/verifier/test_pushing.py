"""How agents stand that attest by themselves: every edge, and what is shown of it at any time."""

import pytest
from msgspec.structs import replace

from keylime.appraisal.checkpoint import Checkpoint
from keylime.appraisal.verdict import Accepted, AcceptedQuote, Incomplete, Rejected
from keylime.findings.finding import Finding
from keylime.findings.severity import SeverityPolicy
from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime.revocation.message import RevocationKind
from keylime_verifier.agents.lifecycle import Cadence, Polling
from keylime_verifier.agents.progress import polling_of
from keylime_verifier.agents.pushing import (
    OVERDUE,
    AttestationMode,
    Happening,
    Overdue,
    PushRules,
    failure_reason,
    is_overdue,
    progress_of,
    pushed_after,
    stand_after,
    status_of,
)
from keylime_verifier.agents.records import AgentRecord, Progress, PushState
from tests.fakes.plain_enrolment import plain_enrolment

CADENCE = Cadence(quote_interval_s=2.0, retry_interval_s=1.0, max_retries=3, exponential_backoff=False)
SEVERITIES = SeverityPolicy(
    ("info", "warning", "emergency"),
    (
        {"event_id": r"internal\.verifier\.overdue", "severity_label": "warning"},
        {"event_id": r"ima\.mild", "severity_label": "info"},
        {"event_id": ".*", "severity_label": "emergency"},
    ),
)
STERN = PushRules(CADENCE, SEVERITIES, recovers=False)
MILD = PushRules(CADENCE, SEVERITIES, recovers=True)


def found(event: str) -> Finding:
    return Finding(event, {"message": "bad"}, recoverable=True, explanation="bad")


PENDING, PASSING, FAILED, SILENT, STOPPED = (
    OperationalState.START,
    OperationalState.GET_QUOTE,
    OperationalState.INVALID_QUOTE,
    OperationalState.FAILED,
    OperationalState.TENANT_FAILED,
)
PASS = Accepted(
    Checkpoint.fresh(), AcceptedQuote(hash_alg="sha256", encryption_alg="ecc256", signing_alg="ecdsa")
)
FAIL = Rejected((found("ima.validation.bad"),), Checkpoint.fresh())
NEITHER = Incomplete("the machine was started anew", Checkpoint.fresh())
GONE = Overdue()


def polling(state: OperationalState) -> Polling:
    rank = 2 if state is FAILED else 1 if state is SILENT else None
    return Polling(agent=AgentId("a"), state=state, severity_rank=rank)


@pytest.mark.parametrize("rules", [STERN, MILD])
@pytest.mark.parametrize(
    ("state", "happening", "stern", "mild", "told"),
    [
        (PENDING, PASS, PASSING, PASSING, None),
        (PENDING, FAIL, FAILED, FAILED, RevocationKind.REVOCATION),
        (PENDING, NEITHER, PENDING, PENDING, None),
        (PENDING, GONE, PENDING, PENDING, None),
        (PASSING, PASS, PASSING, PASSING, None),
        (PASSING, FAIL, FAILED, FAILED, RevocationKind.REVOCATION),
        (PASSING, NEITHER, PASSING, PASSING, None),
        (PASSING, GONE, SILENT, SILENT, RevocationKind.COMM_ERROR),
        (SILENT, PASS, PASSING, PASSING, None),
        (SILENT, FAIL, FAILED, FAILED, RevocationKind.REVOCATION),
        (SILENT, NEITHER, SILENT, SILENT, None),
        (SILENT, GONE, SILENT, SILENT, None),
        (FAILED, PASS, FAILED, PASSING, None),
        (FAILED, FAIL, FAILED, FAILED, None),
        (FAILED, NEITHER, FAILED, FAILED, None),
        (FAILED, GONE, FAILED, FAILED, None),
        (STOPPED, PASS, STOPPED, STOPPED, None),
        (STOPPED, NEITHER, STOPPED, STOPPED, None),
        (STOPPED, GONE, STOPPED, STOPPED, None),
    ],
)
def test_every_edge(
    rules: PushRules,
    state: OperationalState,
    happening: Happening,
    stern: OperationalState,
    mild: OperationalState,
    told: RevocationKind | None,
) -> None:
    after, notice = stand_after(polling(state), happening, rules)
    assert after.state is (mild if rules.recovers else stern)
    assert (None if notice is None else notice.kind) is told


def test_silence_has_a_severity_of_its_own() -> None:
    _, notice = stand_after(polling(PASSING), GONE, STERN)
    assert notice is not None
    assert (notice.finding.event_id, notice.severity_label) == (OVERDUE, "warning")


def test_a_graver_failure_is_told_again() -> None:
    mild = Rejected((found("ima.mild"),), Checkpoint.fresh())
    failed, first = stand_after(polling(PASSING), mild, STERN)
    _, second = stand_after(failed, FAIL, STERN)
    assert first is not None
    assert second is not None


def record(state: OperationalState, push: PushState) -> AgentRecord:
    progress = Progress(operational_state=state, supported_version="2.6")
    enrolment = replace(plain_enrolment("a", "site"), is_pushing=True)
    return AgentRecord("g", enrolment, progress, push=push)


def test_a_pass_after_a_failure_counts_and_hides_no_reason() -> None:
    before = record(PASSING, PushState(3, 100))
    failed, _ = stand_after(polling_of(before), FAIL, STERN)
    after_failure = progress_of(before.progress, failed, FAIL, now=50, rules=STERN)
    assert after_failure.is_polled, "it is not asked, and goes on attesting"
    passed, _ = stand_after(failed, PASS, STERN)
    after_pass = progress_of(after_failure, passed, PASS, now=60, rules=STERN)
    assert (after_pass.operational_state, after_pass.attestation_count) == (FAILED, 1)
    assert after_pass.last_findings == after_failure.last_findings != ()


@pytest.mark.parametrize(
    ("happening", "after"),
    [
        (PASS, PushState(7, 60)),
        (FAIL, PushState(7, 60)),
        (NEITHER, PushState(4, 20)),
        (GONE, PushState(4, 20)),
    ],
)
def test_verdicts_alone_move_the_deadline(happening: Happening, after: PushState) -> None:
    assert pushed_after(PushState(4, 20), happening, 7, 50, STERN) == after
    assert pushed_after(PushState(9, 20), PASS, 7, 50, STERN).judged == 9


@pytest.mark.parametrize(
    ("state", "deadline", "now", "shown"),
    [
        (PENDING, None, 10**9, "PENDING"),
        (PASSING, 100, 95, "PASS"),
        (PASSING, 100, 101, "PASS"),
        (PASSING, 100, 102, "TIMEOUT"),
        (PASSING, 100, 10**9, "TIMEOUT"),
        (PASSING, 100, 50, "PENDING"),  # the database's clock was set back
        (SILENT, 100, 95, "TIMEOUT"),
        (FAILED, 100, 95, "FAIL"),
        (FAILED, 100, 10**9, "FAIL"),
        (STOPPED, None, 95, "FAIL"),
    ],
)
def test_what_is_shown_at_any_time(
    state: OperationalState, deadline: int | None, now: float, shown: str
) -> None:
    one = record(state, PushState(1, deadline))
    assert one.push is not None
    assert status_of(one.progress, one.push, CADENCE, now) == shown
    if shown == "TIMEOUT" and state is PASSING:
        assert is_overdue(one.push, now)


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        (("qoute_validation.quote_validation",), "broken_evidence_chain"),
        (("measured_boot.invalid_pcr_4",), "broken_evidence_chain"),
        (("ima.validation.x", "ima.pcr_mismatch"), "broken_evidence_chain"),
        (("ima.validation.x",), "policy_violation"),
        (("pcr_validation.invalid_pcr_3",), "policy_violation"),
    ],
)
def test_why_evidence_failed(events: tuple[str, ...], reason: str) -> None:
    findings = [found(event) for event in events]
    assert failure_reason(findings) == reason


@pytest.mark.parametrize(
    ("mode", "polls", "takes"), [("pull", True, False), ("push", False, True), ("both", True, True)]
)
def test_modes(mode: str, polls: bool, takes: bool) -> None:
    assert (AttestationMode(mode).polls, AttestationMode(mode).takes_pushed) == (polls, takes)
