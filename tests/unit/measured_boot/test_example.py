import struct
import uuid
from dataclasses import replace

import pytest

from keylime.errors import PolicyError
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.replay import replay_event_log
from keylime.measured_boot.variables import (
    GLOBAL_VARIABLE,
    SHIM_LOCK,
)
from tests.captures import capture
from tests.fakes.event_logs import Record, build_log, record, variable
from tests.fakes.measured_boot import (
    SHA256,
    Records,
    after,
    appraise,
    boot,
    edit,
    grub_pcrs,
    grub_records,
    kernel,
    measured,
    named,
    no_secure_boot,
    of,
    policy,
    reasons,
    reference_state,
    without,
)

FIRMWARE = (EventType.S_CRTM_VERSION, EventType.EFI_PLATFORM_FIRMWARE_BLOB)
ABAB = "0x" + "ab" * 32
AUTHORITY = EventType.EFI_VARIABLE_AUTHORITY
APPLICATION = EventType.EFI_BOOT_SERVICES_APPLICATION
ZERO = uuid.UUID(int=0)
SECOND_VOLUME = struct.pack("<Q", 0x900000)  # its address
ZERO_KEY = {"SignatureOwner": str(ZERO), "SignatureData": ABAB}


def test_a_boot_satisfies_the_reference_state_made_from_it() -> None:
    assert boot(grub_records(), reference_state()) == ()
    assert (
        appraise(capture("grub-secureboot").boot_log, policy(reference_state()), grub_pcrs()).findings == ()
    )


def test_only_the_pcrs_of_shim_and_grub_boots_are_needed() -> None:
    assert policy(reference_state()).required_pcrs == {*range(10), 14}


def kernel_started_once() -> list[Record]:
    records = grub_records()
    last = max(index for index, item in enumerate(records) if of(4, APPLICATION)(item))
    return [*records[:last], *records[last + 1 :]]


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(
            [record(0, EventType.NO_ACTION, b"StartupLocality\0\3"), *grub_records()], id="locality"
        ),
        pytest.param([*grub_records(), record(0, EventType.NO_ACTION, b"SP800-155 Event3")], id="no action"),
        pytest.param(
            [*grub_records(), record(1, EventType.CPU_MICROCODE, b"patch", b"code")], id="microcode"
        ),
        pytest.param([*grub_records(), record(1, EventType.EFI_HANDOFF_TABLES, bytes(8), b"x")], id="tables"),
        pytest.param([*grub_records(), *[record(1, EventType.PLATFORM_CONFIG_FLAGS, b"x")] * 4], id="flags"),
        pytest.param(
            [*grub_records(), record(2, EventType.EFI_BOOT_SERVICES_DRIVER, bytes(32))], id="driver"
        ),
        pytest.param(
            [*grub_records(), record(1, EventType.EFI_ACTION, b"Entering ROM Based Setup")], id="setup"
        ),
        pytest.param([*grub_records(), record(8, EventType.IPL, b"grub_cmd: a\nb\0", b"a\nb")], id="lines"),
        pytest.param(
            [*grub_records(), record(9, EventType.IPL, b"/loader/entries/initrd.conf\0")], id="entry"
        ),
        pytest.param(kernel_started_once(), id="kernel started once"),
        pytest.param(
            [*grub_records(), record(7, AUTHORITY, variable(SHIM_LOCK.bytes_le, "MokListTrusted", b"\1"))],
            id="shim trusts its list",
        ),
    ],
)
def test_what_good_machines_may_do_in_addition_is_accepted(records: Records) -> None:
    assert boot(records, reference_state()) == ()


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([*grub_records(), record(6, EventType.EFI_ACTION, b"x")], "EV_EFI_ACTION in PCR 6: not expected"),
        ([*grub_records(), record(5, EventType.EFI_ACTION, b"Exit now")], "unknown action"),
        (
            [*grub_records(), record(4, EventType.EFI_ACTION, b"Exit Boot Services Invocation")],
            "unknown action",
        ),
        ([*grub_records(), record(4, EventType.EFI_VARIABLE_BOOT2, b"x")], "EV_EFI_VARIABLE_BOOT2 in PCR 4"),
        ([*grub_records(), record(5, 0x77, b"x")], "Unknown event type in PCR 5"),
        ([*grub_records(), *[record(1, EventType.CPU_MICROCODE, b"x")] * 2], "more than once"),
        ([*grub_records(), *[record(1, EventType.PLATFORM_CONFIG_FLAGS, b"x")] * 5], "more than 4 times"),
        (
            after(of(5, EventType.EFI_GPT_EVENT), *filter(of(5, EventType.EFI_GPT_EVENT), grub_records())),
            "once",
        ),
        ([*grub_records(), record(1, EventType.EFI_VARIABLE_BOOT, b"x")], "not a boot variable"),
        (
            [
                *grub_records(),
                record(1, EventType.EFI_VARIABLE_BOOT, variable(ZERO.bytes_le, "Boot0001", b"")),
            ],
            "not a boot variable",
        ),
        (
            [
                *grub_records(),
                record(1, EventType.EFI_VARIABLE_BOOT, variable(GLOBAL_VARIABLE.bytes_le, "Boot\x1b", b"")),
            ],
            r"'Boot\x1b' is not expected",
        ),
        (without(of(3, EventType.SEPARATOR)), "PCR 3 has no separator"),
        ([*grub_records(), record(3, EventType.SEPARATOR, bytes(4))], "separator more than once"),
        (
            edit(grub_records(), of(2, EventType.SEPARATOR), lambda item: item.with_data(b"\1\0\0\0")),
            "an error",
        ),
        ([*grub_records(), record(8, EventType.IPL, b"hello\0")], "neither a GRUB command"),
        ([*grub_records(), record(9, EventType.IPL, b"/boot/evil\0")], "file '/boot/evil' is not expected"),
        ([*grub_records(), record(9, EventType.IPL, b"/grub\n\0")], "file '/grub\\n' is not expected"),
        ([*grub_records(), record(9, EventType.IPL, b"\xff\xfe\xfd")], "file '' is not expected"),
        ([*grub_records(), record(14, EventType.IPL, b"\xff\xfe\xfd")], "'' is not expected"),
        ([*grub_records(), record(14, EventType.IPL, b"MokListZ\0")], "'MokListZ' is not expected"),
        (measured(of(14, EventType.IPL, b"MokList\0"), b"my key"), "MokList is not one of"),
        (measured(of(14, EventType.IPL, b"MokListX\0"), b""), "MokListX is not one of"),
        (measured(of(14, EventType.IPL, b"MokListTrusted\0"), b"my key"), "MokListTrusted is not one of"),
        (
            [*grub_records(), *filter(of(14, EventType.IPL, b"MokListTrusted"), grub_records())],
            "MokListTrusted more than once",
        ),
        (measured(of(0, EventType.EFI_PLATFORM_FIRMWARE_BLOB), b"old"), "firmware is none of"),
        (measured(of(0, EventType.EFI_PLATFORM_FIRMWARE_BLOB, SECOND_VOLUME), b"old"), "firmware is none of"),
        (without(of(0, EventType.EFI_PLATFORM_FIRMWARE_BLOB)), "firmware is none of"),
        (
            edit(grub_records(), of(0, EventType.S_CRTM_VERSION), lambda item: item.with_data(b"2")),
            "firmware is none of",
        ),
        ([*grub_records(), record(0, EventType.S_CRTM_VERSION, bytes(2))], "firmware is none of"),
        (
            measured(of(4, APPLICATION, "BOOTX64".encode("utf-16-le")), b"evil shim"),
            "other images were started",
        ),
        (
            measured(of(4, APPLICATION, "grubx64".encode("utf-16-le")), b"evil grub"),
            "other images were started",
        ),
        (
            [*grub_records(), record(4, APPLICATION, bytes(32), b"tool")],
            "other images were started (4 of them)",
        ),
        (measured(of(9, EventType.IPL, b"initrd"), b"evil initrd"), "another initrd was loaded"),
        (without(of(9, EventType.IPL, b"initrd")), "0 initrds were loaded"),
        ([*grub_records(), record(9, EventType.IPL, b"/initramfs.img\0")], "2 initrds were loaded"),
        (without(of(9, EventType.IPL, b"vmlinuz")), "0 kernel files were loaded"),
        (
            edit(
                grub_records(),
                of(8, EventType.IPL, b"kernel_cmdline: "),
                lambda item: item.with_data(b"kernel_cmdline: init=/bin/sh\0", b"init=/bin/sh"),
            ),
            "command line is ['init=/bin/sh']",
        ),
        (without(of(8, EventType.IPL, b"kernel_cmdline: ")), "command line is []"),
    ],
)
def test_any_other_boot_is_rejected_with_its_reason(records: Records, reason: str) -> None:
    assert reason in reasons(records, reference_state())


def test_all_reasons_are_named_with_the_first_event() -> None:
    records = edit(
        grub_records(), named("SecureBoot"), lambda item: replace(item, data=item.data[:-1] + b"\2")
    )
    (finding,) = boot([*records, record(5, 0x77, b"x")], reference_state())
    assert finding.event_id == "measured_boot.policy_example"
    assert finding.recoverable
    assert finding.log_index == 4
    assert finding.context["policy"] == "example"
    assert finding.context["refstate"] == reference_state()
    assert finding.context["reason"] == (
        "event 4: EV_EFI_VARIABLE_DRIVER_CONFIG in PCR 7: data are not what was measured; "
        "event 56: Unknown event type in PCR 5: not expected; "
        "Secure Boot variables are not measured: SecureBoot"
    )


NEXT_KERNEL = kernel(kernel_authcode_sha256=ABAB, initrd_plain_sha256=ABAB, kernel_cmdline=".*quiet")


@pytest.mark.parametrize(
    "changes",
    [
        {"kernels": [NEXT_KERNEL, kernel()]},
        {"kernels": [kernel(kernel_cmdline=".*")]},
        {"kernels": [kernel(kernel_cmdline=r"(?=/boot).*lab\.nonce=b2")]},  # needs more than linear matching
        {"dbx": []},
        {"db": [*reference_state()["db"], ZERO_KEY]},
        {"vendor_db": [ZERO_KEY]},
        {"mokdig": [{"sha256": ABAB}, *reference_state()["mokdig"]]},
        {"scrtm_and_bios": [{"scrtm": {}, "platform_firmware": []}, *reference_state()["scrtm_and_bios"]]},
        {"a comment": "is ignored"},
    ],
)
def test_a_reference_state_may_allow_more(changes: dict[str, object]) -> None:
    assert boot(grub_records(), reference_state(**changes)) == ()


def test_two_kernels_can_be_blessed_at_once() -> None:
    def upgraded(records: Records) -> list[Record]:
        image = [item for item in records if of(4, APPLICATION)(item)][2].digests
        new = edit(
            records, lambda item: item.digests == image, lambda item: item.with_data(item.data, b"kernel 2")
        )
        return edit(new, of(9, EventType.IPL, b"initrd"), lambda item: item.with_data(item.data, b"initrd 2"))

    records = grub_records()
    second = kernel(
        kernel_authcode_sha256=f"0x{SHA256.digest(b'kernel 2').hex()}",
        initrd_plain_sha256=f"0x{SHA256.digest(b'initrd 2').hex()}",
    )
    both = reference_state(kernels=[kernel(), second])
    assert boot(records, both) == ()
    assert boot(upgraded(records), both) == ()
    assert "kernels[0]: other images" in reasons(upgraded(records), reference_state())
    mixed = edit(
        upgraded(records), of(9, EventType.IPL, b"initrd"), lambda item: item.with_data(item.data, b"1")
    )
    assert "kernels[1]: another initrd" in reasons(mixed, both)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kernels": []}, "there is none"),
        ({"kernels": [NEXT_KERNEL]}, "kernels[0]: other images"),
        ({"kernels": [kernel(kernel_cmdline="/boot")]}, "command line"),
        ({"scrtm_and_bios": []}, "firmware is none of"),
        ({"pk": []}, "PK has 1 keys"),
        ({"db": reference_state()["db"][:1]}, "db has 1 keys"),
        ({"dbx": [*reference_state()["dbx"], ZERO_KEY]}, "dbx lacks 1 hashes"),
        ({"mokxdig": []}, "MokListX is not one of"),
        ({"mokdig": [{"sha1": "0x" + "00" * 20}]}, "MokList is not one of"),
    ],
)
def test_a_reference_state_may_allow_less(changes: dict[str, object], reason: str) -> None:
    assert reason in reasons(grub_records(), reference_state(**changes))


def test_without_secure_boot_the_kernel_file_is_judged() -> None:
    records, refstate = no_secure_boot()
    assert boot(records, refstate) == ()
    other = edit(records, of(9, EventType.IPL, b"/vmlinuz"), lambda item: item.with_data(item.data, b"evil"))
    assert "another kernel file was loaded" in reasons(other, refstate)
    assert "SecureBoot is on" in reasons(grub_records(), refstate)


def test_a_finding_shows_the_digest_of_the_first_event_in_the_quoted_bank() -> None:
    wrong = record(5, 0x77, b"x")
    (finding,) = boot([*grub_records(), wrong], reference_state())
    assert finding.observed == dict(wrong.digests)[SHA256].hex()


def test_unknown_firmware_is_shown_by_all_its_digests_in_the_quoted_bank() -> None:
    firmware = [item for item in grub_records() if item.type_code in FIRMWARE]
    (finding,) = boot(grub_records(), reference_state(scrtm_and_bios=[]))
    assert finding.observed == " ".join(dict(item.digests)[SHA256].hex() for item in firmware)
    (finding,) = boot(without(lambda item: item in firmware), reference_state())
    assert finding.observed == "none"


def test_a_list_of_shim_that_is_not_listed_is_shown_with_those_that_are() -> None:
    listed = [{"sha256": ABAB}, {"sha1": "0x" + "00" * 20}]
    (finding,) = boot(grub_records(), reference_state(mokdig=listed))
    assert finding.expected == (ABAB.removeprefix("0x"),)


def test_a_log_without_sha256_is_judged_by_nothing_but_its_own_bank() -> None:
    sha1 = HashAlgorithm.SHA1
    records = [replace(item, digests=item.digests[:1]) for item in grub_records()]
    assert {bank for item in records for bank, _ in item.digests} == {sha1}
    log = build_log(records, [sha1])
    quoted = replay_event_log(parse_event_log(log))[sha1]
    (finding,) = appraise(log, policy(reference_state()), quoted, bank=sha1).findings
    assert str(finding.context["reason"]).endswith("the quote covers the sha1 bank")


def test_digests_of_a_bank_that_was_not_quoted_count_for_nothing() -> None:
    sha1 = HashAlgorithm.SHA1
    refstate = reference_state()
    finding = appraise(
        capture("grub-secureboot").boot_log, policy(refstate), grub_pcrs(sha1), bank=sha1
    ).findings[0]
    assert "the quote covers the sha1 bank" in str(finding.context["reason"])
    assert "firmware is none of" in str(finding.context["reason"])


def test_a_bank_that_the_log_lacks_matches_nothing() -> None:
    log = parse_event_log(capture("grub-secureboot").boot_log)
    (finding,) = policy(reference_state()).evaluate(log, HashAlgorithm.SHA384)
    for reason in (
        "MokList is not one of",
        "MokListX is not one of",
        "firmware is none of",
        "the sha384 bank",
    ):
        assert reason in str(finding.context["reason"])


@pytest.mark.parametrize(
    ("changes", "member"),
    [
        ({"pk": None}, r"\$.pk"),
        ({"kernels": {}}, r"\$.kernels"),
        ({"has_secureboot": "yes"}, r"\$.has_secureboot"),
        ({"dbx": [{"SignatureOwner": "a"}]}, "SignatureData"),
        ({"dbx": [{"SignatureOwner": "a", "SignatureData": "0xab"}]}, "dbx: SignatureOwner"),
        ({"dbx": [{"SignatureOwner": str(ZERO), "SignatureData": "ab"}]}, "SignatureData"),
        ({"mokdig": [{"sha256": "0xa"}]}, "mokdig"),
        ({"mokdig": [{"sha256": "0xAB"}]}, "mokdig"),
        ({"kernels": [kernel(kernel_cmdline="(")]}, r"kernels\[0\].kernel_cmdline"),
        *(
            ({"kernels": [kernel(kernel_cmdline=text)]}, r"kernels\[0\].kernel_cmdline")
            for text in ("(?a)(?u)x", "(?=" * 5000 + ")" * 5000, "(?=a{99999999999})")
        ),
        ({"kernels": [{**kernel(), "initrd_plain_sha256": 1}]}, "initrd_plain_sha256"),
        ({"has_secureboot": False}, r"kernels\[0\].vmlinuz_plain_sha256 is missing"),
    ],
)
def test_a_malformed_reference_state_is_refused_and_names_the_member(
    changes: dict[str, object], member: str
) -> None:
    with pytest.raises(PolicyError, match=member):
        policy(reference_state(**changes))


def test_every_member_but_two_is_required() -> None:
    for member in set(reference_state()) - {"has_secureboot", "vendor_db"}:
        refstate = reference_state()
        del refstate[member]
        with pytest.raises(PolicyError, match=member):
            policy(refstate)
    refstate = reference_state()
    del refstate["has_secureboot"], refstate["vendor_db"]
    assert boot(grub_records(), refstate) == ()
