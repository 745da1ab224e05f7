"""What an agent's status says of trust, from its state and the age of its last pass."""

from dataclasses import replace

import pytest

from keylime.appraisal.checkpoint import BootSession, Checkpoint
from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime_verifier.lifecycle import POLLED_STATES, Cadence
from keylime_verifier.records import AgentRecord, Enrolment, Progress, Secrets
from keylime_verifier.status import attestation_status, describe

NOW = 1_800_000_000
CADENCE = Cadence(quote_interval_s=2, retry_interval_s=2, max_retries=5, exponential_backoff=True)
BOOT = BootSession(reset_count=1, restart_count=0, clock=1, boottime=0)
ENROLMENT = Enrolment(
    agent_id=AgentId("a1"),
    ip="127.0.0.1",
    port=9002,
    mtls_cert=None,
    ak_tpm="",
    verifier_id="default",
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


@pytest.mark.parametrize("state", list(OperationalState))
def test_only_a_state_that_is_polled_can_pass(state: OperationalState) -> None:
    status = status_of(replace(PASSED, operational_state=state))
    assert (status == "PASS") == (state in POLLED_STATES)
    assert (status == "FAIL") == (state in (7, 9, 10))


def test_what_was_proven_before_an_operators_act_does_not_count() -> None:
    assert status_of(replace(PASSED, checkpoint=Checkpoint.fresh())) == "PENDING"


def test_an_agent_that_never_passed_does_not_pass() -> None:
    assert status_of(Progress(supported_version="2.5")) == "PENDING"


def test_the_share_is_never_shown() -> None:
    shown = describe(AgentRecord("i", ENROLMENT, PASSED), has_runtime_policy=True, cadence=CADENCE, now=NOW)
    assert shown.v is None
    assert (shown.attestation_period, shown.maximum_attestation_interval, shown.reboots) == ("2s", "10s", 2)


def test_secrets_have_no_repr() -> None:
    assert repr(Secrets("canary", "canary")) == "Secrets(...)"
