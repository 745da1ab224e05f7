import hashlib
from dataclasses import replace as with_changes
from typing import Any

import pytest

from keylime.hashes import HashAlgorithm
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.replay import (
    ParsedBootLog,
    UnreadableBootLog,
    boot_aggregate,
    is_computable,
    parse_boot_log,
)
from keylime.measured_boot.replay import replay_event_log as replay
from tests.captures import Stage, capture, stages
from tests.fakes.event_logs import build_log, record

SHA256 = HashAlgorithm.SHA256
SEPARATOR = record(0, EventType.SEPARATOR, bytes(4))


def locality(number: int) -> bytes:
    return b"StartupLocality\0" + bytes([number])


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: f"{stage.capture}/{stage.name}")
def test_the_captured_logs_lead_to_the_pcrs_of_the_tpm_in_every_bank(stage: Stage) -> None:
    replayed = replay(parse_event_log(capture(stage.capture).boot_log))
    assert [bank.label for bank in replayed] == list(stage.banks)
    for bank, values in replayed.items():
        recorded = stage.pcrs(bank.label)
        # PCR 10 is extended by IMA; all others only by the firmware and the boot loaders.
        assert {index: values[index] for index in range(24) if index != 10} == {
            index: recorded[index] for index in range(24) if index != 10
        }


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: f"{stage.capture}/{stage.name}")
def test_the_boot_aggregate_that_ima_measured_is_a_candidate(stage: Stage) -> None:
    parsed = parse_boot_log(capture(stage.capture).boot_log)
    assert isinstance(parsed, ParsedBootLog)
    measured = stage.expected["boot_aggregate"]
    bank = HashAlgorithm.from_label(measured["algorithm"])
    assert measured["digest"] in parsed.boot_aggregates[bank]
    count = int(measured["pcrs"].removeprefix("0-")) + 1
    assert boot_aggregate(bank, parsed.pcrs[bank], count) == measured["digest"]


def test_a_lone_separator_leads_to_the_value_known_from_real_machines() -> None:
    values = replay(parse_event_log(build_log([SEPARATOR])))[SHA256]
    assert values[0].hex() == "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"


def test_pcrs_without_events_have_their_start_values() -> None:
    for bank, values in replay(parse_event_log(build_log([SEPARATOR]))).items():
        assert sorted(values) == list(range(24))
        assert all(values[index] == bytes(bank.size) for index in (*range(1, 17), 23))
        assert all(values[index] == b"\xff" * bank.size for index in range(17, 23))


@pytest.mark.parametrize("number", [0, 3, 4])
def test_the_startup_locality_is_the_start_value_of_pcr_0_only(number: int) -> None:
    log = parse_event_log(build_log([record(0, EventType.NO_ACTION, locality(number)), SEPARATOR]))
    values = replay(log)[SHA256]
    start = bytes(31) + bytes([number])
    assert values[0] == hashlib.sha256(start + hashlib.sha256(bytes(4)).digest()).digest()
    assert values[1] == bytes(32)


def test_an_h_crtm_measurement_starts_pcr_0_at_4() -> None:
    values = replay(parse_event_log(build_log([record(0, EventType.EFI_HCRTM_EVENT, b"HCRTM", b"code")])))[
        SHA256
    ]
    assert values[0] == hashlib.sha256(bytes(31) + b"\4" + hashlib.sha256(b"code").digest()).digest()


def test_an_h_crtm_event_of_another_pcr_does_not_change_the_start_of_pcr_0() -> None:
    elsewhere = record(1, EventType.EFI_HCRTM_EVENT, b"HCRTM", b"code")
    values = replay(parse_event_log(build_log([elsewhere, SEPARATOR])))[SHA256]
    assert values[0] == replay(parse_event_log(build_log([SEPARATOR])))[SHA256][0]


def test_records_without_action_are_never_extended() -> None:
    records = [record(pcr, EventType.NO_ACTION, b"remark") for pcr in (0, 7, 23, 0xFFFFFFFF)]
    assert replay(parse_event_log(build_log([*records, SEPARATOR]))) == replay(
        parse_event_log(build_log([SEPARATOR]))
    )


def test_bytes_that_are_no_log_are_a_value_with_the_reason() -> None:
    assert parse_boot_log(b"nonsense") == UnreadableBootLog("event 0: 20 bytes announced, 0 left")


class BankWithoutLibrary:
    """A bank whose hash the crypto library does not have, as SM3 in many builds."""

    def digest(self, _: bytes) -> bytes:
        raise ValueError("unsupported hash type")


def test_a_bank_that_cannot_be_computed_is_left_out() -> None:
    missing: Any = BankWithoutLibrary()
    assert is_computable(SHA256)
    assert not is_computable(missing)
    log = parse_event_log(build_log([SEPARATOR]))
    assert set(replay(with_changes(log, algorithms=(*log.algorithms, missing)))) == set(log.algorithms)
