from collections.abc import Mapping
from dataclasses import replace

import pytest

from keylime.hashes import HashAlgorithm
from keylime.measured_boot.appraisal import BootResult, appraise_boot_log
from keylime.measured_boot.boot_policy import MeasuredBootPolicy
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.replay import parse_boot_log, replay_event_log
from keylime.tpm.pcr import MEASURED_BOOT_PCRS
from tests.captures import Stage, capture, stages
from tests.fakes.event_logs import Record, build_log, header, record
from tests.fakes.measured_boot import (
    SHA256,
    appraise,
    grub_pcrs,
    grub_records,
    pcrs_after,
    policy,
    reference_state,
)

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
        assert result.replayed[bank][0] == stage.pcrs(label)[0]
        measured = stage.expected["boot_aggregate"]
        assert measured["digest"] in result.boot_aggregates[HashAlgorithm.from_label(measured["algorithm"])]


def test_a_log_read_before_gives_the_same_result_as_its_bytes() -> None:
    for log in (LOG, b"garbage", header()):
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


def test_content_is_judged_only_when_asked_for() -> None:
    demanding = policy({"any": "thing"}, "reject-all")
    assert ids(appraise(LOG, demanding, grub_pcrs())) == ["measured_boot.policy_reject-all"]
    result = appraise_boot_log(LOG, bank=SHA256, quoted=grub_pcrs(), policy=demanding, evaluate_content=False)
    assert result.findings == ()


def test_content_is_not_judged_when_the_log_is_not_true() -> None:
    demanding = policy({"any": "thing"}, "reject-all")
    assert ids(appraise(LOG, demanding, {**grub_pcrs(), 4: bytes(32)})) == ["measured_boot.invalid_pcr_4"]


@pytest.mark.parametrize("log", [None, b""])
def test_a_missing_log_is_a_finding_for_every_pcr_that_needs_it(log: bytes | None) -> None:
    """A log without a byte is what firmware leaves that hands none on: neither damaged nor forged."""
    result = appraise(log, NO_DEMANDS, grub_pcrs())
    assert ids(result) == [f"pcr_validation.unused_pcr_{index}" for index in sorted(MEASURED_BOOT_PCRS)]
    assert all(finding.recoverable for finding in result.findings)
    assert not result.boot_aggregates


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


@pytest.mark.parametrize("log", [b"garbage", LOG[:-1], LOG + b"\0"])
def test_a_log_that_cannot_be_read_is_one_finding(log: bytes) -> None:
    result = appraise(log, NO_DEMANDS, grub_pcrs())
    assert ids(result) == ["measured_boot.parser.tpm2_eventlog.error"]
    assert not result.boot_aggregates


def test_a_log_without_the_quoted_bank_proves_nothing() -> None:
    result = appraise(LOG, NO_DEMANDS, {index: bytes(48) for index in range(24)}, HashAlgorithm.SHA384)
    assert ids(result) == ["measured_boot.parser.invalid_pcrs_hashes"]
    assert result.findings[0].expected == ("sha384",)


# -- what is no boot


def no_events() -> Mapping[int, bytes]:
    """The PCRs of a machine whose firmware measured nothing."""
    return pcrs_after([])


def without_separators() -> list[Record]:
    return [item for item in grub_records() if item.type_code != EventType.SEPARATOR]


RELABELLED = [
    replace(item, type_code=EventType.ACTION) if item.type_code == EventType.SEPARATOR else item
    for item in grub_records()
]
NO_BOOT = {
    "header alone": [],
    "nothing that is extended": [record(0, EventType.NO_ACTION, b"StartupLocality\0\0")],
    "no separator": without_separators(),
    "separators by another name": RELABELLED,
    "separators of other PCRs": [
        *without_separators(),
        *(record(pcr, EventType.SEPARATOR, bytes(4)) for pcr in (8, 9, 12, 14)),
    ],
    "separators that were not measured": [
        *without_separators(),
        *(record(pcr, EventType.SEPARATOR, bytes(4), b"something else") for pcr in range(8)),
    ],
    "separators of no value": [
        *without_separators(),
        *(record(pcr, EventType.SEPARATOR, b"separator") for pcr in range(8)),
    ],
}


@pytest.mark.parametrize("records", NO_BOOT.values(), ids=NO_BOOT)
@pytest.mark.parametrize("judged_by", [NO_DEMANDS, policy({"a": 1}, "accept-all")], ids=["{}", "accept-all"])
@pytest.mark.parametrize("evaluate_content", [True, False])
def test_a_log_without_separators_is_no_boot_although_it_explains_the_pcrs(
    records: list[Record], judged_by: MeasuredBootPolicy, evaluate_content: bool
) -> None:
    result = appraise_boot_log(
        build_log(records),
        bank=SHA256,
        quoted=pcrs_after(records),
        policy=judged_by,
        evaluate_content=evaluate_content,
    )
    assert ids(result) == ["measured_boot.no_boot"]
    assert result.findings[0].recoverable


def test_no_boot_is_named_beside_the_pcrs_that_it_does_not_explain() -> None:
    assert ids(appraise(header(), NO_DEMANDS, no_events())) == ["measured_boot.no_boot"]
    found = ids(appraise(header(), NO_DEMANDS, {**no_events(), 4: b"\1" * 32}))
    assert found == ["measured_boot.no_boot", "measured_boot.invalid_pcr_4"]


@pytest.mark.parametrize("value", [bytes(4), b"\xff" * 4, b"\1\0\0\0"])
@pytest.mark.parametrize("pcr", [0, 3, 7])
def test_one_separator_of_any_value_shows_that_a_firmware_measured(pcr: int, value: bytes) -> None:
    """Old firmware separates PCR 7 alone, SeaBIOS writes all ones: what a boot must hold is for a policy."""
    records = [*without_separators(), record(pcr, EventType.SEPARATOR, value)]
    assert appraise(build_log(records), NO_DEMANDS, pcrs_after(records)).findings == ()


def test_a_separator_counts_in_the_bank_that_it_was_measured_into() -> None:
    separator = record(0, EventType.SEPARATOR, bytes(4))
    digests = tuple(
        (bank, bytes(bank.size) if bank is SHA256 else digest) for bank, digest in separator.digests
    )
    log = build_log([*without_separators(), replace(separator, digests=digests)])
    pcrs = replay_event_log(parse_event_log(log))
    assert ids(appraise(log, NO_DEMANDS, pcrs[SHA256])) == ["measured_boot.no_boot"]
    assert appraise(log, NO_DEMANDS, pcrs[HashAlgorithm.SHA1], HashAlgorithm.SHA1).findings == ()


@pytest.mark.parametrize(("pcrs", "accepted"), [({7, 11}, True), ({4, 11}, False), ({8, 9, 11}, True)])
def test_a_separator_counts_in_a_pcr_that_is_compared(pcrs: set[int], accepted: bool) -> None:
    """Where a policy compares none of the firmware's PCRs, there is no better word than the log's."""
    records = [*without_separators(), record(7, EventType.SEPARATOR, bytes(4))]
    judged_by = replace(NO_DEMANDS, required_pcrs=frozenset(pcrs))
    result = appraise(build_log(records), judged_by, pcrs_after(records))
    assert ids(result) == ([] if accepted else ["measured_boot.no_boot"])
