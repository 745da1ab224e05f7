"""What the data of an event mean, by event type: one frozen value for each structure of the firmware profile.

The data of an event are what the firmware *says* it measured. Whether the digest vouches for them is the
subject of `binding`; here they are only read. Data that do not have the structure of their type become
`Opaque`.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from keylime.errors import MalformedEvidence
from keylime.measured_boot.device_path import render_device_path
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.reader import EventReader
from keylime.measured_boot.variables import UefiVariable, parse_variable

SEPARATOR_SIZE = 4  # bytes; what follows is padding
STARTUP_LOCALITY_SIGNATURE = b"StartupLocality\0"

# The localities from which TPM2_Startup may be called, and 4 for a start by H-CRTM.
STARTUP_LOCALITIES = frozenset({0, 3, 4})


@dataclass(frozen=True, slots=True)
class Opaque:
    """Data without a structure that we read: vendor data, unknown types, data that contradict their type."""

    data: bytes


@dataclass(frozen=True, slots=True)
class StartupLocality:
    """EV_NO_ACTION: the locality that started the TPM, which is the start value of PCR 0."""

    locality: int


@dataclass(frozen=True, slots=True)
class Separator:
    """EV_SEPARATOR: the end of a phase; 0 or 0xFFFFFFFF is a good one, 1 reports an error of the firmware.

    Zeros behind the four bytes are padding.
    """

    value: int


@dataclass(frozen=True, slots=True)
class Text:
    """Actions, POST codes and text of boot loaders, without the terminating NUL."""

    text: str


@dataclass(frozen=True, slots=True)
class CrtmVersion:
    """EV_S_CRTM_VERSION: free text or a GUID of the vendor."""

    data: bytes


@dataclass(frozen=True, slots=True)
class TaggedEvent:
    """EV_EVENT_TAG: a number that says whose structure follows, and the structure."""

    tag: int
    data: bytes


@dataclass(frozen=True, slots=True)
class FirmwareBlob:
    """Where a piece of firmware lay in memory; `description` only in the second form of the event."""

    base: int
    length: int
    description: bytes | None = None


@dataclass(frozen=True, slots=True)
class HandoffTables:
    """Configuration tables handed to the loader: (vendor GUID, address) of each."""

    tables: tuple[tuple[uuid.UUID, int], ...]
    description: bytes | None = None


@dataclass(frozen=True, slots=True)
class ImageLoad:
    """A PE image that was loaded. The event's digest is the image's Authenticode hash, not of these data."""

    location: int
    length: int
    link_time_address: int
    device_path: bytes

    @property
    def path(self) -> str | None:
        """The device path as text, or None when it is not a well-formed device path."""
        return render_device_path(self.device_path)


@dataclass(frozen=True, slots=True)
class GptPartition:
    """One used entry of a partition table."""

    type_guid: uuid.UUID
    unique_guid: uuid.UUID
    first_lba: int
    last_lba: int
    attributes: int
    name: str


@dataclass(frozen=True, slots=True)
class GptTable:
    """EV_EFI_GPT_EVENT: the header of the boot disk's partition table and its used entries."""

    signature: bytes
    revision: int
    header_size: int
    header_crc32: int
    my_lba: int
    alternate_lba: int
    first_usable_lba: int
    last_usable_lba: int
    disk_guid: uuid.UUID
    entries_lba: int
    entry_count: int
    entry_size: int
    entries_crc32: int
    partitions: tuple[GptPartition, ...]


EventData: TypeAlias = (
    Opaque
    | StartupLocality
    | Separator
    | Text
    | CrtmVersion
    | TaggedEvent
    | FirmwareBlob
    | HandoffTables
    | ImageLoad
    | GptTable
    | UefiVariable
)


def decode_event_data(event_type: int, data: bytes) -> EventData:
    """The meaning of `data` in an event of that type; Opaque without its structure. Raises nothing."""
    decoder = _DECODERS.get(event_type)
    if decoder is None:
        return Opaque(data)
    try:
        return decoder(data)
    except MalformedEvidence:
        return Opaque(data)


def _no_action(data: bytes) -> EventData:
    # Some firmware fills its entries up to a fixed size. What is read here is proven by PCR 0 alone.
    size = len(STARTUP_LOCALITY_SIGNATURE)
    if data.startswith(STARTUP_LOCALITY_SIGNATURE) and len(data) > size:
        return StartupLocality(data[size])
    return Opaque(data)


def _separator(data: bytes) -> Separator:
    reader = EventReader(data)
    value = reader.u32("separator")
    if any(reader.rest()):
        raise MalformedEvidence("separator with something behind it")
    return Separator(value)


def _text(data: bytes) -> Text:
    try:
        text = data.removesuffix(b"\0").decode()
    except UnicodeDecodeError as error:
        raise MalformedEvidence("text is not UTF-8") from error
    if "\0" in text:
        raise MalformedEvidence("text with embedded NUL")
    return Text(text)


def _loader_text(data: bytes) -> Text:
    try:
        return _text(data)
    except MalformedEvidence:
        name, nul, stray = data.partition(b"\0")
        if nul and len(name) > 1 and len(stray) <= _MAX_STRAY and name.isascii():
            return _text(name)  # old shims log a byte of what happens to lie behind the name
        # systemd-boot and the kernel's EFI stub describe what they measure in UTF-16; systemd-boot before 251
        # without the last byte of the NUL.
        whole = data + bytes(len(data) % 2)
        text = EventReader(whole).utf16(len(whole), "text").removesuffix("\0")
        if not text.isprintable():
            raise MalformedEvidence("text is neither UTF-8 nor UTF-16") from None
        return Text(text)


def _tagged(data: bytes) -> TaggedEvent:
    reader = EventReader(data)
    tag = reader.u32("tag")
    content = reader.take(reader.u32("tagged data size"), "tagged data")
    reader.expect_end("tagged event")
    return TaggedEvent(tag, content)


def _blob(data: bytes) -> FirmwareBlob:
    reader = EventReader(data)
    blob = FirmwareBlob(reader.u64("blob base"), reader.u64("blob length"))
    reader.expect_end("firmware blob")
    return blob


def _blob2(data: bytes) -> FirmwareBlob:
    reader = EventReader(data)
    description = reader.take(reader.u8("description size"), "description")
    blob = FirmwareBlob(reader.u64("blob base"), reader.u64("blob length"), description)
    reader.expect_end("firmware blob")
    return blob


def _tables(reader: EventReader, description: bytes | None) -> HandoffTables:
    count = reader.u64("table count")
    if count * 24 != reader.remaining:
        raise MalformedEvidence(f"{count} hand-off tables announced, {reader.remaining} bytes left")
    entries = tuple((reader.guid("table GUID"), reader.u64("table address")) for _ in range(count))
    return HandoffTables(entries, description)


def _handoff(data: bytes) -> HandoffTables:
    return _tables(EventReader(data), None)


def _handoff2(data: bytes) -> HandoffTables:
    reader = EventReader(data)
    return _tables(reader, reader.take(reader.u8("description size"), "description"))


def _image(data: bytes) -> ImageLoad:
    reader = EventReader(data)
    location, length, link_time_address, path_size = reader.u64s(4, "image load")
    image = ImageLoad(location, length, link_time_address, reader.take(path_size, "device path"))
    reader.expect_end("image load event")
    return image


def _gpt(data: bytes) -> GptTable:
    reader = EventReader(data)
    signature = reader.take(8, "GPT signature")
    revision, header_size, header_crc32, _reserved = (reader.u32("GPT header") for _ in range(4))
    my_lba, alternate_lba, first_usable_lba, last_usable_lba = reader.u64s(4, "GPT header")
    disk_guid = reader.guid("disk GUID")
    entries_lba = reader.u64("GPT header")
    entry_count, entry_size, entries_crc32 = (reader.u32("GPT header") for _ in range(3))
    count = reader.u64("partition count")
    if entry_size < _GPT_ENTRY_SIZE or count * entry_size != reader.remaining:
        raise MalformedEvidence(f"{count} partitions announced, {reader.remaining} bytes left")
    partitions = tuple(_partition(reader.take(entry_size, "partition")) for _ in range(count))
    return GptTable(
        signature=signature,
        revision=revision,
        header_size=header_size,
        header_crc32=header_crc32,
        my_lba=my_lba,
        alternate_lba=alternate_lba,
        first_usable_lba=first_usable_lba,
        last_usable_lba=last_usable_lba,
        disk_guid=disk_guid,
        entries_lba=entries_lba,
        entry_count=entry_count,
        entry_size=entry_size,
        entries_crc32=entries_crc32,
        partitions=partitions,
    )


def _partition(data: bytes) -> GptPartition:
    reader = EventReader(data)
    type_guid, unique_guid = reader.guid("partition type"), reader.guid("partition GUID")
    first_lba, last_lba, attributes = reader.u64s(3, "partition")
    name = reader.utf16(72, "partition name").rstrip("\0")
    return GptPartition(type_guid, unique_guid, first_lba, last_lba, attributes, name)


_GPT_ENTRY_SIZE = 128
_MAX_STRAY = 8

_DECODERS: Mapping[int, Callable[[bytes], EventData]] = {
    EventType.NO_ACTION: _no_action,
    EventType.SEPARATOR: _separator,
    EventType.POST_CODE: _text,
    EventType.POST_CODE2: _blob2,
    EventType.ACTION: _text,
    EventType.EVENT_TAG: _tagged,
    EventType.S_CRTM_CONTENTS: _blob,
    EventType.S_CRTM_VERSION: CrtmVersion,
    EventType.CPU_MICROCODE: _text,
    EventType.IPL: _loader_text,
    EventType.OMIT_BOOT_DEVICE_EVENTS: _text,
    EventType.EFI_VARIABLE_DRIVER_CONFIG: parse_variable,
    EventType.EFI_VARIABLE_BOOT: parse_variable,
    EventType.EFI_VARIABLE_BOOT2: parse_variable,
    EventType.EFI_VARIABLE_AUTHORITY: parse_variable,
    EventType.EFI_BOOT_SERVICES_APPLICATION: _image,
    EventType.EFI_BOOT_SERVICES_DRIVER: _image,
    EventType.EFI_RUNTIME_SERVICES_DRIVER: _image,
    EventType.EFI_GPT_EVENT: _gpt,
    EventType.EFI_GPT_EVENT2: _gpt,
    EventType.EFI_ACTION: _text,
    EventType.EFI_HCRTM_EVENT: _text,
    EventType.EFI_PLATFORM_FIRMWARE_BLOB: _blob,
    EventType.EFI_PLATFORM_FIRMWARE_BLOB2: _blob2,
    EventType.EFI_HANDOFF_TABLES: _handoff,
    EventType.EFI_HANDOFF_TABLES2: _handoff2,
}
