import struct
import uuid
from collections.abc import Callable
from dataclasses import replace

import pytest

from keylime.errors import PolicyError
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.variables import (
    GLOBAL_VARIABLE,
    IMAGE_SECURITY,
    SHA256_SIGNATURES,
    SHIM_LOCK,
    X509_SIGNATURES,
)
from tests.captures import capture
from tests.fakes.event_logs import Record, record, variable
from tests.fakes.measured_boot import (
    SHA256,
    Records,
    appraise,
    boot,
    edit,
    grub_pcrs,
    grub_records,
    policy,
    reference_state,
)

Chosen = Callable[[Record], bool]

ABAB = "0x" + "ab" * 32
CONFIG, AUTHORITY = EventType.EFI_VARIABLE_DRIVER_CONFIG, EventType.EFI_VARIABLE_AUTHORITY
APPLICATION = EventType.EFI_BOOT_SERVICES_APPLICATION
ZERO = uuid.UUID(int=0)
ZERO_KEY = {"SignatureOwner": str(ZERO), "SignatureData": ABAB}


def reasons(records: Records, refstate: object) -> str:
    return " ".join(str(finding.context["reason"]) for finding in boot(records, refstate))


def of(pcr: int, kind: EventType, text: bytes = b"") -> Chosen:
    return lambda item: item.pcr == pcr and item.type_code == kind and text in item.data


def named(name: str, kind: EventType = CONFIG) -> Chosen:
    marker = struct.pack("<Q", len(name))
    return lambda item: (
        item.type_code == kind
        and (item.data[16:24], item.data[32 : 32 + 2 * len(name)])
        == (
            marker,
            name.encode("utf-16-le"),
        )
    )


def with_variable(name: str, guid: uuid.UUID, value: bytes) -> list[Record]:
    return edit(
        grub_records(), named(name), lambda item: item.with_data(variable(guid.bytes_le, name, value))
    )


def without(chosen: Chosen) -> list[Record]:
    kept = [item for item in grub_records() if not chosen(item)]
    assert len(kept) < len(grub_records())
    return kept


def after(chosen: Chosen, *added: Record) -> list[Record]:
    records = grub_records()
    position = max(index for index, item in enumerate(records) if chosen(item))
    return [*records[: position + 1], *added, *records[position + 1 :]]


def measured(chosen: Chosen, image: bytes) -> list[Record]:
    """The same log after a boot that measured `image` there."""
    return edit(grub_records(), chosen, lambda item: item.with_data(item.data, image))


def signature_list(kind: uuid.UUID, *data: bytes) -> bytes:
    body = b"".join(ZERO.bytes_le + item for item in data)
    return kind.bytes_le + struct.pack("<III", 28 + len(body), 0, 16 + len(data[0])) + body


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
        (without(named("SecureBoot")), "not measured: SecureBoot"),
        (without(named("dbx")), "not measured: dbx"),
        (with_variable("SecureBoot", GLOBAL_VARIABLE, b"\0"), "SecureBoot is off"),
        (with_variable("SecureBoot", GLOBAL_VARIABLE, b""), "SecureBoot is off"),
        (with_variable("SecureBoot", IMAGE_SECURITY, b"\1"), "variable is not expected"),
        (with_variable("PK", GLOBAL_VARIABLE, b""), "PK has no signature list"),
        (with_variable("PK", GLOBAL_VARIABLE, b"garbage"), "PK has no signature list"),
        (with_variable("PK", GLOBAL_VARIABLE, signature_list(X509_SIGNATURES, b"x")), "PK has 1 keys"),
        (with_variable("KEK", GLOBAL_VARIABLE, signature_list(SHA256_SIGNATURES, b"x")), "of another type"),
        (with_variable("db", IMAGE_SECURITY, signature_list(X509_SIGNATURES, b"test key")), "db has 1 keys"),
        (with_variable("dbx", IMAGE_SECURITY, b""), "dbx is not exactly one list"),
        (
            with_variable("dbx", IMAGE_SECURITY, signature_list(X509_SIGNATURES, bytes(32))),
            "is not exactly one",
        ),
        (
            with_variable("dbx", IMAGE_SECURITY, signature_list(SHA256_SIGNATURES, bytes(32))),
            "lacks 1 hashes",
        ),
        (after(named("PK"), *filter(named("PK"), grub_records())), "PK is measured more than once"),
        (
            [*without(named("KEK")), *filter(named("KEK"), grub_records())],
            "KEK is measured after the separator",
        ),
        (
            [*grub_records(), *filter(named("SbatLevel", AUTHORITY), grub_records())],
            "'SbatLevel' more than once",
        ),
        ([*grub_records(), record(7, AUTHORITY, b"x")], "not a variable"),
        ([*grub_records(), record(7, AUTHORITY, variable(SHIM_LOCK.bytes_le, "Evil", b""))], "'Evil' is not"),
        (
            [*grub_records(), record(7, AUTHORITY, variable(SHIM_LOCK.bytes_le, "MokListTrusted", b"\2"))],
            "neither on nor off",
        ),
        (
            [
                *grub_records(),
                record(
                    7,
                    AUTHORITY,
                    variable(IMAGE_SECURITY.bytes_le, "vendor_db", bytes(16) + b"\x30\x82\0\1x"),
                ),
            ],
            "vendor_db has keys",
        ),
        (
            [*grub_records(), record(7, AUTHORITY, variable(IMAGE_SECURITY.bytes_le, "vendor_db", b""))],
            "has keys",
        ),
        ([*grub_records(), record(8, EventType.IPL, b"hello\0")], "neither a GRUB command"),
        ([*grub_records(), record(9, EventType.IPL, b"/boot/evil\0")], "file '/boot/evil' is not expected"),
        ([*grub_records(), record(9, EventType.IPL, b"/grub\n\0")], "line break"),
        ([*grub_records(), record(9, EventType.IPL, b"\xff\xfe\xfd")], "file '' is not expected"),
        ([*grub_records(), record(14, EventType.IPL, b"MokListZ\0")], "'MokListZ' is not expected"),
        (measured(of(14, EventType.IPL, b"MokList\0"), b"my key"), "MokList is not one of"),
        (measured(of(14, EventType.IPL, b"MokListX\0"), b""), "MokListX is not one of"),
        (measured(of(14, EventType.IPL, b"MokListTrusted\0"), b"my key"), "MokListTrusted is not one of"),
        (measured(of(0, EventType.EFI_PLATFORM_FIRMWARE_BLOB), b"old"), "firmware is none of"),
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
            "other images were started (5 of them)",
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


def kernel(**changes: str) -> dict[str, str]:
    return {**reference_state()["kernels"][0], **changes}


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


def no_secure_boot() -> tuple[list[Record], dict[str, object]]:
    """A boot of the same chain with Secure Boot off: GRUB starts the kernel itself."""
    started = [item for item in grub_records() if of(4, APPLICATION)(item)]
    records = [
        item for item in with_variable("SecureBoot", GLOBAL_VARIABLE, b"\0") if item not in started[2:]
    ]
    (vmlinuz,) = filter(of(9, EventType.IPL, b"/vmlinuz"), records)
    good = kernel(vmlinuz_plain_sha256=f"0x{dict(vmlinuz.digests)[SHA256].hex()}")
    del good["kernel_authcode_sha256"]
    return records, reference_state(has_secureboot=False, kernels=[good])


def test_without_secure_boot_the_kernel_file_is_judged() -> None:
    records, refstate = no_secure_boot()
    assert boot(records, refstate) == ()
    other = edit(records, of(9, EventType.IPL, b"/vmlinuz"), lambda item: item.with_data(item.data, b"evil"))
    assert "another kernel file was loaded" in reasons(other, refstate)
    assert "SecureBoot is on" in reasons(grub_records(), refstate)


def test_without_secure_boot_empty_key_lists_allow_any_keys() -> None:
    records, refstate = no_secure_boot()
    assert boot(records, {**refstate, "pk": [], "kek": [], "db": [], "dbx": []}) == ()
    assert "PK has 1 keys" in reasons(records, {**refstate, "pk": [ZERO_KEY]})
    assert "lacks 1 hashes" in reasons(records, {**refstate, "dbx": [ZERO_KEY]})


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
