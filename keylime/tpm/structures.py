"""TPM structures in canonical (big-endian) form: a bounded reader, and TPMS_ATTEST (TPM 2.0 Library, Part 2).

Pure. Every parser accepts all bytes and either returns a value that used each byte exactly once, or raises
MalformedEvidence. Claimed lengths are compared with what is there before anything is copied.
"""

import enum
import struct
from typing import TypeAlias

import msgspec

from keylime.errors import MalformedEvidence
from keylime.tpm.pcr import BITMAP_SIZE, PcrSelection, parse_bank

TPM_GENERATED = (
    0xFF544347  # "\xffTCG": the TPM signs data that start so with a restricted key only if it made them
)
MAX_PCR_BANKS = 16
MAX_NAME_SIZE = 66  # hash algorithm and a SHA-512 digest
MAX_DATA_SIZE = 66  # TPM2B_DATA holds up to a TPMT_HA
MAX_DIGEST_SIZE = 64

_U16, _U32 = struct.Struct(">H"), struct.Struct(">I")
_MAGIC_AND_TYPE = struct.Struct(">IH")
_CLOCK_AND_FIRMWARE = struct.Struct(">QIIBQ")  # TPMS_CLOCK_INFO, firmwareVersion
_SELECTION = struct.Struct(">HB3s")  # TPMS_PCR_SELECTION with a three-byte bitmap


class StructureReader:
    """Reads `data` from front to back; every read raises MalformedEvidence that names `what` is too short."""

    __slots__ = ("_data", "_offset", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._offset = 0
        self._what = what

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._offset

    @property
    def rest(self) -> bytes:
        """The bytes that are left, without reading them."""
        return self._data[self._offset :]

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start = self._offset
        end = start + count
        if end > len(self._data):
            raise self._cut_short(count)
        self._offset = end
        return self._data[start:end]

    def u16(self) -> int:
        """The next two bytes as a big-endian number."""
        (number,) = self.unpack(_U16)
        return number

    def u32(self) -> int:
        """The next four bytes as a big-endian number."""
        (number,) = self.unpack(_U32)
        return number

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """The next fields as `layout` says, which should hold numbers only."""
        start = self._offset
        end = start + layout.size
        if end > len(self._data):
            raise self._cut_short(layout.size)
        self._offset = end
        return layout.unpack_from(self._data, start)

    def sized(self, limit: int) -> bytes:
        """The content of the next TPM2B: two bytes of length, then at most `limit` bytes."""
        (size,) = self.unpack(_U16)
        if size > limit:
            raise MalformedEvidence(f"{self._what} has a field of {size} bytes, at most {limit} expected")
        return self.take(size)

    def _cut_short(self, count: int) -> MalformedEvidence:
        expected = f"{count} bytes expected at offset {self._offset}"
        return MalformedEvidence(f"{self._what} is cut short: {expected}, {self.remaining} left")

    def finish(self) -> None:
        """Raises MalformedEvidence unless every byte was read."""
        if self.remaining:
            raise MalformedEvidence(f"{self._what} is followed by {self.remaining} unexpected bytes")


class AttestationType(enum.IntEnum):
    """The kinds of TPMS_ATTEST that are understood here (TPM_ST_ATTEST_*)."""

    CERTIFY = 0x8017
    QUOTE = 0x8018


_TYPES = {int(kind): kind for kind in AttestationType}


class ClockInfo(msgspec.Struct, frozen=True):
    """TPMS_CLOCK_INFO: when, by the TPM's own reckoning, a structure was signed."""

    clock: int  # milliseconds that the TPM was powered, over all its life
    reset_count: int  # TPM resets, that is boots
    restart_count: int  # resumes and warm restarts since the last reset
    safe: bool  # False when the clock may have run back, after a loss of power


class QuoteInfo(msgspec.Struct, frozen=True):
    """TPMS_QUOTE_INFO: what TPM2_Quote attests."""

    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes


class CertifyInfo(msgspec.Struct, frozen=True):
    """TPMS_CERTIFY_INFO: what TPM2_Certify attests."""

    name: bytes
    qualified_name: bytes


Attested: TypeAlias = QuoteInfo | CertifyInfo


class Attest(msgspec.Struct, frozen=True):
    """TPMS_ATTEST: what the TPM signs."""

    type: AttestationType
    qualified_signer: bytes
    extra_data: bytes  # the nonce, or other data that the asker gave
    clock: ClockInfo
    firmware_version: int
    attested: Attested


def parse_attest(data: bytes) -> Attest:
    """`data` as TPMS_ATTEST of a quote or certification. Raises MalformedEvidence.

    A magic that is not TPM_GENERATED is refused here: such data were not made inside a TPM.
    """
    reader = StructureReader(data, "TPMS_ATTEST")
    magic, number = reader.unpack(_MAGIC_AND_TYPE)
    if magic != TPM_GENERATED:
        raise MalformedEvidence(f"TPMS_ATTEST has magic {magic:#010x}, expected TPM_GENERATED")
    kind = _TYPES.get(number)
    if kind is None:
        raise MalformedEvidence(f"TPMS_ATTEST has type {number:#06x}, expected a quote or certification")
    qualified_signer = reader.sized(MAX_NAME_SIZE)
    extra_data = reader.sized(MAX_DATA_SIZE)
    clock, reset_count, restart_count, safe, firmware_version = reader.unpack(_CLOCK_AND_FIRMWARE)
    if safe > 1:
        raise MalformedEvidence(f"TPMS_ATTEST has {safe} where yes (1) or no (0) is expected")
    attested = _parse_quote_info(reader) if kind is AttestationType.QUOTE else _parse_certify_info(reader)
    reader.finish()
    return Attest(
        type=kind,
        qualified_signer=qualified_signer,
        extra_data=extra_data,
        clock=ClockInfo(clock, reset_count, restart_count, bool(safe)),
        firmware_version=firmware_version,
        attested=attested,
    )


def _parse_quote_info(reader: StructureReader) -> QuoteInfo:
    count = reader.u32()
    if count > MAX_PCR_BANKS:
        raise MalformedEvidence(f"TPMS_ATTEST selects from {count} banks, at most {MAX_PCR_BANKS} expected")
    selections = tuple([_parse_selection(reader) for _ in range(count)])
    return QuoteInfo(selections, reader.sized(MAX_DIGEST_SIZE))


def _parse_selection(reader: StructureReader) -> PcrSelection:
    algorithm, size, bitmap = _SELECTION.unpack(reader.take(_SELECTION.size))
    if size != BITMAP_SIZE:
        raise MalformedEvidence(f"PCR bitmap in TPMS_ATTEST has {size} bytes, expected {BITMAP_SIZE}")
    return PcrSelection.from_mask(parse_bank(algorithm), int.from_bytes(bitmap, "little"))


def _parse_certify_info(reader: StructureReader) -> CertifyInfo:
    return CertifyInfo(reader.sized(MAX_NAME_SIZE), reader.sized(MAX_NAME_SIZE))
