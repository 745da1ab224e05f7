import pytest

from keylime.hashes import HashAlgorithm
from keylime.measured_boot.appraisal import BootResult, appraise_boot_log
from keylime.measured_boot.replay import parse_boot_log
from keylime.tpm.pcr import MEASURED_BOOT_PCRS
from tests.captures import Stage, capture, stages
from tests.fakes.measured_boot import SHA256, appraise, grub_pcrs, policy, reference_state

LOG = capture("grub-secureboot").boot_log
NO_DEMANDS = policy({})


def ids(result: BootResult) -> list[str]:
    return [finding.event_id for finding in result.findings]


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: f"{stage.capture}/{stage.name}")
def test_genuine_evidence_is_accepted_in_every_bank(stage: Stage) -> None:
    log = capture(stage.capture).boot_log
    for label in stage.banks:
        bank = HashAlgorithm.from_label(label)
        result = appraise(log, NO_DEMANDS, stage.pcrs(label), bank)
        assert result.findings == ()
        assert result.consumed == MEASURED_BOOT_PCRS
        assert result.replayed[bank][0] == stage.pcrs(label)[0]
        measured = stage.expected["boot_aggregate"]
        assert measured["digest"] in result.boot_aggregates[HashAlgorithm.from_label(measured["algorithm"])]


def test_a_log_read_before_gives_the_same_result_as_its_bytes() -> None:
    for log in (LOG, b"garbage"):
        assert appraise(log, NO_DEMANDS, grub_pcrs()) == appraise_boot_log(
            parse_boot_log(log), bank=SHA256, quoted=grub_pcrs(), policy=NO_DEMANDS, evaluate_content=True
        )


def test_a_pcr_that_the_log_does_not_lead_to_is_named_with_both_values() -> None:
    result = appraise(LOG, NO_DEMANDS, {**grub_pcrs(), 4: bytes(32), 11: b"\1" * 32})
    assert ids(result) == ["measured_boot.invalid_pcr_4", "measured_boot.invalid_pcr_11"]
    first, second = result.findings
    assert first.context["got"] == grub_pcrs()[4].hex()
    assert first.context["expected"] == "00" * 32
    assert (first.observed, first.expected) == (grub_pcrs()[4].hex(), ("00" * 32,))
    assert second.context["got"] == "00" * 32  # no event: the start value
    assert first.recoverable
    assert second.recoverable


def test_pcr_10_is_none_of_the_boot_log() -> None:
    assert appraise(LOG, NO_DEMANDS, {**grub_pcrs(), 10: bytes(32)}).findings == ()


def test_pcrs_outside_the_policy_are_left_to_others() -> None:
    result = appraise(LOG, policy(reference_state()), {**grub_pcrs(), 11: b"\1" * 32})
    assert result.findings == ()
    assert 11 not in result.consumed


def test_content_is_judged_only_when_asked_for() -> None:
    demanding = policy({"any": "thing"}, "reject-all")
    assert ids(appraise(LOG, demanding, grub_pcrs())) == ["measured_boot.policy_reject-all"]
    result = appraise_boot_log(LOG, bank=SHA256, quoted=grub_pcrs(), policy=demanding, evaluate_content=False)
    assert result.findings == ()
    assert result.consumed == MEASURED_BOOT_PCRS


def test_content_is_not_judged_when_the_log_is_not_true() -> None:
    demanding = policy({"any": "thing"}, "reject-all")
    assert ids(appraise(LOG, demanding, {**grub_pcrs(), 4: bytes(32)})) == ["measured_boot.invalid_pcr_4"]


def test_a_missing_log_is_a_finding_for_every_pcr_that_needs_it() -> None:
    result = appraise(None, NO_DEMANDS, grub_pcrs())
    assert ids(result) == [f"pcr_validation.unused_pcr_{index}" for index in sorted(MEASURED_BOOT_PCRS)]
    assert all(finding.recoverable for finding in result.findings)
    assert not result.boot_aggregates
    assert result.consumed == frozenset()


def test_a_missing_log_and_missing_pcrs_are_findings() -> None:
    assert ids(appraise(None, NO_DEMANDS, {})) == ["measured_boot.missing_pcrs"]


@pytest.mark.parametrize("evaluate_content", [True, False])
def test_pcrs_that_were_not_quoted_are_missing_whether_content_is_judged_or_not(
    evaluate_content: bool,
) -> None:
    quoted = {index: value for index, value in grub_pcrs().items() if index not in {7, 14}}
    result = appraise_boot_log(
        LOG, bank=SHA256, quoted=quoted, policy=NO_DEMANDS, evaluate_content=evaluate_content
    )
    assert ids(result) == ["measured_boot.missing_pcrs"]
    assert result.findings[0].context["data"] == [7, 14]
    assert result.consumed == MEASURED_BOOT_PCRS - {7, 14}


@pytest.mark.parametrize("log", [b"", b"garbage", LOG[:-1], LOG + b"\0"])
def test_a_log_that_cannot_be_read_is_one_finding(log: bytes) -> None:
    result = appraise(log, NO_DEMANDS, grub_pcrs())
    assert ids(result) == ["measured_boot.parser.tpm2_eventlog.error"]
    assert not result.boot_aggregates
    assert result.consumed == frozenset()


def test_a_log_without_the_quoted_bank_proves_nothing() -> None:
    result = appraise(LOG, NO_DEMANDS, {index: bytes(48) for index in range(24)}, HashAlgorithm.SHA384)
    assert ids(result) == ["measured_boot.parser.invalid_pcrs_hashes"]
    assert result.findings[0].expected == ("sha384",)
    assert result.consumed == frozenset()
