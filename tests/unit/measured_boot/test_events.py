import struct
import uuid

import pytest

from keylime.errors import MalformedEvidence
from keylime.measured_boot.device_path import render_device_path
from keylime.measured_boot.event_log import Event, parse_event_log
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.events import (
    CrtmVersion,
    EventData,
    FirmwareBlob,
    GptPartition,
    GptTable,
    HandoffTables,
    ImageLoad,
    Opaque,
    Separator,
    StartupLocality,
    TaggedEvent,
    Text,
    decode_event_data,
)
from keylime.measured_boot.variables import (
    GLOBAL_VARIABLE,
    IMAGE_SECURITY,
    SHA256_SIGNATURES,
    SHIM_LOCK,
    X509_SIGNATURES,
    BootOption,
    EfiSignature,
    UefiVariable,
    parse_signature_lists,
)
from tests.captures import capture
from tests.fakes.event_logs import variable

GRUB = capture("grub-secureboot")
CERTIFICATE = b"\x30\x82\x00\x03abc"
ACPI_TABLE = uuid.UUID("8868e871-e4f1-11d3-bc22-0080c73c8881")


def grub_events(kind: EventType) -> list[Event]:
    return [event for event in parse_event_log(GRUB.boot_log).events if event.type_code == kind]


def grub_variable(name: str) -> UefiVariable:
    for kind in (
        EventType.EFI_VARIABLE_DRIVER_CONFIG,
        EventType.EFI_VARIABLE_BOOT,
        EventType.EFI_VARIABLE_AUTHORITY,
    ):
        for event in grub_events(kind):
            if isinstance(event.decoded, UefiVariable) and event.decoded.name == name:
                return event.decoded
    raise AssertionError(name)


def node(kind: int, subtype: int, body: bytes) -> bytes:
    return struct.pack("<BBH", kind, subtype, len(body) + 4) + body


END = node(0x7F, 0xFF, b"")


def partition_table(*, entry_size: int, count: int) -> bytes:
    """The header of a table and the number of its used entries, which follow."""
    header = b"EFI PART" + bytes(16) + bytes(32) + bytes(16) + struct.pack("<QIII", 2, 128, entry_size, 0)
    return header + struct.pack("<Q", count)


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        (EventType.NO_ACTION, b"StartupLocality\0\3", StartupLocality(3)),
        (EventType.NO_ACTION, b"StartupLocality\0\3".ljust(100, b"\0"), StartupLocality(3)),
        (EventType.NO_ACTION, b"StartupLocality\0\4padding", StartupLocality(4)),
        (EventType.SEPARATOR, b"\xff\xff\xff\xff", Separator(0xFFFFFFFF)),
        (EventType.SEPARATOR, b"\1\0\0\0", Separator(1)),
        (EventType.SEPARATOR, bytes(20), Separator(0)),
        (EventType.IPL, b"MokList\0\xaf", Text("MokList")),  # a stray byte of old shims
        (EventType.IPL, "root=/dev/vda\0".encode("utf-16-le")[:-1], Text("root=/dev/vda")),
        (EventType.POST_CODE, b"ACPI DATA", Text("ACPI DATA")),
        (EventType.ACTION, b"Calling INT 19h", Text("Calling INT 19h")),
        (EventType.EVENT_TAG, struct.pack("<II", 7, 3) + b"abc", TaggedEvent(7, b"abc")),
        (EventType.S_CRTM_VERSION, b"\0\0", CrtmVersion(b"\0\0")),
        (
            EventType.EFI_PLATFORM_FIRMWARE_BLOB,
            struct.pack("<QQ", 0x820000, 0xE0000),
            FirmwareBlob(0x820000, 0xE0000),
        ),
        (
            EventType.EFI_PLATFORM_FIRMWARE_BLOB2,
            b"\3POS" + struct.pack("<QQ", 1, 2),
            FirmwareBlob(1, 2, b"POS"),
        ),
        (
            EventType.EFI_HANDOFF_TABLES,
            struct.pack("<Q", 1) + ACPI_TABLE.bytes_le + struct.pack("<Q", 9),
            HandoffTables(((ACPI_TABLE, 9),)),
        ),
        (EventType.EFI_HANDOFF_TABLES2, b"\1A" + struct.pack("<Q", 0), HandoffTables((), b"A")),
        (EventType.EFI_HCRTM_EVENT, b"HCRTM", Text("HCRTM")),
        (EventType.IPL, b"grub_cmd: ls\0", Text("grub_cmd: ls")),
        (EventType.IPL, "initrd=\\a\0".encode("utf-16-le"), Text("initrd=\\a")),
        (EventType.PLATFORM_CONFIG_FLAGS, b"vendor", Opaque(b"vendor")),
        (0x12345678, b"anything", Opaque(b"anything")),
    ],
)
def test_data_are_read_by_type(kind: int, data: bytes, expected: EventData) -> None:
    assert decode_event_data(kind, data) == expected


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (EventType.NO_ACTION, b"StartupLocality\0"),
        (EventType.NO_ACTION, b"SP800-155 Event3\3"),
        (EventType.SEPARATOR, b"\0\0\0"),
        (EventType.SEPARATOR, bytes(4) + b"\1"),
        (EventType.EFI_ACTION, b"\xff\xfe"),
        (EventType.EFI_ACTION, b"Calling\0Returning"),
        (EventType.IPL, "ls\x1b[2J".encode("utf-16-le")),
        (EventType.EVENT_TAG, struct.pack("<II", 7, 4) + b"abc"),
        (EventType.EVENT_TAG, struct.pack("<II", 7, 2) + b"abc"),
        (EventType.EFI_PLATFORM_FIRMWARE_BLOB, bytes(15)),
        (EventType.EFI_PLATFORM_FIRMWARE_BLOB, bytes(17)),
        (EventType.EFI_PLATFORM_FIRMWARE_BLOB2, b"\3POS" + bytes(17)),
        (EventType.EFI_HANDOFF_TABLES, struct.pack("<Q", 2**63) + bytes(24)),
        (EventType.EFI_HANDOFF_TABLES, struct.pack("<Q", 1) + bytes(25)),
        (EventType.EFI_BOOT_SERVICES_APPLICATION, struct.pack("<QQQQ", 1, 2, 3, 2**64 - 1)),
        (EventType.EFI_BOOT_SERVICES_APPLICATION, struct.pack("<QQQQ", 1, 2, 3, 4) + END + b"x"),
        (EventType.EFI_GPT_EVENT, bytes(92) + struct.pack("<Q", 1)),
        (EventType.EFI_GPT_EVENT, partition_table(entry_size=127, count=0)),
        (EventType.EFI_GPT_EVENT, partition_table(entry_size=128, count=1) + bytes(129)),
        (EventType.EFI_VARIABLE_DRIVER_CONFIG, bytes(16) + struct.pack("<QQ", 2**63, 0)),
        (EventType.EFI_VARIABLE_DRIVER_CONFIG, variable(bytes(16), "PK", b"x")[:-1]),
        (EventType.EFI_VARIABLE_DRIVER_CONFIG, variable(bytes(16), "PK", b"x") + b"y"),
        (EventType.EFI_VARIABLE_DRIVER_CONFIG, bytes(16) + struct.pack("<QQ", 1, 0) + b"\0\xd8"),
    ],
)
def test_data_that_contradict_their_type_stay_opaque(kind: int, data: bytes) -> None:
    assert decode_event_data(kind, data) == Opaque(data)


def test_the_variables_of_secure_boot_are_read_from_the_capture() -> None:
    assert grub_variable("SecureBoot") == UefiVariable(GLOBAL_VARIABLE, "SecureBoot", b"\1")
    assert grub_variable("SecureBoot").is_set
    (pk,) = grub_variable("PK").signature_lists()
    assert pk.type == X509_SIGNATURES
    assert pk.signatures[0].data.startswith(b"\x30\x82")
    assert pk.size == 1005
    assert len(grub_variable("KEK").signature_lists()) == 2
    assert grub_variable("SbatLevel").guid == SHIM_LOCK


def test_the_dbx_of_the_log_is_the_one_of_the_guest() -> None:
    dbx = grub_variable("dbx")
    assert dbx.guid == IMAGE_SECURITY
    assert dbx.value == GRUB.efi_variable("dbx-")
    (hashes,) = dbx.signature_lists()
    assert hashes.type == SHA256_SIGNATURES
    assert [signature.data.hex() for signature in hashes.signatures] == [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    ]


def test_the_db_entry_that_allowed_shim_is_in_db() -> None:
    authority = next(
        event.decoded for event in grub_events(EventType.EFI_VARIABLE_AUTHORITY) if event.number == 22
    )
    assert isinstance(authority, UefiVariable)
    db = [signature for item in grub_variable("db").signature_lists() for signature in item.signatures]
    assert authority.signature() in db


@pytest.mark.parametrize("name", ["Boot0000", "Boot0001", "Boot0002", "BootOrder"])
def test_boot_variables_of_the_log_are_those_of_the_guest(name: str) -> None:
    assert grub_variable(name).value == GRUB.efi_variable(f"{name}-")


def test_boot_options_are_read() -> None:
    option = grub_variable("Boot0001").boot_option()
    assert option.is_active
    assert option.description == "UEFI Misc Device"
    assert option.path == "PciRoot(0x0)/Pci(0x1,0x0)"
    assert option.optional_data.hex() == "4eac0881119f594d850ee21a522c59b2"
    assert grub_variable("BootOrder").boot_order() == (1, 0, 2)


@pytest.mark.parametrize("value", [b"\1", b"\1\0", b"\1\0\0\0\xff\xff", b"\1\0\0\0\0\0a\0"])
def test_a_damaged_boot_option_is_refused(value: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        UefiVariable(GLOBAL_VARIABLE, "Boot0000", value).boot_option()


def test_the_partition_table_of_the_capture_is_read() -> None:
    (event,) = grub_events(EventType.EFI_GPT_EVENT)
    table = event.decoded
    assert isinstance(table, GptTable)
    assert table.signature == b"EFI PART"
    assert table.disk_guid == uuid.UUID("99999999-8888-4777-9666-555555555555")
    assert (table.entry_count, table.entry_size, len(table.partitions)) == (128, 128, 2)
    assert table.partitions[0] == GptPartition(
        type_guid=uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"),
        unique_guid=uuid.UUID("0ec7b7ac-4e4c-461e-b581-561145e4b77f"),
        first_lba=0x800,
        last_lba=0x187FF,
        attributes=0,
        name=table.partitions[0].name,
    )


def test_image_loads_show_where_the_image_came_from() -> None:
    images = [event.decoded for event in grub_events(EventType.EFI_BOOT_SERVICES_APPLICATION)]
    assert [image.path for image in images if isinstance(image, ImageLoad)] == [
        "PciRoot(0x0)/Pci(0x1,0x0)/HD(1,GPT,0ec7b7ac-4e4c-461e-b581-561145e4b77f,0x800,0x18000)/File(\\EFI\\BOOT\\BOOTX64.EFI)",
        "File(\\EFI\\BOOT\\grubx64.efi)",
        "",
        "",
    ]


def signature_list(kind: uuid.UUID, list_size: int, header_size: int, size: int, body: bytes) -> bytes:
    return kind.bytes_le + struct.pack("<III", list_size, header_size, size) + body


def test_a_signature_list_may_hold_a_header_and_many_signatures() -> None:
    body = b"HEAD" + uuid.UUID(int=1).bytes_le + b"aa" + uuid.UUID(int=2).bytes_le + b"bb"
    (item,) = parse_signature_lists(signature_list(SHA256_SIGNATURES, 68, 4, 18, body))
    assert item.header == b"HEAD"
    assert item.signatures == (EfiSignature(uuid.UUID(int=1), b"aa"), EfiSignature(uuid.UUID(int=2), b"bb"))
    assert item.size == 68


@pytest.mark.parametrize(
    ("list_size", "header_size", "size", "body"),
    [
        (27, 0, 16, b""),
        (28, 1, 16, b""),
        (45, 0, 16, bytes(17)),
        (63, 0, 18, bytes(35)),
        (36, 0, 8, bytes(8)),
        (28, 0, 0, b""),
        (60, 0, 16, bytes(16)),
        (0xFFFFFFFF, 0, 16, bytes(16)),
        (44, 0, 16, bytes(17)),
    ],
)
def test_a_damaged_signature_list_is_refused(
    list_size: int, header_size: int, size: int, body: bytes
) -> None:
    with pytest.raises(MalformedEvidence):
        parse_signature_lists(signature_list(SHA256_SIGNATURES, list_size, header_size, size, body))


def test_a_signature_list_that_ends_within_its_header_does_not_go_back_into_it() -> None:
    empty = signature_list(SHA256_SIGNATURES, 28, 0, 28, b"")
    with pytest.raises(MalformedEvidence):
        parse_signature_lists(signature_list(SHA256_SIGNATURES, 28, 56, 28, empty + empty))


def test_a_signature_list_may_be_empty_and_a_signature_without_data() -> None:
    (empty,) = parse_signature_lists(signature_list(X509_SIGNATURES, 28, 0, 16, b""))
    assert empty.signatures == ()
    (item,) = parse_signature_lists(signature_list(X509_SIGNATURES, 44, 0, 16, uuid.UUID(int=7).bytes_le))
    assert item.signatures == (EfiSignature(uuid.UUID(int=7), b""),)


def test_vendor_certificates_are_found_one_after_the_other() -> None:
    owner = uuid.UUID(int=5)
    value = owner.bytes_le + b"pad" + CERTIFICATE + owner.bytes_le + CERTIFICATE + b"rest"
    vendor = UefiVariable(IMAGE_SECURITY, "vendor_db", value)
    assert vendor.vendor_signatures() == (
        EfiSignature(owner, b"pad" + CERTIFICATE),
        EfiSignature(owner, CERTIFICATE),
    )


@pytest.mark.parametrize(
    "value",
    [
        b"",
        bytes(20),  # no certificate
        bytes(16) + bytes(100) + CERTIFICATE,  # one that is too far behind its owner
        bytes(16) + CERTIFICATE[:3],  # one without its size
        bytes(16) + CERTIFICATE[:-1],
    ],
)
def test_a_rest_without_a_whole_certificate_is_no_vendor_signature(value: bytes) -> None:
    whole = bytes(16) + CERTIFICATE
    vendor = UefiVariable(IMAGE_SECURITY, "vendor_db", whole + value)
    assert vendor.vendor_signatures() == (EfiSignature(uuid.UUID(int=0), CERTIFICATE),)


def test_an_inactive_boot_option_is_told_from_an_active_one() -> None:
    def option(attributes: int) -> BootOption:
        value = struct.pack("<IH", attributes, 0) + "x\0".encode("utf-16-le")
        return UefiVariable(GLOBAL_VARIABLE, "Boot0000", value).boot_option()

    assert option(0x1).is_active
    assert not option(0x108).is_active


@pytest.mark.parametrize("name", ["BootOrder", "Boot000", "Boot00000", "Boot000g", "xBoot0000", ""])
def test_only_boot_and_four_hex_digits_name_a_boot_option(name: str) -> None:
    assert UefiVariable(GLOBAL_VARIABLE, "Boot00aF", b"").is_boot_option
    assert not UefiVariable(GLOBAL_VARIABLE, name, b"").is_boot_option


DISK = uuid.UUID("0ec7b7ac-4e4c-461e-b581-561145e4b77f")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"", ""),
        (END, ""),
        (
            node(2, 1, struct.pack("<II", 0x0A0341D0, 0)) + node(1, 1, b"\2\x1f") + END,
            "PciRoot(0x0)/Pci(0x1f,0x2)",
        ),
        (node(2, 1, struct.pack("<II", 0x0A0841D0, 1)) + END, "PcieRoot(0x1)"),
        (node(2, 1, struct.pack("<II", 0x030341D0, 0)) + END, "Acpi(PNP0303,0x0)"),
        (node(2, 1, struct.pack("<II", 0x050141D0, 0)) + END, "Serial(0x0)"),
        (node(3, 2, struct.pack("<HH", 0, 1)) + END, "SCSI(0,1)"),
        (node(3, 5, b"\1\0") + END, "USB(1,0)"),
        (node(3, 11, bytes.fromhex("525400123456") + bytes(26) + b"\1") + END, "MAC(525400123456,1)"),
        (node(3, 18, struct.pack("<HHH", 0, 0xFFFF, 0)) + END, "Sata(0,65535,0)"),
        (node(3, 23, struct.pack("<I", 1) + bytes(range(8))) + END, "NVMe(0x1,00-01-02-03-04-05-06-07)"),
        (node(3, 24, b"http://boot/x.efi") + END, "Uri(http://boot/x.efi)"),
        (
            node(4, 1, struct.pack("<IQQ", 1, 0x800, 0x18000) + DISK.bytes_le + b"\2\2") + END,
            f"HD(1,GPT,{DISK},0x800,0x18000)",
        ),
        (
            node(4, 1, struct.pack("<IQQ", 1, 63, 100) + b"\x78\x56\x34\x12" + bytes(12) + b"\1\1") + END,
            "HD(1,MBR,0x12345678,0x3f,0x64)",
        ),
        (node(4, 7, DISK.bytes_le) + node(4, 6, DISK.bytes_le) + END, f"FvVol({DISK})/FvFile({DISK})"),
        (node(4, 3, DISK.bytes_le + b"\xab") + END, f"VenMedia({DISK},ab)"),
        (node(1, 1, b"\0\1") + node(0x7F, 1, b"") + node(1, 1, b"\0\2") + END, "Pci(0x1,0x0),Pci(0x2,0x0)"),
        (node(9, 9, b"\1\2") + END, "Path(9,9,0102)"),
        (node(1, 1, b"\0") + END, "Path(1,1,00)"),
        (node(4, 4, "\\a\nb\x1b[2J\0".encode("utf-16-le")) + END, "File(\\a\\nb\\x1b[2J)"),
    ],
)
def test_device_paths_are_rendered(path: bytes, text: str) -> None:
    assert render_device_path(path) == text


@pytest.mark.parametrize(
    "path",
    [
        b"\1",
        node(1, 1, b"\0\0"),
        END + b"\0",
        struct.pack("<BBH", 1, 1, 3),
        struct.pack("<BBH", 1, 1, 0xFFFF),
    ],
)
def test_a_damaged_device_path_has_no_text(path: bytes) -> None:
    assert render_device_path(path) is None
