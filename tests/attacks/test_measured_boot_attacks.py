"""Attacks on the boot log, P2 and P3 for it, and M1 to M12 of the attack catalogue.

The attacker owns the operating system: he writes the log that the verifier gets, but not the PCRs that the
TPM signs. Where firmware or boot chain themselves are bad, the TPM holds what the bad log says (`boot`).
"""

import struct
from collections.abc import Mapping
from dataclasses import replace

import pytest

from keylime.hashes import HashAlgorithm
from keylime.measured_boot.binding import GRUB_COMMANDS, KERNEL_COMMAND_LINES
from keylime.measured_boot.boot_policy import built_in_policies, compile_measured_boot_policy
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.variables import (
    GLOBAL_VARIABLE,
    IMAGE_SECURITY,
    SHA256_SIGNATURES,
    X509_SIGNATURES,
)
from tests.captures import capture
from tests.effort import examples, tried
from tests.fakes.event_logs import Record, build_log, flip, header, record, spans, take_apart, variable
from tests.fakes.measured_boot import (
    Records,
    appraise,
    boot,
    edit,
    grub_pcrs,
    grub_records,
    pcrs_after,
    policy,
    reference_state,
)

LOG = capture("grub-secureboot").boot_log
NO_DEMANDS = policy({})
EXAMPLE = policy(reference_state())

# Whose digest covers their data in this log. The boot variables' digest covers their value only.
WHOLE_DATA = {
    EventType.SEPARATOR,
    EventType.EFI_ACTION,
    EventType.EFI_GPT_EVENT,
    EventType.EFI_VARIABLE_DRIVER_CONFIG,
    EventType.EFI_VARIABLE_AUTHORITY,
}


def is_accepted(records: Records, quoted: Mapping[int, bytes] | None = None) -> bool:
    """Whether the example policy accepts this log on the machine that was captured."""
    return not appraise(build_log(records), EXAMPLE, quoted or grub_pcrs()).findings


def bound_part(item: Record) -> tuple[int, int]:
    """Start and end of the data that the digest covers."""
    if item.type_code in WHOLE_DATA:
        return 0, len(item.data)
    if item.type_code == EventType.EFI_VARIABLE_BOOT:
        name_units, _ = struct.unpack_from("<QQ", item.data, 16)
        return 32 + 2 * name_units, len(item.data)
    if item.pcr == 8:
        command, line = GRUB_COMMANDS[0], KERNEL_COMMAND_LINES[0]
        prefix = command if item.data.startswith(command.encode()) else line
        return len(prefix), len(item.data) - 1
    return 0, 0


def grub_variable(name: str, value: bytes) -> list[Record]:
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


@pytest.mark.parametrize("bank", [HashAlgorithm.SHA1, HashAlgorithm.SHA256])
def test_p2_a_flipped_bit_of_a_quoted_digest_is_not_accepted(bank: HashAlgorithm) -> None:
    for span in spans(LOG):
        start = dict(span.digests)[bank]
        for offset in range(start, start + bank.size):
            assert appraise(flip(LOG, offset, offset % 8), NO_DEMANDS, grub_pcrs(bank), bank).findings, offset


def test_p2_a_flipped_bit_of_bound_data_is_not_accepted() -> None:
    flipped = 0
    for span, item in zip(spans(LOG), take_apart(LOG), strict=True):
        start, end = bound_part(item)
        # Each byte of small events; certificates and hashes are long, a sample of their bytes is enough.
        for position in tried(range(start, end, 1 if end - start < 200 else 13)):
            offset = span.data + position
            assert appraise(flip(LOG, offset, offset % 8), EXAMPLE, grub_pcrs()).findings, offset
            flipped += 1
    assert flipped > examples(2000)


def test_p2_a_flipped_bit_of_the_structure_is_not_accepted() -> None:
    first = spans(LOG)[0].start
    # Platform class, versions and errata (bytes 48 to 54) carry no meaning for trust.
    offsets = [*range(48), 55, *range(56, first)]
    for span in spans(LOG):
        offsets += [*range(span.start, span.start + 12), *range(span.data - 4, span.data)]
        for _, start in span.digests:
            offsets += [start - 2, start - 1]
    accepted = {
        (offset, bit)
        for offset in tried(offsets)
        for bit in range(8)
        if not appraise(flip(LOG, offset, bit), EXAMPLE, grub_pcrs()).findings
    }
    # PCR 0 reads all types of firmware code alike: by position and digest.
    types = [span.start + 4 for span in spans(LOG)[1:3]]
    assert {offset for offset, _ in accepted} <= {*types, *(offset + 3 for offset in types)}


def test_p3_removed_and_doubled_events_are_not_accepted() -> None:
    records = grub_records()
    for position, item in enumerate(records):
        removed = [*records[:position], *records[position + 1 :]]
        doubled = [*records[:position], item, *records[position:]]
        for changed in (removed, doubled):
            findings = appraise(build_log(changed), NO_DEMANDS, grub_pcrs()).findings
            assert [finding.event_id for finding in findings] == [f"measured_boot.invalid_pcr_{item.pcr}"]


def test_p3_swapped_events_of_one_pcr_are_not_accepted() -> None:
    records = grub_records()
    swapped = 0
    for first, one in enumerate(records):
        for second in range(first + 1, len(records)):
            other = records[second]
            if one.pcr != other.pcr or one.digests == other.digests:
                continue
            changed = [*records]
            changed[first], changed[second] = other, one
            assert appraise(build_log(changed), NO_DEMANDS, grub_pcrs()).findings
            swapped += 1
    assert swapped > 200


def test_m1_another_type_with_the_same_digest_is_not_accepted_where_the_type_matters() -> None:
    accepted = set()
    for position, item in enumerate(grub_records()):
        for kind in {*EventType, 0x77} - {item.type_code}:
            records = grub_records()
            records[position] = replace(item, type_code=kind)
            if is_accepted(records):
                accepted.add((item.pcr, EventType(item.type_code), EventType(kind)))
    # Firmware volumes are judged by position and digest; of PCR 1 the policy demands no content.
    unjudged = {
        EventType.CPU_MICROCODE,
        EventType.PLATFORM_CONFIG_FLAGS,
        EventType.EFI_HANDOFF_TABLES,
        EventType.EFI_HANDOFF_TABLES2,
        EventType.TABLE_OF_DEVICES,
    }
    code = {
        EventType.EFI_PLATFORM_FIRMWARE_BLOB2,
        EventType.POST_CODE,
        EventType.POST_CODE2,
        EventType.S_CRTM_CONTENTS,
        EventType.NONHOST_CODE,
        EventType.S_CRTM_VERSION,  # a second one
    }
    assert accepted == {
        *((0, EventType.EFI_PLATFORM_FIRMWARE_BLOB, kind) for kind in code),
        *((1, EventType.EFI_VARIABLE_BOOT, kind) for kind in unjudged),
    }


def test_m1_an_event_hidden_as_no_action_is_not_accepted() -> None:
    for position, item in enumerate(grub_records()):
        records = grub_records()
        records[position] = replace(item, type_code=EventType.NO_ACTION)
        assert appraise(build_log(records), NO_DEMANDS, grub_pcrs()).findings


def test_m2_secure_boot_painted_over_is_not_accepted() -> None:
    off = grub_variable("SecureBoot", b"\0")
    painted = [replace(lie, digests=truth.digests) for lie, truth in zip(grub_records(), off, strict=True)]
    assert not is_accepted(painted, pcrs_after(off))
    assert not appraise(build_log(painted), NO_DEMANDS, pcrs_after(off)).findings  # the digests are true


def test_m2_a_painted_command_line_is_not_accepted() -> None:
    true = edit(
        grub_records(),
        lambda item: item.data.startswith(b"kernel_cmdline: "),
        lambda item: item.with_data(b"kernel_cmdline: init=/bin/sh\0", b"init=/bin/sh"),
    )
    painted = [replace(lie, digests=truth.digests) for lie, truth in zip(grub_records(), true, strict=True)]
    assert not is_accepted(painted, pcrs_after(true))


def test_m2_data_that_no_digest_covers_are_only_text() -> None:
    records = edit(
        grub_records(),
        lambda item: item.type_code == EventType.EFI_BOOT_SERVICES_APPLICATION,
        lambda item: replace(item, data=b"\x1b[2J"),
    )
    assert is_accepted(records)


def test_m3_events_of_pcrs_that_are_not_quoted_prove_nothing() -> None:
    added = [*grub_records(), record(11, EventType.IPL, b"x")]
    assert not is_accepted(added)
    quoted = {index: value for index, value in grub_pcrs().items() if index != 7}
    findings = appraise(LOG, EXAMPLE, quoted).findings
    assert [finding.event_id for finding in findings] == ["measured_boot.missing_pcrs"]


@pytest.mark.parametrize("left_out", range(10))
def test_m4_a_quote_of_only_some_boot_pcrs_is_not_accepted(left_out: int) -> None:
    quoted = {index: value for index, value in grub_pcrs().items() if index != left_out}
    for judged_by in (NO_DEMANDS, EXAMPLE):
        assert appraise(LOG, judged_by, quoted).findings


def test_m5_missing_doubled_and_moved_separators_are_not_accepted() -> None:
    records = grub_records()
    for position, item in enumerate(records):
        if item.type_code != EventType.SEPARATOR:
            continue
        rest = [*records[:position], *records[position + 1 :]]
        assert boot(rest, reference_state())
        assert boot([*rest, item, item], reference_state())
        assert not is_accepted(rest)
        assert not is_accepted([*rest, item, item])
    moved = [item for item in records if not (item.pcr == 7 and item.type_code == EventType.SEPARATOR)]
    separator = next(item for item in records if item.pcr == 7 and item.type_code == EventType.SEPARATOR)
    assert boot([separator, *moved], reference_state())
    assert not is_accepted([separator, *moved])


@pytest.mark.parametrize("locality", range(256))
def test_m6_a_forged_startup_locality_is_not_accepted(locality: int) -> None:
    forged = [record(0, EventType.NO_ACTION, b"StartupLocality\0" + bytes([locality])), *grub_records()]
    findings = appraise(build_log(forged), EXAMPLE, grub_pcrs()).findings
    expected = {
        0: [],  # the locality that it was
        3: ["measured_boot.invalid_pcr_0"],
        4: ["measured_boot.invalid_pcr_0"],
    }.get(locality, ["measured_boot.parser.tpm2_eventlog.error"])
    assert [finding.event_id for finding in findings] == expected


@pytest.mark.parametrize(
    "log",
    [
        header(),
        LOG[: spans(LOG)[-1].data - 4] + struct.pack("<I", 0),
        LOG[: spans(LOG)[-1].data - 4] + struct.pack("<I", 0xFFFFFFFF) + b"x",
        LOG[: spans(LOG)[-1].data - 4] + struct.pack("<I", 41) + LOG[spans(LOG)[-1].data :],
        record(0, EventType.SEPARATOR, b"").encode_sha1() * 120_000,
        build_log([record(0, EventType.SEPARATOR, b"")]) * 2,
        bytes(8_000_000),
    ],
    ids=["none", "size zero", "size huge", "size too large", "120,000 events", "two logs", "zeros"],
)
def test_m7_bad_sizes_and_counts_are_not_accepted(log: bytes) -> None:
    assert appraise(log, EXAMPLE, grub_pcrs()).findings


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
def test_m8_a_header_with_wrong_algorithms_is_not_accepted(sizes: list[tuple[int, int]]) -> None:
    log = header(sizes) + LOG[spans(LOG)[0].start :]
    findings = appraise(log, NO_DEMANDS, grub_pcrs()).findings
    assert [finding.event_id for finding in findings] == ["measured_boot.parser.tpm2_eventlog.error"]


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
def test_m9_bad_names_are_not_accepted_and_shown_escaped(data: bytes) -> None:
    for pcr, kind in ((7, EventType.EFI_VARIABLE_DRIVER_CONFIG), (7, EventType.EFI_VARIABLE_AUTHORITY)):
        (finding,) = boot([*grub_records(), record(pcr, kind, data)], reference_state())
        assert finding.explanation.isprintable()


@pytest.mark.parametrize(
    "records",
    [
        grub_variable("SecureBoot", b"\0"),
        grub_variable("SecureBoot", b""),
        grub_variable("db", X509_SIGNATURES.bytes_le + struct.pack("<III", 45, 0, 17) + bytes(16) + b"t"),
        grub_variable("PK", X509_SIGNATURES.bytes_le + struct.pack("<III", 45, 0, 17) + bytes(16) + b"t"),
        grub_variable("dbx", b""),
        grub_variable("dbx", SHA256_SIGNATURES.bytes_le + struct.pack("<III", 28, 0, 48)),
        take_apart(capture("direct-efistub").boot_log),
    ],
    ids=[
        "off",
        "absent",
        "test key in db",
        "test key in PK",
        "no dbx",
        "empty dbx",
        "machine without Secure Boot",
    ],
)
def test_m10_weak_secure_boot_is_not_accepted(records: Records) -> None:
    assert boot(records, reference_state())


@pytest.mark.parametrize("position", range(4))
def test_m11_an_older_boot_loader_is_not_accepted(position: int) -> None:
    records = grub_records()
    images = [item for item in records if item.type_code == EventType.EFI_BOOT_SERVICES_APPLICATION]
    older = edit(
        records, lambda item: item is images[position], lambda item: item.with_data(item.data, b"old")
    )
    assert boot(older, reference_state())


def test_m12_a_missing_log_is_not_accepted() -> None:
    for judged_by in (NO_DEMANDS, EXAMPLE, policy({"a": 1}, "accept-all")):
        assert appraise(None, judged_by, grub_pcrs()).findings
        assert appraise(b"", judged_by, grub_pcrs()).findings


def test_m12_without_a_policy_there_is_nothing_to_hold_a_log_to() -> None:
    assert compile_measured_boot_policy("null", policy_name="example", registry=built_in_policies()) is None
