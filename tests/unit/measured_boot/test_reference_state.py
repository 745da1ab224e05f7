import re
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import pytest

from keylime.errors import MalformedEvidence
from keylime.findings.finding import JsonValue
from keylime.measured_boot.event_log import EventLog, parse_event_log
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.reference_state import create_reference_state, secure_boot_is_on
from tests.captures import capture
from tests.fakes.event_logs import Record, build_log, record, variable
from tests.fakes.measured_boot import boot, edit, grub_records

GRUB = parse_event_log(capture("grub-secureboot").boot_log)
DIRECT = parse_event_log(capture("direct-efistub").boot_log)


def log_of(records: list[Record]) -> EventLog:
    return parse_event_log(build_log(records))


def test_the_captured_chain_becomes_a_reference_state() -> None:
    state = create_reference_state(GRUB, secure_boot=True)
    assert list(state) == [
        "has_secureboot",
        "scrtm_and_bios",
        "pk",
        "kek",
        "db",
        "dbx",
        "vendor_db",
        "mokdig",
        "mokxdig",
        "kernels",
    ]
    # The Authenticode digests of Debian's signed shim, GRUB and kernel, computed from the files.
    assert state["kernels"] == [
        {
            "shim_authcode_sha256": "0x80a66d53a945d2286fcadd780fae1c225aa732079cd67b5225dc78aaab4e2ff8",
            "grub_authcode_sha256": "0xa68f6d71ebddaa19751ff8d729f67d11b0df8e4c49400c3e7e90de16119e1265",
            "kernel_authcode_sha256": "0x6b1bf35c3bee9918250f593a6fff889c75c1e239cd2fe9e5bb0cd3de9dcb8e51",
            "initrd_plain_sha256": "0x33e66bf318d455a90a1d594e195287a1d14ba8bed2b883006ead5765ac87afd0",
            "kernel_cmdline": re.escape(
                "/boot/vmlinuz-6.1.0-56-amd64 root=UUID=11111111-2222-4333-8444-555555555555 ro "
                "console=ttyS0 net.ifnames=0 ima_appraise=log ima_policy=tcb lab.mode=capture lab.nonce=b2"
            ),
        }
    ]
    assert state["dbx"] == [
        {
            "SignatureOwner": "a0baa8a3-041d-48a8-bc87-c36d121b5e3d",
            "SignatureData": "0xe3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        }
    ]
    assert state["mokdig"] == [
        {"sha256": "0x342c88bb9fde2c45eeaa17321262b089181e7e841ef5a4a5e8ed240920026f97"}
    ]


def test_the_log_itself_says_whether_secure_boot_is_on() -> None:
    assert secure_boot_is_on(GRUB)
    assert not secure_boot_is_on(DIRECT)
    assert create_reference_state(GRUB)["has_secureboot"] is True
    assert create_reference_state(DIRECT)["has_secureboot"] is False


def test_a_log_with_secure_boot_off_must_be_asked_for() -> None:
    with pytest.raises(MalformedEvidence, match="Secure Boot is off"):
        create_reference_state(DIRECT, secure_boot=True)
    assert create_reference_state(DIRECT, secure_boot=False)["has_secureboot"] is False


def images_of(state: Mapping[str, JsonValue]) -> int:
    (kernel,) = cast("list[dict[str, list[str]]]", state["kernels"])
    return len(kernel.get("applications_authcode_sha256", ()))


def test_another_chain_than_shim_and_grub_is_a_list_of_images() -> None:
    assert images_of(create_reference_state(GRUB)) == 0
    assert images_of(create_reference_state(DIRECT)) == 1
    # Three images are a chain of the known kind with Secure Boot, two without.
    assert images_of(create_reference_state(GRUB, secure_boot=False)) == 3


def test_programs_out_of_the_firmware_are_no_part_of_the_chain() -> None:
    guid = bytes(range(16))
    path = b"\x04\x07\x14\x00" + guid + b"\x04\x06\x14\x00" + guid + b"\x7f\xff\x04\x00"
    data = bytes(24) + len(path).to_bytes(8, "little") + path
    setup = record(4, EventType.EFI_BOOT_SERVICES_APPLICATION, data, b"setup")
    assert (
        create_reference_state(log_of([setup, *grub_records()]))["kernels"]
        == create_reference_state(GRUB)["kernels"]
    )


def test_a_chain_without_secure_boot_satisfies_its_reference_state() -> None:
    off = variable(bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c"), "SecureBoot", b"\0")
    records = edit(
        grub_records(), lambda item: len(item.data) == 53 and item.pcr == 7, lambda item: item.with_data(off)
    )
    started = [item for item in records if item.type_code == EventType.EFI_BOOT_SERVICES_APPLICATION]
    records = [item for item in records if item not in started[2:]]
    records.insert(0, record(0, EventType.NO_ACTION, b"StartupLocality\0\3"))
    state = create_reference_state(log_of(records))
    assert state["has_secureboot"] is False
    assert boot(records, state) == ()


def test_a_log_whose_data_are_not_what_was_measured_is_no_base() -> None:
    records = grub_records()
    records[3] = replace(records[3], data=records[3].data[:-1] + b"\0")
    with pytest.raises(MalformedEvidence, match="event 4: data are not what was measured"):
        create_reference_state(log_of(records))


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (build_log([]), "no events"),
        (build_log([record(0, EventType.NO_ACTION, b"x")]), "no events"),
        (record(0, EventType.SEPARATOR, bytes(4)).encode_sha1(), "no SHA-256 digests"),
        (
            build_log(
                [record(7, EventType.EFI_VARIABLE_DRIVER_CONFIG, variable(bytes(16), "db", b"garbage"))],
            ),
            "variable db: ",
        ),
    ],
)
def test_a_log_that_says_too_little_is_no_base(log: bytes, reason: str) -> None:
    with pytest.raises(MalformedEvidence, match=reason):
        create_reference_state(parse_event_log(log))
