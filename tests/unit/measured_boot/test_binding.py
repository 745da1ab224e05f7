from dataclasses import replace
from typing import Any

import pytest

from keylime.measured_boot.binding import Binding, data_binding
from keylime.measured_boot.event_log import Event, parse_event_log
from keylime.measured_boot.event_types import EventType
from tests.captures import captures
from tests.fakes.event_logs import Record, build_log, record, variable

COVERED = {
    EventType.SEPARATOR,
    EventType.ACTION,
    EventType.EFI_ACTION,
    EventType.S_CRTM_VERSION,
    EventType.EFI_GPT_EVENT,
    EventType.EFI_VARIABLE_DRIVER_CONFIG,
    EventType.EFI_VARIABLE_AUTHORITY,
    EventType.EFI_VARIABLE_BOOT,
}
BOOT_ORDER = variable(bytes(16), "BootOrder", b"\1\0")


def read(item: Record) -> Event:
    return parse_event_log(build_log([item])).events[1]


def test_no_event_of_a_genuine_log_contradicts_its_digest() -> None:
    for captured in captures():
        for event in parse_event_log(captured.boot_log).events:
            is_covered = event.type_code in COVERED or (event.type_code == EventType.IPL and event.pcr == 8)
            assert data_binding(event) is (Binding.BOUND if is_covered else Binding.UNBOUND), event


@pytest.mark.parametrize("kind", sorted(COVERED))
def test_other_data_than_those_measured_are_a_mismatch(kind: EventType) -> None:
    assert data_binding(read(record(7, kind, b"data"))) is Binding.BOUND
    other = data_binding(read(record(7, kind, b"data", measured=b"other")))
    assert other is (Binding.UNBOUND if kind is EventType.S_CRTM_VERSION else Binding.MISMATCH)


@pytest.mark.parametrize(
    ("item", "binding"),
    [
        # Shim before 15.4 leaves the last byte out; no other type of event may.
        (record(7, EventType.EFI_VARIABLE_AUTHORITY, b"data", measured=b"dat"), Binding.BOUND),
        (record(7, EventType.EFI_VARIABLE_AUTHORITY, b"data", measured=b"da"), Binding.MISMATCH),
        (record(7, EventType.EFI_VARIABLE_DRIVER_CONFIG, b"data", measured=b"dat"), Binding.MISMATCH),
        (record(3, EventType.SEPARATOR, bytes(20)), Binding.BOUND),
        (record(3, EventType.SEPARATOR, bytes(20), measured=bytes(4)), Binding.BOUND),
        (record(3, EventType.SEPARATOR, b"\1" + bytes(19), measured=bytes(4)), Binding.MISMATCH),
        # The text of an action ends with a NUL, or does not: what is logged and what is measured.
        (record(5, EventType.EFI_ACTION, b"Exit\0", measured=b"Exit"), Binding.BOUND),
        (record(5, EventType.EFI_ACTION, b"Exit", measured=b"Exit\0"), Binding.BOUND),
        (record(4, EventType.ACTION, b"Calling INT 19h\0", measured=b"Calling INT 19h"), Binding.BOUND),
        (record(5, EventType.EFI_ACTION, b"Exit\0\0", measured=b"Exit"), Binding.MISMATCH),
        (record(5, EventType.EFI_ACTION, b"Exit", measured=b"Exi"), Binding.MISMATCH),
        (record(5, EventType.EFI_ACTION, b"\xff\0", measured=b"\xff"), Binding.MISMATCH),
        # GRUB's two dialects, and systemd-boot before 251.
        (record(8, EventType.IPL, b"grub_cmd: a b\0", measured=b"a b"), Binding.BOUND),
        (record(8, EventType.IPL, b"grub_cmd a b\0", measured=b"a b\0"), Binding.BOUND),
        (record(8, EventType.IPL, b"grub_kernel_cmdline /k quiet\0", measured=b"/k quiet"), Binding.BOUND),
        (record(8, EventType.IPL, b"grub_cmd a b\0", measured=b"a c\0"), Binding.MISMATCH),
        (record(8, EventType.IPL, b"q\0u\0\0", measured=b"q\0u\0\0\0"), Binding.BOUND),
        (record(8, EventType.IPL, b"q\0u\0\0", measured=b"other"), Binding.MISMATCH),
        (record(8, EventType.IPL, b"hello\0", measured=b"other"), Binding.UNBOUND),
    ],
)
def test_what_is_known_to_be_measured_otherwise_is_told_from_forgery(item: Record, binding: Binding) -> None:
    assert data_binding(read(item)) is binding


def test_a_mismatch_in_one_bank_is_a_mismatch() -> None:
    good = record(7, EventType.SEPARATOR, bytes(4))
    for position, (bank, digest) in enumerate(good.digests):
        digests = list(good.digests)
        digests[position] = (bank, bytes(reversed(digest)))
        assert data_binding(read(replace(good, digests=tuple(digests)))) is Binding.MISMATCH


@pytest.mark.parametrize("measured", [BOOT_ORDER, b"\1\0"], ids=["structure", "value"])
def test_boot_variables_are_measured_as_structure_or_as_value(measured: bytes) -> None:
    assert data_binding(read(record(1, EventType.EFI_VARIABLE_BOOT, BOOT_ORDER, measured))) is Binding.BOUND


def test_other_variables_are_measured_as_structure_only() -> None:
    event = read(record(7, EventType.EFI_VARIABLE_DRIVER_CONFIG, BOOT_ORDER, b"\1\0"))
    assert data_binding(event) is Binding.MISMATCH


@pytest.mark.parametrize("prefix", [b"grub_cmd: ", b"kernel_cmdline: ", b"module_cmdline: "])
def test_grub_measures_the_text_behind_its_prefix(prefix: bytes) -> None:
    assert data_binding(read(record(8, EventType.IPL, prefix + b"text\0", b"text"))) is Binding.BOUND
    assert data_binding(read(record(8, EventType.IPL, prefix + b"text\0", b"tent"))) is Binding.MISMATCH
    assert (
        data_binding(read(record(8, EventType.IPL, prefix + b"text\0", prefix + b"text\0")))
        is Binding.MISMATCH
    )


def test_file_names_and_image_paths_are_not_covered() -> None:
    assert data_binding(read(record(9, EventType.IPL, b"/boot/vmlinuz\0", b"content"))) is Binding.UNBOUND
    image = record(4, EventType.EFI_BOOT_SERVICES_APPLICATION, bytes(32), b"image")
    assert data_binding(read(image)) is Binding.UNBOUND


def test_a_file_whose_name_begins_like_a_command_is_not_covered_either() -> None:
    item = record(9, EventType.IPL, b"grub_cmd: text\0", b"text")
    assert data_binding(read(item)) is Binding.UNBOUND


class BankWithoutLibrary:
    """A bank whose hash the crypto library does not have, as SM3 in many builds."""

    def digest(self, _: bytes) -> bytes:
        raise ValueError("unsupported hash type")


def test_a_digest_that_cannot_be_computed_speaks_neither_for_nor_against_the_data() -> None:
    missing: Any = BankWithoutLibrary()
    event = read(record(7, EventType.SEPARATOR, bytes(4)))
    assert data_binding(replace(event, digests={**event.digests, missing: b""})) is Binding.BOUND
    assert data_binding(replace(event, digests={missing: b""})) is Binding.MISMATCH


def test_data_without_a_digest_that_can_be_computed_are_not_bound() -> None:
    event = replace(read(record(7, EventType.SEPARATOR, bytes(4))), digests={})
    assert data_binding(event) is Binding.MISMATCH
