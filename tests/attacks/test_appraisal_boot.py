"""Attacks on the boot log, M1 to M13, M26 and M28 of the attack catalogue, judged as whole rounds.

The rules of the example policy are tested event by event in `test_measured_boot_attacks`; here counts what
the agent's verdict is, with a quote beside the log.
"""

import base64
import functools
import hashlib
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from keylime.appraisal.verdict import Accepted, Rejected
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.boot_policy import MeasuredBootPolicy
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.learning import learn_components, to_json
from keylime.measured_boot.replay import boot_aggregate, replay_event_log
from keylime.measured_boot.variables import GLOBAL_VARIABLE, IMAGE_SECURITY, X509_SIGNATURES
from keylime.tpm.keys import SignatureScheme
from keylime.tpm.pcr import PcrValues
from tests.appraisal_rounds import NOT_LISTED, QUOTE, Watch, events, quoted_values
from tests.captures import capture
from tests.evidence import SoftwareMachine, policy_of, reference
from tests.fakes.boots import Boot, reread
from tests.fakes.event_logs import Record, build_log, header, record, spans, take_apart, variable
from tests.fakes.measured_boot import (
    Records,
    edit,
    grub_pcrs,
    grub_records,
    pcrs_after,
    policy,
    reference_state,
)
from tests.fakes.software_ak import SoftwareAk
from tests.ima_rounds import Kernel, file_digest, line_of

AK = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)
SHA1 = HashAlgorithm.SHA1
LOG = capture("grub-secureboot").boot_log
STAGE = capture("grub-secureboot").stage("s1-clean")
NO_DEMANDS = policy({})
EXAMPLE = policy(reference_state())
CONTENT = "measured_boot.policy_example"
UNREADABLE = "measured_boot.parser.tpm2_eventlog.error"


def machine_with(
    log: bytes | None, pcrs: Mapping[int, bytes], judged_by: MeasuredBootPolicy = EXAMPLE
) -> Watch:
    """A machine whose TPM holds `pcrs` and whose firmware log is said to be `log`."""
    machine = SoftwareMachine(ak=AK, pcrs=dict(pcrs), boot_log=log)
    return Watch(machine, reference(AK.tpm2b_public, measured_boot=judged_by))


def shown(records: Records, pcrs: Mapping[int, bytes] | None = None) -> list[str]:
    """Findings about a log written by the operating system: the TPM holds what really happened."""
    verdict = machine_with(build_log(records), grub_pcrs() if pcrs is None else pcrs).round()
    return [] if isinstance(verdict, Accepted) else events(verdict)


def booted(records: Records) -> list[str]:
    """Findings about a machine that really booted like this."""
    return shown(records, pcrs_after(records))


def firmware_variable(name: str, value: bytes) -> list[Record]:
    """A boot in which the firmware measured another value of a variable."""
    guid = IMAGE_SECURITY if name in {"db", "dbx"} else GLOBAL_VARIABLE
    begin = guid.bytes_le + struct.pack("<Q", len(name))
    return edit(
        grub_records(),
        lambda item: (
            item.type_code == EventType.EFI_VARIABLE_DRIVER_CONFIG
            and item.data.startswith(begin)
            and item.data[32:].startswith(name.encode("utf-16-le"))
        ),
        lambda item: item.with_data(variable(guid.bytes_le, name, value)),
    )


def painted(truth: Records) -> list[Record]:
    """The good events over the digests of what really happened."""
    return [replace(lie, digests=true.digests) for lie, true in zip(grub_records(), truth, strict=True)]


def test_the_honest_machine_passes() -> None:
    """Without this, every refusal here could have another reason."""
    machine_with(LOG, grub_pcrs()).accept()
    machine_with(LOG, grub_pcrs(), NO_DEMANDS).accept()


def test_m1_another_type_with_the_same_digest_fails_where_the_type_matters() -> None:
    by_kind: dict[int, int] = {}
    for position, item in enumerate(grub_records()):
        records = grub_records()
        records[position] = replace(item, type_code=EventType.EFI_ACTION)
        if item.type_code != EventType.EFI_ACTION and shown(records):
            by_kind[item.type_code] = by_kind.get(item.type_code, 0) + 1
    assert by_kind.keys() >= {
        EventType.SEPARATOR,
        EventType.EFI_VARIABLE_DRIVER_CONFIG,
        EventType.EFI_VARIABLE_AUTHORITY,
        EventType.EFI_BOOT_SERVICES_APPLICATION,
    }


def test_m1_an_event_hidden_as_no_action_fails_by_its_pcr() -> None:
    for position, item in enumerate(grub_records()):
        records = grub_records()
        records[position] = replace(item, type_code=EventType.NO_ACTION)
        assert shown(records) == [f"measured_boot.invalid_pcr_{item.pcr}"]


def test_m2_data_painted_over_a_covering_digest_fail() -> None:
    truth = firmware_variable("SecureBoot", b"\0")
    assert shown(painted(truth), pcrs_after(truth)) == [CONTENT]
    truth = edit(
        grub_records(),
        lambda item: item.data.startswith(b"kernel_cmdline: "),
        lambda item: item.with_data(b"kernel_cmdline: init=/bin/sh\0", b"init=/bin/sh"),
    )
    assert shown(painted(truth), pcrs_after(truth)) == [CONTENT]


def test_m2_data_that_no_digest_covers_are_untrusted_text() -> None:
    is_image = lambda item: item.type_code == EventType.EFI_BOOT_SERVICES_APPLICATION  # noqa: E731
    assert shown(edit(grub_records(), is_image, lambda item: replace(item, data=b"\x1b[2J"))) == []


def test_m3_a_pcr_that_the_policy_needs_must_be_in_the_quote() -> None:
    watch = machine_with(LOG, grub_pcrs())
    assert watch.challenge().pcrs >= watch.known.measured_boot.required_pcrs  # type: ignore[union-attr]
    log = build_log([*grub_records(), record(11, EventType.IPL, b"x")])
    verdict = machine_with(log, grub_pcrs(), NO_DEMANDS).round()
    assert events(verdict) == ["measured_boot.invalid_pcr_11"]


@pytest.mark.parametrize("pcr", [11, 13, 16, 23])
def test_m3_an_event_of_a_pcr_that_is_not_quoted_proves_nothing(pcr: int) -> None:
    assert pcr not in EXAMPLE.required_pcrs
    assert shown([*grub_records(), record(pcr, EventType.IPL, b"x")]) == [CONTENT]


@pytest.mark.parametrize("left_out", range(10))
@pytest.mark.parametrize("judged_by", [NO_DEMANDS, EXAMPLE], ids=["no demands", "example"])
def test_m4_a_quote_of_only_some_boot_pcrs_fails(left_out: int, judged_by: MeasuredBootPolicy) -> None:
    watch = machine_with(LOG, grub_pcrs(), judged_by)
    truth = quoted_values(watch.machine, watch.challenge()).values
    fewer = PcrValues(watch.machine.bank, {index: truth[index] for index in truth if index != left_out})
    assert events(watch.forge(attested=fewer)) == [QUOTE]


def test_m4_the_verifier_itself_cannot_ask_for_less() -> None:
    watch = machine_with(LOG, grub_pcrs())
    narrow = msgspec.structs.replace(watch.challenge(), pcrs=frozenset({0, 16}))
    with pytest.raises(ValueError, match="less than the policies demand"):
        watch.judge(watch.machine.answer(narrow), narrow)


def test_m5_missing_doubled_and_moved_separators_fail() -> None:
    records = grub_records()
    separators = [position for position, item in enumerate(records) if item.type_code == EventType.SEPARATOR]
    assert len(separators) >= 8
    for position in separators:
        rest = [*records[:position], *records[position + 1 :]]
        for changed in (rest, [*rest, records[position], records[position]]):
            assert booted(changed) == [CONTENT]
            assert shown(changed) == [f"measured_boot.invalid_pcr_{records[position].pcr}"]
    moved = [item for item in records if not (item.pcr == 7 and item.type_code == EventType.SEPARATOR)]
    separator = next(item for item in records if item.pcr == 7 and item.type_code == EventType.SEPARATOR)
    assert booted([separator, *moved]) == [CONTENT]


@pytest.mark.parametrize("judged_by", [NO_DEMANDS, policy({"a": 1}, "accept-all")], ids=["{}", "accept-all"])
@pytest.mark.parametrize(
    "keep",
    [lambda _item: False, lambda item: item.type_code != EventType.SEPARATOR],
    ids=["nothing", "no separators"],
)
def test_m5_a_boot_without_separators_fails_whatever_the_policy(
    judged_by: MeasuredBootPolicy, keep: Callable[[Record], bool]
) -> None:
    """The TPM holds what the log says: also nothing at all, where the firmware does not measure."""
    records = [item for item in grub_records() if keep(item)]
    watch = machine_with(build_log(records), pcrs_after(records), judged_by)
    for _ in range(3):
        assert events(watch.round()) == ["measured_boot.no_boot"]


def test_m5_a_reboot_into_firmware_that_does_not_measure_fails() -> None:
    watch = machine_with(LOG, grub_pcrs(), NO_DEMANDS)
    watch.accept()
    watch.machine.reset_count += 1
    watch.machine.boot_log, watch.machine.pcrs = build_log([]), dict(pcrs_after([]))
    assert events(watch.round()) == ["measured_boot.no_boot"]


@pytest.mark.parametrize("locality", [*range(6), 255])
def test_m6_a_forged_startup_locality_fails(locality: int) -> None:
    forged = [record(0, EventType.NO_ACTION, b"StartupLocality\0" + bytes([locality])), *grub_records()]
    wrong = ["measured_boot.invalid_pcr_0"]
    assert shown(forged) == {0: [], 3: wrong, 4: wrong}.get(locality, [UNREADABLE])


@pytest.mark.parametrize(
    "log",
    [
        LOG[:-1],
        LOG[: spans(LOG)[-1].data - 4] + struct.pack("<I", 0) + LOG[spans(LOG)[-1].data :],
        LOG[: spans(LOG)[-1].data - 4] + struct.pack("<I", 0xFFFFFFFF) + b"x",
        record(0, EventType.SEPARATOR, b"").encode_sha1() * 120_000,
        build_log([record(0, EventType.SEPARATOR, b"")]) * 2,
        LOG[: spans(LOG)[0].start] + build_log([record(0, EventType.SEPARATOR, b"")] * 40_000)[65:],
        bytes(8_000_000),
    ],
    ids=["cut", "size 0", "size 4 G", "120,000 events", "two logs", "40,000 events", "zeros"],
)
def test_m7_bad_sizes_and_counts_fail_soon(log: bytes) -> None:
    started = time.process_time()
    assert events(machine_with(log, grub_pcrs()).round())
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "sizes",
    [
        [(4, 20), (11, 32), (11, 32)],
        [(4, 20), (4, 20)],
        [(4, 20), (11, 20)],
        [(4, 32), (11, 32)],
        [(4, 20)],
        [],
    ],
)
def test_m8_a_header_with_wrong_algorithms_fails(sizes: list[tuple[int, int]]) -> None:
    log = header(sizes) + LOG[spans(LOG)[0].start :]
    assert events(machine_with(log, grub_pcrs(), NO_DEMANDS).round()) == [UNREADABLE]


@pytest.mark.parametrize(
    "data",
    [
        variable(GLOBAL_VARIABLE.bytes_le, "PK\0", b""),
        variable(GLOBAL_VARIABLE.bytes_le, "\x1b[2JPK", b""),
        GLOBAL_VARIABLE.bytes_le + struct.pack("<QQ", 1, 0) + b"\0\xd8",
        GLOBAL_VARIABLE.bytes_le + struct.pack("<QQ", 2**64 - 1, 0),
        GLOBAL_VARIABLE.bytes_le + struct.pack("<QQ", 3, 0) + b"PKK",
    ],
)
def test_m9_bad_names_fail_and_are_shown_escaped(data: bytes) -> None:
    for kind in (EventType.EFI_VARIABLE_DRIVER_CONFIG, EventType.EFI_VARIABLE_AUTHORITY):
        records = [*grub_records(), record(7, kind, data)]
        verdict: Any = machine_with(build_log(records), pcrs_after(records)).round()
        (finding,) = verdict.findings
        assert finding.event_id == CONTENT
        assert finding.explanation.isprintable()


@functools.cache
def _test_key() -> bytes:
    return X509_SIGNATURES.bytes_le + struct.pack("<III", 45, 0, 17) + bytes(16) + b"t"


@pytest.mark.parametrize(
    "records",
    [
        firmware_variable("SecureBoot", b"\0"),
        firmware_variable("SecureBoot", b""),
        firmware_variable("db", _test_key()),
        firmware_variable("PK", _test_key()),
        firmware_variable("dbx", b""),
        take_apart(capture("direct-efistub").boot_log),
    ],
    ids=["off", "absent", "test key in db", "test key in PK", "empty dbx", "machine without Secure Boot"],
)
def test_m10_weak_secure_boot_fails_by_policy(records: Records) -> None:
    assert booted(records) == [CONTENT]


@pytest.mark.parametrize("position", range(4))
def test_m11_an_older_boot_loader_fails(position: int) -> None:
    records = grub_records()
    images = [item for item in records if item.type_code == EventType.EFI_BOOT_SERVICES_APPLICATION]
    older = edit(
        records, lambda item: item is images[position], lambda item: item.with_data(item.data, b"old")
    )
    assert booted(older) == [CONTENT]


@pytest.mark.parametrize("log", [None, b""], ids=["none", "empty"])
@pytest.mark.parametrize("judged_by", [NO_DEMANDS, EXAMPLE], ids=["no demands", "example"])
def test_m12_a_missing_log_fails_although_the_policy_demands_nothing_of_it(
    judged_by: MeasuredBootPolicy, log: bytes | None
) -> None:
    found = events(machine_with(log, grub_pcrs(), judged_by).round())
    assert found == [f"pcr_validation.unused_pcr_{index}" for index in sorted(judged_by.required_pcrs)]


def test_m12_a_log_that_nobody_asked_for_is_ignored_with_a_warning() -> None:
    machine = SoftwareMachine(ak=AK, pcrs=dict(grub_pcrs()), boot_log=b"no log at all")
    verdict = Watch(machine, reference(AK.tpm2b_public)).round()
    assert isinstance(verdict, Accepted)
    assert any("is ignored" in note for note in verdict.notes)


def test_m12_an_empty_log_is_not_called_damaged_or_forged() -> None:
    verdict = machine_with(b"", grub_pcrs(), NO_DEMANDS).round()
    assert isinstance(verdict, Rejected)
    for finding in verdict.findings:
        assert "forged" not in finding.explanation
        assert "firmware" in str(finding.hint)


def test_m12_a_log_that_is_missing_only_later_fails_too() -> None:
    watch = machine_with(LOG, grub_pcrs())
    watch.accept()
    watch.machine.boot_log = None
    assert events(watch.round())
    assert events(watch.round(mb_measurement_list=base64.b64encode(LOG[:-1]).decode())) == [UNREADABLE]


def test_m12_a_log_swapped_after_it_was_judged_is_judged_again() -> None:
    off = firmware_variable("SecureBoot", b"\0")
    watch = machine_with(LOG, grub_pcrs())
    watch.accept()
    watch.machine.boot_log, watch.machine.pcrs = build_log(off), dict(pcrs_after(off))
    assert events(watch.round()) == [CONTENT]


def test_m12_a_log_judged_by_one_bank_is_judged_again_by_another() -> None:
    """One log can tell of a good kernel by its SHA-256 digests and of a bad one by those of another bank."""

    def two_faced(item: Record) -> Record:
        digests = {**dict(item.digests), SHA1: SHA1.digest(b"evil kernel")}
        return replace(item, digests=tuple(digests.items()))

    is_image = lambda item: item.type_code == EventType.EFI_BOOT_SERVICES_APPLICATION  # noqa: E731
    log = build_log(edit(grub_records(), is_image, two_faced))
    watch = machine_with(log, grub_pcrs())
    watch.accept()
    watch.machine.bank, watch.machine.pcrs = SHA1, dict(replay_event_log(parse_event_log(log))[SHA1])
    watch.machine.reset_count += 1
    assert events(watch.round()) == [CONTENT]


def kexec_machine(*, measured: bool, listed: bool) -> Watch:
    """A machine that started another kernel without a boot of its firmware."""
    machine = SoftwareMachine.of_stage(STAGE)
    machine.ak = AK
    rules = policy_of([STAGE.ascii_list])
    buffer = b"root=/dev/sda1"
    digest = hashlib.sha256(buffer).hexdigest()
    kernel = Kernel()
    for line in machine.ima_list.splitlines():
        kernel.add(line)
    if measured:
        kernel.add(line_of("ima-buf", f"sha256:{digest} kexec-cmdline {buffer.hex()}"))
        kernel.add(kernel.lines[0])  # the boot_aggregate of the new kernel
    if listed:
        line = line_of("ima-buf", f"sha256:{digest} kexec-cmdline {buffer.hex()}")
        rules = policy_of([STAGE.ascii_list, line])
    machine.ima_list, machine.pcrs[10] = kernel.text(), kernel.pcr
    known = reference(AK.tpm2b_public, measured_boot=EXAMPLE, runtime_policy=rules)
    return Watch(machine, known)


def test_m13_a_kexec_is_seen_only_where_ima_measures_it() -> None:
    """Documented: without the IMA rule KEXEC_CMDLINE another kernel leaves no trace in the evidence."""
    kexec_machine(measured=False, listed=False).accept()
    kexec_machine(measured=True, listed=True).accept()
    assert set(events(kexec_machine(measured=True, listed=False).round())) == {NOT_LISTED}


def test_m13_the_command_line_of_a_kexec_is_held_to_the_policy() -> None:
    watch = kexec_machine(measured=True, listed=True)
    other = line_of("ima-buf", f"{file_digest('init=/bin/sh')} kexec-cmdline {b'init=/bin/sh'.hex()}")
    kernel = Kernel()
    for line in (*STAGE.ascii_list.splitlines(), other):
        kernel.add(line)
    watch.machine.ima_list, watch.machine.pcrs[10] = kernel.text(), kernel.pcr
    assert events(watch.round()) == ["ima.validation.ima-ng.runtime_policy_hash"]


def chain_machine(records: Records, blessed: Boot, ima: Kernel | None = None) -> Watch:
    """A machine with this log, held to what was learned from a blessed boot, and with `ima` to its files."""
    known = reference(
        AK.tpm2b_public, measured_boot=policy(to_json(learn_components(blessed.log())), "components")
    )
    machine = SoftwareMachine(ak=AK, pcrs=dict(pcrs_after(records)), boot_log=build_log(records))
    if ima is not None:
        machine.ima_list, machine.pcrs[10] = ima.text(), ima.pcr
        known = replace(known, runtime_policy=policy_of([ima.lines[-1]]))
    return Watch(machine, known)


BLESSED = replace(Boot("shim-grub"), secure_boot=False)
ORDINARY = "initrd /boot/initrd.img-6.1.0-1"


def test_m26_a_blessed_boot_by_chain_passes() -> None:
    """Without this, the refusals could have another reason."""
    chain_machine(BLESSED.records(), BLESSED).accept()


@pytest.mark.parametrize("evil", [replace(BLESSED, kernel=b"evil"), replace(BLESSED, initrd=b"evil")])
@pytest.mark.parametrize("commands", [(f"{ORDINARY} /boot/vmlinuz-6.1.0-1",), ("load_env", ORDINARY)])
def test_m26_blessed_files_that_grub_reads_last_hide_nothing(evil: Boot, commands: tuple[str, ...]) -> None:
    verdict = chain_machine(reread(evil, *commands), BLESSED).round()
    assert set(events(verdict)) == {"measured_boot.policy_components"}


def test_m26_an_initrd_under_a_tag_of_no_known_kind_is_seen() -> None:
    stub = Boot("efi-stub")
    records = [*stub.records(), record(9, EventType.EVENT_TAG, struct.pack("<II", 1, 4) + b"evil", b"evil")]
    assert events(chain_machine(records, stub).round()) == ["measured_boot.policy_components"]


def test_m28_what_the_running_system_adds_to_pcrs_of_the_boot_is_in_no_boot_aggregate() -> None:
    def ima(booted: Boot) -> Kernel:
        began = boot_aggregate(HashAlgorithm.SHA256, pcrs_after(booted.records()), 10)
        kernel = Kernel()
        kernel.add(line_of("ima-ng", f"sha256:{began} boot_aggregate"))
        kernel.run("/bin/true", "true")
        return kernel

    chain_machine(BLESSED.records(), BLESSED, ima(BLESSED)).accept()
    evil = replace(BLESSED, initrd=b"evil")
    chain_machine(reread(evil, ORDINARY), BLESSED).accept()  # the residual that docs/policies.md names
    found = events(chain_machine(reread(evil, ORDINARY), BLESSED, ima(evil)).round())
    assert len(found) == 1
    assert found[0].startswith("ima.")
