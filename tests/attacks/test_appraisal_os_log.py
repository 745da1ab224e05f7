"""Attacks on the operating system's log, M20 to M25 and M27 of the catalogue, judged as whole rounds."""

import time
from collections.abc import Callable

import pytest

from keylime.appraisal.verdict import Accepted
from keylime.measured_boot.replay import ParsedBootLog, parse_boot_log
from keylime.measured_boot.user_space_log import MAX_LOG_SIZE
from keylime.tpm.keys import SignatureScheme
from keylime.tpm.pcr import extend
from tests.appraisal_rounds import Watch, events
from tests.evidence import SoftwareMachine, boot_policy, reference
from tests.fakes.software_ak import SoftwareAk
from tests.os_logs import SHA256, Record, firmware_log, held, os_log, os_record, put_together, take_apart

AK = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)
BOOT = "uki-sb"
LOG = os_log(BOOT) or b""
FORGED, UNEXPECTED = "measured_boot.os.forged_record", "measured_boot.os.unexpected_record"
UNREADABLE = "measured_boot.parser.os_log.error"


def watched(log: bytes | None = LOG, refstate: str = "{}") -> Watch:
    machine = SoftwareMachine(ak=AK, pcrs=dict(held(BOOT)), boot_log=firmware_log(BOOT), os_log=log)
    return Watch(machine, reference(AK.tpm2b_public, measured_boot=boot_policy(refstate)))


def found(log: bytes | None, refstate: str = "{}") -> list[str]:
    verdict = watched(log, refstate).round()
    return [] if isinstance(verdict, Accepted) else events(verdict)


def changed(change: Callable[[list[Record]], None]) -> list[str]:
    records = take_apart(LOG)
    change(records)
    return found(put_together(records))


def test_the_honest_machine_passes() -> None:
    """Without this, every refusal here could have another reason."""
    assert found(LOG) == []


@pytest.mark.parametrize(
    "word", [b"enter-initrd", b"os-separator", b"ready", b"machine-id:1", b"file-system:/"]
)
def test_m20_a_text_that_was_not_extended_is_a_forgery(word: bytes) -> None:
    said = b'"string":"' + word
    assert said in LOG
    assert FORGED in found(LOG.replace(said, said[:-1] + b"~"))


def test_m20_a_label_that_hides_what_a_record_is_must_fit_it() -> None:
    def relabel(records: list[Record]) -> None:
        next(one for one in records if one["pcr"] == 11)["content"]["eventType"] = "volume-key"

    assert changed(relabel) == [UNEXPECTED, UNEXPECTED]  # it is none in PCR 11, and leave-initrd comes first


def test_m20_a_record_of_another_boot_is_a_forgery() -> None:
    def stamp(records: list[Record]) -> None:
        records[3]["content"]["bootId"] = "0" * 32

    assert changed(stamp) == [FORGED]


def test_m21_records_that_are_dropped_repeated_swapped_or_moved_are_found() -> None:
    def drop(records: list[Record]) -> None:
        del records[4]

    def repeat(records: list[Record]) -> None:
        records.append(records[0])

    def swap(records: list[Record]) -> None:
        records[0]["content"], records[-1]["content"] = records[-1]["content"], records[0]["content"]

    def move(records: list[Record]) -> None:
        records[-1]["pcr"] = 15

    for change in (drop, repeat, swap, move):
        assert changed(change), change.__name__


def test_m22_a_log_that_came_before_cannot_be_withheld() -> None:
    watch = watched()
    watch.accept()
    assert "measured_boot.invalid_pcr_11" in events(watch.round(os_measurement_list=None))
    assert "measured_boot.invalid_pcr_15" in events(watch.round(os_measurement_list=""))


def test_m22_without_the_log_nothing_counts_as_explained_that_rules_rest_on() -> None:
    assert found(None, '{"explained_pcrs": "all"}') == [f"measured_boot.invalid_pcr_{n}" for n in (9, 11, 15)]
    watch = watched(None)
    watch.machine.pcrs[4] = extend(SHA256, watch.machine.pcrs[4], SHA256.digest(b"grub"))
    assert "measured_boot.invalid_pcr_4" in events(watch.round())


def test_m23_another_machine_behind_the_same_key_is_told_by_its_own_values() -> None:
    watch = watched()
    watch.accept()
    records = [
        os_record(15, "machine-id:" + "2" * 32, "machine-id") if one.get("pcr") == 15 else one
        for one in take_apart(LOG)
        if one["content"]["eventType"] != "filesystem"
    ]
    for one in records:
        one["content"].pop("bootId")
    watch.machine.pcrs[15] = extend(SHA256, bytes(32), SHA256.digest(b"machine-id:" + b"2" * 32))
    watch.machine.os_log = put_together(records)
    watch.machine.reset_count += 1
    assert events(watch.round()) == ["measured_boot.os.changed_value"]


@pytest.mark.parametrize(
    "log",
    [
        b"\0",
        LOG[1:],
        b"\x1e" * 9000,
        b"\x1e" + b"[" * 500_000 + b"\n",
        b'\x1e{"pcr":' + b"9" * 500_000 + b"}\n",
        LOG.replace(b'"pcr":3', b'"pcr":3,"pcr":4'),
        LOG + b"\x1e{}\n" * 200_000,
        LOG * (MAX_LOG_SIZE // len(LOG) + 1),
    ],
    ids=["nul", "no frame", "frames", "depth", "number", "twice", "records", "size"],
)
def test_m24_a_log_that_is_none_is_one_finding_and_costs_little(log: bytes) -> None:
    started = time.process_time()
    assert UNREADABLE in found(log)
    assert time.process_time() - started < 2


def test_m24_the_longest_log_that_is_read_costs_little() -> None:
    more = os_record(15, "x" * 200, "com.example")
    del more["content"]["bootId"]
    count = (MAX_LOG_SIZE - len(LOG)) // len(put_together([more]))
    started = time.process_time()
    assert found(LOG + put_together([more]) * count) == []  # later than the quote
    assert time.process_time() - started < 2


def test_m25_only_the_constant_is_inferred_and_only_once() -> None:
    pcrs = held(BOOT)
    separator = SHA256.digest(b"os-separator")
    for value in (extend(SHA256, pcrs[4], separator), extend(SHA256, pcrs[4], SHA256.digest(b"other"))):
        watch = watched(None, '{"explained_pcrs": "firmware"}')
        watch.accept()
        watch.machine.pcrs[4] = value
        assert events(watch.round()) == ["measured_boot.invalid_pcr_4"]


def test_m25_nothing_is_inferred_beside_a_log() -> None:
    without = [one for one in take_apart(LOG) if one.get("pcr") != 13]
    assert found(put_together(without)) == ["measured_boot.invalid_pcr_13"]


@pytest.mark.parametrize(
    ("pcr", "kind"), [(9, "com.example"), (12, "com.example"), (13, "volume-key"), (14, "volume-key")]
)
def test_m27_the_end_of_the_firmwares_log_is_no_record_of_the_system(pcr: int, kind: str) -> None:
    """As on a machine whose systemd does not write os-separator, or was told not to."""
    watch = watched(put_together([os_record(pcr, "whatever", kind, extended=b"an addon")]))
    firmware = parse_boot_log(firmware_log(BOOT))
    assert isinstance(firmware, ParsedBootLog)
    watch.machine.pcrs.update({index: firmware.pcrs[SHA256][index] for index in range(16)})
    watch.machine.pcrs[pcr] = extend(SHA256, watch.machine.pcrs[pcr], SHA256.digest(b"an addon"))
    assert events(watch.round()) == [UNEXPECTED]
