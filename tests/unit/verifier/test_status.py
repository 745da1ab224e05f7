"""What an agent's status says of trust, from its state and the age of its last pass."""

import pytest
from msgspec.structs import replace

from keylime.appraisal.checkpoint import BootSession, Checkpoint
from keylime.identifiers import AgentId
from keylime.ima.keyrings import keyring_of
from keylime.messages.verifier import AgentStatus, OperationalState
from keylime_verifier.agents.lifecycle import POLLED_STATES, Cadence
from keylime_verifier.agents.records import AgentRecord, Enrolment, Progress, Secrets
from keylime_verifier.agents.shards import MemberId, ShardClaim, VerifierId
from keylime_verifier.agents.status import attestation_status, describe, shown_record
from keylime_verifier.policies.demands import judges_nothing
from tests.captures import IMA_KEYS_DIRECTORY

NOW = 1_800_000_000
CADENCE = Cadence(quote_interval_s=2, retry_interval_s=2, max_retries=5, exponential_backoff=True)
IMA_KEYS = keyring_of([(IMA_KEYS_DIRECTORY / "ima-ec.pub.pem").read_bytes()]).to_json()
BOOT = BootSession(reset_count=1, restart_count=0, clock=1, boottime=0)
ENROLMENT = Enrolment(
    agent_id=AgentId("a1"),
    ip="127.0.0.1",
    port=9002,
    mtls_cert=None,
    ak_tpm="",
    verifier_id=VerifierId("default"),
    verifier_ip="127.0.0.1",
    verifier_port=8881,
    has_v=True,
    meta_data="{}",
    tpm_policy="{}",
    runtime_policy="a1",
    measured_boot_policy=None,
    ima_sign_verification_keys="",
    accept_tpm_hash_algs=("sha256",),
    accept_tpm_encryption_algs=("rsa",),
    accept_tpm_signing_algs=("rsassa",),
)
PASSED = Progress(
    operational_state=OperationalState.GET_QUOTE,
    supported_version="2.5",
    attestation_count=3,
    last_received_quote=NOW,
    last_successful_attestation=NOW,
    checkpoint=Checkpoint(boot=BOOT, public_key="KEY", reboots=2),
)


def status_of(progress: Progress, now: int = NOW) -> str:
    return attestation_status(AgentRecord("i", ENROLMENT, progress), CADENCE, now)


@pytest.mark.parametrize(
    ("age_s", "expected"), [(0, "PASS"), (10, "PASS"), (12, "PENDING"), (10**6, "PENDING")]
)
def test_a_pass_counts_for_five_intervals(age_s: int, expected: str) -> None:
    assert status_of(PASSED, NOW + age_s) == expected


@pytest.mark.parametrize(("age_s", "expected"), [(-1, "PASS"), (-3600, "PENDING")])
def test_a_pass_from_before_the_clock_was_set_back_is_no_recent_one(age_s: int, expected: str) -> None:
    assert status_of(PASSED, NOW + age_s) == expected


@pytest.mark.parametrize(
    "progress",
    [PASSED, replace(PASSED, operational_state=OperationalState.INVALID_QUOTE)],
)
def test_what_is_not_written_yet_is_pending_whatever_it_says(progress: Progress) -> None:
    record = AgentRecord("i", ENROLMENT, progress)
    shown = describe(
        record,
        has_runtime_policy=True,
        judges_nothing=False,
        cadence=CADENCE,
        now=NOW,
        is_unwritten=True,
    )
    assert shown.attestation_status == "PENDING"


REJECTED = replace(PASSED, operational_state=OperationalState.INVALID_QUOTE, attestation_count=2)
ROW = AgentRecord("i", ENROLMENT, PASSED, ShardClaim(MemberId("me"), 4), 1)


def test_a_rejection_that_waits_is_shown_whoever_has_taken_the_agent_over_since() -> None:
    waiting = replace(ROW, progress=REJECTED)
    taken_over = replace(ROW, claim=ShardClaim(MemberId("other"), 5))
    recalled = replace(ROW, recalls=2)
    for row in (ROW, taken_over, recalled):
        shown, is_unwritten = shown_record(row, waiting, waiting)
        assert is_unwritten
        assert shown.progress.operational_state is OperationalState.INVALID_QUOTE
        assert shown.progress.attestation_count == 3  # what others have counted may have been shown


def test_what_stands_rejected_is_not_pending_for_what_waits() -> None:
    row = replace(ROW, progress=REJECTED, recalls=2)
    for waiting in (ROW, replace(ROW, progress=REJECTED)):
        assert shown_record(row, waiting, waiting) == (row, False)


def test_a_pass_that_waits_is_pending_and_shown_as_long_as_it_can_count() -> None:
    later = replace(ROW, progress=replace(PASSED, attestation_count=9))
    assert shown_record(ROW, later, later) == (later, True)
    recalled = replace(ROW, recalls=2)
    assert shown_record(recalled, later, later) == (recalled, True)
    assert shown_record(ROW, later, None) == (later, False)
    assert shown_record(recalled, later, None) == (recalled, False)
    assert shown_record(ROW, None, None) == (ROW, False)


def test_a_verdict_about_a_former_enrolment_is_not_shown() -> None:
    row = replace(ROW, generation="ii")
    former = replace(ROW, progress=REJECTED)
    assert shown_record(row, former, former) == (row, False)


@pytest.mark.parametrize(
    ("runtime", "has_runtime", "boot", "expected"),
    [
        ("a1", False, None, (None, None)),  # an agent that was added without any
        ("a1", True, "a1", ("a1", "a1")),
        ("fleet", True, "boots", ("fleet", "boots")),
        ("empty", False, None, ("empty", None)),
    ],
)
def test_the_names_of_an_agents_policies_are_shown(
    runtime: str, has_runtime: bool, boot: str | None, expected: tuple[str | None, str | None]
) -> None:
    enrolment = replace(ENROLMENT, runtime_policy=runtime, measured_boot_policy=boot)
    shown = describe(
        AgentRecord("i", enrolment, PASSED),
        has_runtime_policy=has_runtime,
        judges_nothing=False,
        cadence=CADENCE,
        now=NOW,
    )
    assert (shown.runtime_policy_name, shown.mb_policy_name) == expected


@pytest.mark.parametrize("state", list(OperationalState))
def test_only_a_state_that_is_polled_can_pass(state: OperationalState) -> None:
    status = status_of(replace(PASSED, operational_state=state))
    assert (status == "PASS") == (state in POLLED_STATES)
    assert (status == "FAIL") == (state in (7, 9, 10))


def test_what_was_proven_before_an_operators_act_does_not_count() -> None:
    assert status_of(replace(PASSED, checkpoint=Checkpoint.fresh())) == "PENDING"


def test_an_agent_that_never_passed_does_not_pass() -> None:
    assert status_of(Progress(supported_version="2.5")) == "PENDING"


def described(progress: Progress, *, judges_nothing: bool = False) -> AgentStatus:
    return describe(
        AgentRecord("i", ENROLMENT, progress),
        has_runtime_policy=not judges_nothing,
        judges_nothing=judges_nothing,
        cadence=CADENCE,
        now=NOW,
    )


@pytest.mark.parametrize(
    ("state", "is_judged", "is_not"),
    [
        (OperationalState.GET_QUOTE, "attested", "attested, nothing judged"),
        (OperationalState.INVALID_QUOTE, "failed", "failed"),
        (OperationalState.TENANT_FAILED, "stopped by an operator", "stopped by an operator"),
        (OperationalState.TERMINATED, "pending", "pending, nothing judged"),
    ],
)
def test_l7_a_status_says_in_words_whether_anything_is_judged(
    state: OperationalState, is_judged: str, is_not: str
) -> None:
    progress = replace(PASSED, operational_state=state)
    assert described(progress).attestation_text == is_judged
    unjudged = described(progress, judges_nothing=True)
    assert unjudged.attestation_text == is_not
    assert unjudged.attestation_status == described(progress).attestation_status, "what clients know stays"


@pytest.mark.parametrize(
    ("changes", "runtime_policy", "expected"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"measured_boot_policy": "a1"}, False, False),
        ({"tpm_policy": '{"mask": "0x408000"}'}, False, True),
        ({"tpm_policy": '{"22": "00", "mask": "0x0"}'}, False, False),
        ({"tpm_policy": '{"22": [], "mask": "0x0"}'}, False, False),
        ({"tpm_policy": '{"mask": "0x400"}'}, False, False),
        ({"ima_sign_verification_keys": IMA_KEYS}, False, False),
        ({"ima_sign_verification_keys": "[]"}, False, True),
        ({"tpm_policy": "{"}, False, False),
        ({"ima_sign_verification_keys": "{"}, False, False),
    ],
)
def test_l7_an_agent_is_unjudged_when_no_policy_makes_a_demand(
    changes: dict[str, str], runtime_policy: bool, expected: bool
) -> None:
    enrolment = replace(ENROLMENT, **changes)
    assert judges_nothing(enrolment, runtime_policy=runtime_policy) is expected


def test_the_share_is_never_shown() -> None:
    shown = described(PASSED)
    assert shown.v is None
    assert (shown.attestation_period, shown.maximum_attestation_interval, shown.reboots) == ("2s", "10s", 2)


def test_secrets_have_no_repr() -> None:
    assert repr(Secrets("canary", "canary")) == "Secrets(...)"
