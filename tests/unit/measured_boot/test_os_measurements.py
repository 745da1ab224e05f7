"""The law of captured boots: each is accepted with its own logs, and with nothing that differs from them."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from keylime.hashes import HashAlgorithm
from keylime.measured_boot.appraisal import BootResult, appraise_boot_log
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.learning import learn_components, to_json
from keylime.measured_boot.machine_values import MachineValue
from keylime.measured_boot.os_measurements import OsMeasurements
from keylime.measured_boot.os_records import judge_records
from keylime.measured_boot.reference_state import create_reference_state
from keylime.measured_boot.replay import parse_boot_log
from keylime.measured_boot.user_space_log import read_user_space_log
from keylime.tpm.pcr import extend
from tests.fakes.measured_boot import policy
from tests.os_logs import (
    BOOTS,
    SHA1,
    SHA256,
    UNIFIED,
    Record,
    firmware_log,
    held,
    os_log,
    os_record,
    put_together,
    take_apart,
)

ALL = policy({"explained_pcrs": "all"}, "accept-all")
AUTOMATIC = policy({}, "accept-all")
BOOT = policy({"explained_pcrs": "boot"}, "accept-all")
FIRMWARE = policy({"explained_pcrs": "firmware"}, "accept-all")
SEPARATED = {*range(8), 9, 12, 13, 14}

UNEXPECTED = "measured_boot.os.unexpected_record"
FORGED = "measured_boot.os.forged_record"
CHANGED = "measured_boot.os.changed_value"
MISSING_VALUE = "measured_boot.os.missing_value"
UNSEPARATED = "measured_boot.os.missing_separator"
UNREADABLE = "measured_boot.parser.os_log.error"


def judged(
    boot: str,
    log: bytes | None,
    pcrs: Mapping[int, bytes] | None = None,
    *,
    by: object = ALL,
    bank: HashAlgorithm = SHA256,
    learned: tuple[MachineValue, ...] = (),
    was_sent: bool = False,
) -> BootResult:
    """The result on a captured boot whose agent sends `log`."""
    return appraise_boot_log(
        firmware_log(boot),
        bank=bank,
        quoted=held(boot, bank) if pcrs is None else pcrs,
        policy=by,  # type: ignore[arg-type]
        evaluate_content=True,
        measurements=OsMeasurements(read_user_space_log(log) if log else None, learned, was_sent),
    )


def ids(result: BootResult) -> list[str]:
    return [finding.event_id for finding in result.findings]


def unexplained(*indices: int) -> list[str]:
    return [f"measured_boot.invalid_pcr_{index}" for index in indices]


def pcrs_of(records: list[Record], boot: str = "sdboot-uki") -> Mapping[int, bytes]:
    """What the TPM of the captured machine holds if its system really extended these records."""
    parsed = parse_boot_log(firmware_log(boot))
    values = dict(parsed.pcrs[SHA256])  # type: ignore[union-attr]
    for record in records:
        if "pcr" in record:
            digest = next(one["digest"] for one in record["digests"] if one["hashAlg"] == "sha256")
            values[record["pcr"]] = extend(SHA256, values[record["pcr"]], bytes.fromhex(digest))
    return values


def lived(*more: Record) -> BootResult:
    """The result on the captured machine after its system extended `more`, and wrote it down."""
    records = [*take_apart(os_log("sdboot-uki") or b""), *more]
    return judged("sdboot-uki", put_together(records), pcrs_of(records))


# -- what is sound


@pytest.mark.parametrize("bank", [SHA1, SHA256], ids=lambda bank: bank.label)
@pytest.mark.parametrize("by", [ALL, AUTOMATIC, BOOT, FIRMWARE], ids=["all", "automatic", "boot", "firmware"])
@pytest.mark.parametrize("boot", BOOTS)
def test_each_boot_is_explained_by_its_own_logs(boot: str, by: object, bank: HashAlgorithm) -> None:
    result = judged(boot, os_log(boot), by=by, bank=bank)
    assert result.findings == ()
    assert result.notes == ()


@pytest.mark.parametrize("name", ["example", "components"])
@pytest.mark.parametrize("boot", BOOTS)
def test_a_policy_accepts_the_boot_it_was_learned_from_with_both_logs(boot: str, name: str) -> None:
    log = parse_event_log(firmware_log(boot))
    if name == "components":
        state = to_json(learn_components(log))
    else:
        state = dict(create_reference_state(log, secure_boot=boot == "uki-sb"))
    for explained in ("automatic", "all"):
        learned = policy({**state, "explained_pcrs": explained}, name)
        assert ids(judged(boot, os_log(boot), by=learned)) == []


@pytest.mark.parametrize("boot", UNIFIED)
@pytest.mark.parametrize("log", [None, b""], ids=["none", "empty"])
def test_without_the_second_log_the_constant_is_inferred(boot: str, log: bytes | None) -> None:
    """PCR 9 holds the names of NV indices as well, 11 the phases, 15 the machine: no constant tells them."""
    assert ids(judged(boot, log)) == unexplained(9, 11, 15)
    assert ids(judged(boot, log, by=FIRMWARE)) == []
    assert ids(judged(boot, log, by=BOOT)) == unexplained(9)
    result = judged(boot, log, by=AUTOMATIC)
    assert result.findings == ()
    assert [note.split(" holds ")[0] for note in result.notes] == ["PCR 9", "PCR 11", "PCR 15"]


def test_a_boot_without_measuring_needs_no_second_log_and_a_healthy_one_is_not_asked_for_it() -> None:
    result = judged("sdboot-type1", None, was_sent=True)
    assert (result.findings, result.notes) == ((), ())


def test_a_pcr_9_with_the_separator_alone_is_inferred_too() -> None:
    firmware = parse_boot_log(firmware_log("uki-sb")).pcrs[SHA256]  # type: ignore[union-attr]
    separated = {**held("uki-sb"), 9: extend(SHA256, firmware[9], SHA256.digest(b"os-separator"))}
    assert ids(judged("uki-sb", None, separated, by=BOOT)) == []


def test_only_a_boot_through_the_stub_excuses_what_systemd_extends() -> None:
    """Elsewhere it extends nothing, and a PCR 11 or 15 that moved wants an explanation."""
    moved = {**held("sdboot-type1"), **dict.fromkeys((9, 11, 15), b"\1" * 32)}
    result = judged("sdboot-type1", None, moved, by=AUTOMATIC)
    assert ids(result) == unexplained(9, 11, 15)


def test_what_nobody_has_extended_is_not_what_systemd_extended() -> None:
    never = {**held("sdboot-uki"), **dict.fromkeys((9, 11, 15), bytes(32))}
    assert ids(judged("sdboot-uki", None, never, by=AUTOMATIC)) == unexplained(9, 11)


def test_a_log_that_was_sent_before_is_missed() -> None:
    result = judged("sdboot-uki", None, by=AUTOMATIC, was_sent=True)
    assert ids(result) == unexplained(9, 11, 15)
    assert "has sent before" in result.findings[0].explanation


@pytest.mark.parametrize(
    "more",
    [
        (),
        (os_record(11, "shutdown", "phase"),),
        (os_record(11, "shutdown", "phase"), os_record(11, "final", "phase")),
        tuple(os_record(11, word, "phase") for word in ("shutdown", "final", "sysinit", "ready")),
        tuple(os_record(11, word, "phase") for word in ("shutdown", "ready", "shutdown", "ready")),
        (os_record(15, "machine-id:11111111222243338444555555555555", "machine-id"),),
        (os_record(15, "cryptsetup:data:1e023a55", "volume-key", extended=b"secret"),),
        (os_record(15, "file-system:/srv:xfs::data:::", "filesystem"),),
        (os_record(15, "my-service:started", "com.example.service"),),
        (os_record(15, "my-service:started", ""),),
        (os_record(12, "imds-userdata:00:bm9uZQ==", "imds-userdata"),),
    ],
    ids=lambda more: " ".join(one["content"]["string"] for one in more) or "nothing",
)
def test_what_a_sound_system_does_during_its_life_is_explained(more: tuple[Record, ...]) -> None:
    assert ids(lived(*more)) == []


@pytest.mark.parametrize("count", range(1, 5))
def test_a_quote_from_any_moment_of_the_boot_is_explained(count: int) -> None:
    """The log is read after the quote, and may have grown."""
    records = take_apart(os_log("sdboot-uki") or b"")
    phases = [one for one in records if one["content"]["eventType"] == "phase"]
    quoted = {**held("sdboot-uki"), 11: pcrs_of(phases[:count])[11]}
    result = judged("sdboot-uki", put_together(records), quoted)
    assert result.findings == ()
    assert len(result.notes) == (count < 4)


def test_after_hibernation_the_records_that_the_new_boot_does_not_have_are_noted() -> None:
    """The image that is resumed brings the log of its own boot; the TPM saw the initrd of another one."""
    records = take_apart(os_log("sdboot-uki") or b"")
    in_initrd = [one for one in records if one.get("pcr") not in (11, 15)]
    result = judged(
        "sdboot-uki", put_together(records), pcrs_of([*in_initrd, os_record(11, "enter-initrd", "phase")])
    )
    assert result.findings == ()
    assert [note[:7] for note in result.notes] == ["PCR 11:", "PCR 15:"]


def test_a_machine_without_an_initrd_begins_with_sysinit() -> None:
    records = [os_record(11, "sysinit", "phase"), os_record(11, "ready", "phase")]
    assert ids(judged("sdboot-uki", put_together(records), pcrs_of(records))) == []


def test_records_as_systemd_255_writes_them_need_no_type() -> None:
    records = [os_record(11, word, "phase") for word in ("enter-initrd", "leave-initrd", "sysinit")]
    for record in records:
        del record["content"]["eventType"]
    assert ids(judged("sdboot-uki", put_together(records), pcrs_of(records))) == []


def test_a_bank_that_the_system_does_not_extend_is_judged_by_the_firmware_alone() -> None:
    records = take_apart(os_log("sdboot-uki") or b"")
    for record in records:
        record["digests"] = [one for one in record["digests"] if one["hashAlg"] == "sha1"] or record[
            "digests"
        ]
    assert ids(judged("sdboot-uki", put_together(records), pcrs_of([]))) == []


def test_a_word_that_was_cut_cannot_be_checked_and_is_passed() -> None:
    long = "file-system:/:" + "x" * 1100
    cut = os_record(15, long[:1024] + "...", "filesystem", extended=long.encode())
    assert ids(lived(cut)) == [CHANGED]  # it is another root file system, and nothing else
    other = os_record(15, ("file-system:/srv:" + long)[:1024] + "...", "filesystem", extended=b"long")
    assert ids(lived(other)) == []


def test_escaped_words_are_checked_as_they_were_measured() -> None:
    label = 'file-system:/srv:ext4::a "b"\\x3a\u00e9\t:::'
    record = os_record(15, label, "filesystem")
    record["content"]["string"] = 'file-system:/srv:ext4::a \\"b\\"\\\\x3a\\303\\251\\t:::'
    assert ids(lived(record)) == []


# -- what is not

Tamper = Callable[[list[Record]], list[Record]]


def every(choose: Callable[[Record], bool]) -> list[int]:
    return [position for position, one in enumerate(take_apart(os_log("sdboot-uki") or b"")) if choose(one)]


PCR_RECORDS = every(lambda one: "pcr" in one)


def tampered(change: Tamper, boot: str = "sdboot-uki") -> BootResult:
    return judged(boot, put_together(change(take_apart(os_log(boot) or b""))))


@pytest.mark.parametrize("position", PCR_RECORDS)
def test_a_changed_string_is_a_forgery(position: int) -> None:
    def change(records: list[Record]) -> list[Record]:
        records[position]["content"]["string"] += "x"
        return records

    assert FORGED in ids(tampered(change))


@pytest.mark.parametrize("position", PCR_RECORDS)
def test_a_changed_digest_is_a_forgery_and_explains_nothing(position: int) -> None:
    def change(records: list[Record]) -> list[Record]:
        for one in records[position]["digests"]:
            one["digest"] = "00" + one["digest"][2:]
        return records

    found = ids(tampered(change))
    assert FORGED in found
    assert any(name.startswith("measured_boot.invalid_pcr_") for name in found)


@pytest.mark.parametrize("position", PCR_RECORDS)
def test_a_dropped_record_leaves_its_pcr_unexplained(position: int) -> None:
    pcr = take_apart(os_log("sdboot-uki") or b"")[position]["pcr"]
    found = ids(tampered(lambda records: records[:position] + records[position + 1 :]))
    assert f"measured_boot.invalid_pcr_{pcr}" in found


@pytest.mark.parametrize("boot", UNIFIED)
def test_two_records_of_one_pcr_that_were_swapped_explain_nothing(boot: str) -> None:
    for pcr in (9, 11, 15):
        numbers = [
            number for number, one in enumerate(take_apart(os_log(boot) or b"")) if one.get("pcr") == pcr
        ]
        for first, second in itertools.pairwise(numbers):

            def swap(records: list[Record], first: int = first, second: int = second) -> list[Record]:
                records[first], records[second] = records[second], records[first]
                return records

            assert f"measured_boot.invalid_pcr_{pcr}" in ids(tampered(swap, boot))


@pytest.mark.parametrize("position", PCR_RECORDS)
def test_a_repeated_record_is_refused_or_named(position: int) -> None:
    records = take_apart(os_log("sdboot-uki") or b"")
    word = records[position]["content"]["string"]
    for repeated in (
        [*records[: position + 1], *records[position:]],
        [*records, records[position]],
    ):
        result = judged("sdboot-uki", put_together(repeated))
        assert result.findings or any(word[:40] in note for note in result.notes)
        assert ids(judged("sdboot-uki", put_together(repeated), pcrs_of(repeated))) or word.startswith(
            ("machine-id:", "file-system:", "nvpcr-init:")
        )


@pytest.mark.parametrize("position", PCR_RECORDS)
@pytest.mark.parametrize("foreign", [3, 8, 10, 11, 15, 23])
def test_a_record_moved_to_a_foreign_pcr_explains_nothing(position: int, foreign: int) -> None:
    def change(records: list[Record]) -> list[Record]:
        if records[position]["pcr"] != foreign:
            records[position]["pcr"] = foreign
        else:
            del records[position]
        return records

    assert any(name.startswith("measured_boot.invalid_pcr_") for name in ids(tampered(change)))


def test_records_of_pcrs_that_no_boot_is_judged_by_are_named() -> None:
    assert ids(lived(os_record(23, "anything", "application"))) == []
    assert lived(os_record(23, "anything", "application")).notes == (
        "the operating system's log has records of PCR 23, which no boot is judged by",
    )


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (os_record(11, "enter-initrd", "phase"), "cannot follow ready"),
        (os_record(11, "ready", "phase"), "cannot follow ready"),
        (os_record(11, "hello", "phase"), "none of the words"),
        (os_record(11, "hello", ""), "nothing of that kind into PCR 11"),
        (os_record(11, "hello", "com.example"), "nothing of that kind into PCR 11"),
        (os_record(11, "storage-target-mode-start", "phase"), "offers its disks"),
        (os_record(11, "factory-reset", "phase"), "factory state"),
        (os_record(4, "grub", "com.example"), "nothing of that kind into PCR 4"),
        (os_record(0, "os-separator", "os-separator"), "comes once"),
        (os_record(8, "os-separator", "os-separator"), "another PCR than 8"),
        (os_record(9, "nvpcr-init:more:0x1:00", "nvpcr-init"), "after nvpcr-separator"),
        (os_record(9, "nvpcr-separator", "nvpcr-separator"), "after nvpcr-separator"),
        (os_record(15, "ready", "phase"), "another PCR than 15"),
        (os_record(15, "ready", "machine-id"), "none of a record of type machine-id"),
        (os_record(15, "cryptsetup-keyslot:root", "nvpcr-init"), "another PCR than 15"),
        (os_record(12, "os-separator2", "os-separator"), "none of a record of type os-separator"),
    ],
    ids=lambda one: one if isinstance(one, str) else f"{one['pcr']} {one['content']['string']}",
)
def test_what_no_sound_system_does_is_a_finding_although_the_pcr_has_it(more: Record, reason: str) -> None:
    result = lived(more)
    assert set(ids(result)) - {CHANGED} == {UNEXPECTED}
    assert reason in result.findings[0].explanation
    assert result.findings[0].hint


def test_another_machine_id_in_the_same_boot_is_a_finding() -> None:
    assert ids(lived(os_record(15, "machine-id:" + "0" * 32, "machine-id"))) == [CHANGED]


def test_a_boot_that_lacks_one_separator_is_a_finding_also_where_the_pcr_agrees() -> None:
    records = take_apart(os_log("sdboot-uki") or b"")
    without = [one for one in records if one.get("pcr") != 13]
    result = judged("sdboot-uki", put_together(without), pcrs_of(without))
    assert ids(result) == [UNSEPARATED]
    claimed = judged("sdboot-uki", put_together(records), pcrs_of(without))
    assert ids(claimed) == [UNSEPARATED]


def test_a_separator_behind_other_records_is_out_of_place() -> None:
    records = take_apart(os_log("sdboot-uki") or b"")
    late = [one for one in records if one["pcr" if "pcr" in one else "nv_index"] != 12]
    late += [
        os_record(12, "imds-userdata:00:00", "imds-userdata"),
        os_record(12, "os-separator", "os-separator"),
    ]
    assert ids(judged("sdboot-uki", put_together(late), pcrs_of(late))) == [UNEXPECTED, UNEXPECTED][:1]


@pytest.mark.parametrize(
    "record",
    [
        os_record(12, "whatever", "com.example", extended=b"init=/bin/sh"),
        os_record(12, "init=/bin/sh", ""),
        os_record(12, "imds-userdata:" + "0" * 1010 + "...", "imds-userdata", extended=b"init=/bin/sh"),
        os_record(12, "cryptsetup:root", "volume-key", extended=b"init=/bin/sh"),
        os_record(13, "whatever", "com.example", extended=b"an extension image"),
        os_record(14, "cryptsetup:root", "volume-key", extended=b"keys that shim trusts"),
        os_record(9, "whatever", "com.example", extended=b"an initrd"),
    ],
    ids=lambda record: f"{record['pcr']} {record['content']['eventType']}",
)
@pytest.mark.parametrize("separated", ["never", "behind", "before"])
def test_m27_what_a_boot_loader_measured_does_not_pass_as_the_systems(record: Record, separated: str) -> None:
    """The end of the firmware's log, shown as records: what was loaded would be judged by nobody."""
    records = [one for one in take_apart(os_log("sdboot-uki") or b"") if "pcr" in one]
    separators = [one for one in records if one["content"]["eventType"] == "os-separator"]
    others = [one for one in records if one["pcr"] in {11, 15}]
    shown = {
        "never": [record, *others],
        "behind": [record, *separators, *others],
        "before": [*separators, record, *others],  # what came first is ended then, and this is the system's
    }[separated]
    found = ids(judged("sdboot-uki", put_together(shown), pcrs_of(shown)))
    assert set(found) == (set() if separated == "before" else {UNEXPECTED})


def test_a_volume_key_in_pcr_8_passes_only_where_no_loader_measures_into_it() -> None:
    key = os_record(8, "cryptsetup:root", "volume-key", extended=b"key")
    assert ids(lived(key)) == []
    (record,) = read_user_space_log(put_together([key])).records  # type: ignore[union-attr]
    assert [fault.record for fault in judge_records(8, [record], is_begun=True)] == [record]
    assert list(judge_records(8, [record], is_begun=False)) == []


def test_records_of_two_boots_are_a_forgery() -> None:
    records = take_apart(os_log("sdboot-uki") or b"")
    records[-1]["content"]["bootId"] = "f" * 32
    assert ids(judged("sdboot-uki", put_together(records))) == [FORGED]


def test_the_log_of_another_machine_explains_nothing_of_its_own() -> None:
    """The same image: their machines differ in PCR 9 alone, which the firmware's part tells."""
    found = ids(judged("sdboot-uki", os_log("uki-sb")))
    assert found == ids(judged("sdboot-uki", os_log("uki-direct")))


def test_a_log_that_cannot_be_read_is_named_and_explains_nothing() -> None:
    log = os_log("sdboot-uki") or b""
    result = judged("sdboot-uki", log[1:], by=FIRMWARE)
    assert ids(result) == [UNREADABLE]


def test_a_log_that_breaks_off_explains_what_it_still_holds() -> None:
    log = os_log("sdboot-uki") or b""
    result = judged("sdboot-uki", log[:-5])
    assert ids(result) == unexplained(11)
    assert "its end is missing" in result.findings[0].explanation
    result = judged("sdboot-uki", log + b'\x1e{"pcr":11,"dig')
    assert result.findings == ()
    assert result.notes == ("the last record of the operating system's log is not whole",)


def test_the_finding_names_the_likely_cause_and_the_remedy() -> None:
    moved = {**held("sdboot-uki"), 11: bytes(32)}
    with_log = judged("sdboot-uki", os_log("sdboot-uki"), moved).findings[0]
    without = judged("sdboot-uki", None).findings[1]
    elsewhere = judged("sdboot-type1", None, {**held("sdboot-type1"), 8: b"\1" * 32}).findings[0]
    assert "nor does the operating system's log" in with_log.explanation
    assert "Systemd does that on machines with a unified kernel image" in without.explanation
    for finding in (with_log, without, elsewhere):
        assert finding.hint
        assert "measured_boot_explained_pcrs" in finding.hint
        assert "explained_pcrs in the reference state" in finding.hint


def test_one_pcr_has_a_bounded_number_of_findings() -> None:
    result = lived(*[os_record(11, f"w{number}", "phase") for number in range(200)])
    assert len(result.findings) == 16


# -- what is the machine's own


def learned_from(boot: str) -> tuple[MachineValue, ...]:
    return judged(boot, os_log(boot)).learned


def test_a_machines_own_values_are_learned_and_stay() -> None:
    learned = learned_from("sdboot-uki")
    assert [value.name for value in learned] == ["machine id", "file system at /"]
    assert learned == learned_from("uki-direct")
    assert judged("sdboot-uki", os_log("sdboot-uki"), learned=learned).learned == learned
    assert judged("sdboot-type1", None, learned=learned).learned == learned


def test_another_machine_is_told_apart() -> None:
    other = tuple(replace_value(value, "x") for value in learned_from("sdboot-uki"))
    result = judged("sdboot-uki", os_log("sdboot-uki"), learned=other)
    assert ids(result) == [CHANGED, CHANGED]
    assert result.findings[0].expected == ("x",)
    assert result.learned == other


def replace_value(value: MachineValue, text: str) -> MachineValue:
    return MachineValue(value.name, text, value.pcr, value.required)


def with_volume(key: bytes, *, in_initrd: bool = True) -> list[Record]:
    records = take_apart(os_log("sdboot-uki") or b"")
    leaves = next(n for n, one in enumerate(records) if one["content"]["string"] == "leave-initrd")
    records.insert(
        leaves if in_initrd else len(records),
        os_record(15, "cryptsetup:root:1e023a55", "volume-key", extended=key),
    )
    return records


def booted(records: list[Record], learned: tuple[MachineValue, ...] = ()) -> BootResult:
    return judged("sdboot-uki", put_together(records), pcrs_of(records), learned=learned)


def test_the_key_of_a_volume_stays_what_it_was_and_that_of_the_root_must_be_there() -> None:
    learned = booted(with_volume(b"secret")).learned
    assert [value.name for value in learned if value.required] == ["key of volume root"]
    assert ids(booted(with_volume(b"secret"), learned)) == []
    assert ids(booted(with_volume(b"other"), learned)) == [CHANGED]
    copied = booted(take_apart(os_log("sdboot-uki") or b""), learned)
    assert ids(copied) == [MISSING_VALUE]
    assert "was not measured in this boot" in copied.findings[0].explanation
    assert ids(judged("sdboot-type1", None, learned=learned)) == [MISSING_VALUE]


def test_a_volume_that_is_opened_later_may_be_absent() -> None:
    learned = booted(with_volume(b"secret", in_initrd=False)).learned
    assert ids(booted(take_apart(os_log("sdboot-uki") or b""), learned)) == []
    assert ids(booted(with_volume(b"other", in_initrd=False), learned)) == [CHANGED]


def test_a_volume_is_known_in_another_bank_as_far_as_it_was_told() -> None:
    learned = booted(with_volume(b"secret")).learned
    in_sha1 = tuple(
        replace_value(value, value.value.split()[0] if value.required else value.value) for value in learned
    )
    assert ids(booted(with_volume(b"other"), in_sha1)) == []


def test_nothing_is_missed_in_a_pcr_that_need_not_be_explained() -> None:
    learned = booted(with_volume(b"secret")).learned
    assert ids(judged("sdboot-uki", os_log("sdboot-uki"), by=BOOT, learned=learned)) == []


def test_no_more_values_are_learned_than_a_machine_has() -> None:
    many = [os_record(15, f"file-system:/{number}:xfs", "filesystem") for number in range(100)]
    assert len(lived(*many).learned) == 64


def test_only_the_firmwares_log_lends_boot_aggregates() -> None:
    """As its list says, and not as the PCRs are by now."""
    aggregates = judged("sdboot-uki", os_log("sdboot-uki")).boot_aggregates[SHA256]
    assert "9bb4406b2ab55671fe3a97c0dbe25334eafc5718967209525fd60c840c3acf5a" in aggregates
    quoted = SHA256.digest(b"".join(held("sdboot-uki")[index] for index in range(10))).hex()
    assert quoted.startswith("088d2edd")
    assert quoted not in aggregates


def test_a_policy_with_rules_excuses_nothing() -> None:
    strict = replace(policy({"any": 1}, "reject-all"), judge=None)
    assert ids(judged("sdboot-uki", None, by=strict)) == unexplained(9, 11, 15)
