"""UEFI variables as events carry them: the variable, signature lists (db and its kin), boot options."""

import re
import uuid
from dataclasses import dataclass

from keylime.errors import MalformedEvidence
from keylime.measured_boot.device_path import render_device_path
from keylime.measured_boot.reader import EventReader

GLOBAL_VARIABLE = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SHIM_LOCK = uuid.UUID("605dab50-e046-4300-abb6-3dd810dd8b23")

X509_SIGNATURES = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256_SIGNATURES = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")

_OPTION_ACTIVE = 0x00000001
_BOOT_OPTION_NAME = re.compile(r"Boot[0-9A-Fa-f]{4}")


@dataclass(frozen=True, slots=True)
class EfiSignature:
    """EFI_SIGNATURE_DATA: who enrolled it, and a certificate or a hash."""

    owner: uuid.UUID
    data: bytes


@dataclass(frozen=True, slots=True)
class SignatureList:
    """EFI_SIGNATURE_LIST: signatures of one type and one size."""

    type: uuid.UUID
    header: bytes
    signature_size: int
    signatures: tuple[EfiSignature, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole list, as its own header states it."""
        return _LIST_HEADER_SIZE + len(self.header) + self.signature_size * len(self.signatures)


@dataclass(frozen=True, slots=True)
class BootOption:
    """EFI_LOAD_OPTION: an entry of the boot menu."""

    attributes: int
    description: str
    device_path: bytes
    optional_data: bytes

    @property
    def is_active(self) -> bool:
        """Whether the firmware tries this entry."""
        return bool(self.attributes & _OPTION_ACTIVE)

    @property
    def path(self) -> str | None:
        """The device path as text, or None when it is not a well-formed device path."""
        return render_device_path(self.device_path)


@dataclass(frozen=True, slots=True)
class UefiVariable:
    """UEFI_VARIABLE_DATA: a variable's vendor GUID, name and value at the time of measurement."""

    guid: uuid.UUID
    name: str
    value: bytes

    @property
    def is_set(self) -> bool:
        """The value read as a switch (SecureBoot, MokListTrusted): set unless empty or zero."""
        return self.value[:1] not in {b"", b"\0"}

    @property
    def is_boot_option(self) -> bool:
        """Whether it is one of Boot0000 to BootFFFF."""
        return _BOOT_OPTION_NAME.fullmatch(self.name) is not None

    def signature_lists(self) -> tuple[SignatureList, ...]:
        """The value of PK, KEK, db, dbx. Raises MalformedEvidence."""
        return parse_signature_lists(self.value)

    def signature(self) -> EfiSignature:
        """The value of an authority event: the signature that allowed an image. Raises MalformedEvidence."""
        return _signature(self.value)

    def vendor_signatures(self) -> tuple[EfiSignature, ...]:
        """The value of shim's vendor_db: pairs of owner and DER certificate; a rest is ignored.

        shim writes them without sizes, with some bytes between owner and certificate in older versions. As
        clients in the field expect, those bytes count as part of the signature's data.
        """
        signatures = []
        start = 0
        while (end := _vendor_signature_end(self.value, start)) is not None:
            owner_end = start + _OWNER_SIZE
            owner = uuid.UUID(bytes_le=self.value[start:owner_end])
            signatures.append(EfiSignature(owner, self.value[owner_end:end]))
            start = end
        return tuple(signatures)

    def boot_order(self) -> tuple[int, ...]:
        """The value of BootOrder: numbers of boot options, first to last. Raises MalformedEvidence."""
        reader = EventReader(self.value)
        return tuple(reader.u16("boot order") for _ in range(0, len(self.value), 2))

    def boot_option(self) -> BootOption:
        """The value of a Boot#### variable. Raises MalformedEvidence."""
        reader = EventReader(self.value)
        attributes = reader.u32("attributes")
        path_size = reader.u16("device path size")
        description = _terminated_utf16(reader)
        device_path = reader.take(path_size, "device path")
        return BootOption(attributes, description, device_path, reader.rest())


def parse_variable(data: bytes) -> UefiVariable:
    """The UEFI_VARIABLE_DATA structure that fills `data`. Raises MalformedEvidence."""
    reader = EventReader(data)
    guid = reader.guid("variable GUID")
    name_units, value_size = reader.u64s(2, "variable sizes")
    name = reader.utf16(2 * name_units, "variable name")
    value = reader.take(value_size, "variable value")
    reader.expect_end("variable")
    return UefiVariable(guid, name, value)


def parse_signature_lists(value: bytes) -> tuple[SignatureList, ...]:
    """The signature lists that fill `value`, none for no bytes. Raises MalformedEvidence."""
    reader = EventReader(value)
    lists = []
    while reader.remaining:
        lists.append(_signature_list(reader))
    return tuple(lists)


def _signature_list(reader: EventReader) -> SignatureList:
    kind = reader.guid("signature type")
    list_size, header_size, size = (reader.u32("signature list sizes") for _ in range(3))
    body_size = list_size - _LIST_HEADER_SIZE - header_size
    if body_size < 0 or size < _OWNER_SIZE or body_size % size:
        raise MalformedEvidence(f"signature list of {list_size} bytes cannot hold signatures of {size} bytes")
    header = reader.take(header_size, "signature header")
    body = reader.take(body_size, "signatures")
    signatures = tuple(_signature(body[start : start + size]) for start in range(0, body_size, size))
    return SignatureList(kind, header, size, signatures)


def _signature(data: bytes) -> EfiSignature:
    reader = EventReader(data)
    return EfiSignature(reader.guid("signature owner"), reader.rest())


def _vendor_signature_end(value: bytes, start: int) -> int | None:
    data_start = start + _OWNER_SIZE
    certificate = value.find(_DER_SEQUENCE, data_start, data_start + _DER_SEARCH_WINDOW)
    if certificate == _NOT_FOUND:
        return None
    start_of_content = certificate + 4
    end = start_of_content + int.from_bytes(value[certificate + 2 : start_of_content], "big")
    return end if end <= len(value) else None


def _terminated_utf16(reader: EventReader) -> str:
    units = bytearray()
    while (unit := reader.take(2, "description")) != b"\0\0":
        units += unit
    return EventReader(bytes(units)).utf16(len(units), "description")


_OWNER_SIZE = 16
_DER_SEQUENCE = b"\x30\x82"  # with a length of two bytes, as every certificate has
_DER_SEARCH_WINDOW = 100
_NOT_FOUND = -1
_LIST_HEADER_SIZE = 28
