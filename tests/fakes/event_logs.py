"""Builds and takes apart firmware event logs byte by byte, without the code under test."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from keylime.hashes import HashAlgorithm

BANKS = (HashAlgorithm.SHA1, HashAlgorithm.SHA256)
SPEC_ID = b"Spec ID Event03\0"


@dataclass(frozen=True, slots=True)
class Record:
    """One event: digests in the order in which they are written."""

    pcr: int
    type_code: int
    digests: tuple[tuple[HashAlgorithm, bytes], ...]
    data: bytes

    def with_data(self, data: bytes, measured: bytes | None = None) -> "Record":
        """The same event with other data, and digests of `measured` (default: the data)."""
        image = data if measured is None else measured
        digests = tuple((bank, bank.digest(image)) for bank, _ in self.digests)
        return replace(self, data=data, digests=digests)

    def encode(self) -> bytes:
        """TCG_PCR_EVENT2."""
        head = struct.pack("<III", self.pcr, self.type_code, len(self.digests))
        digests = b"".join(struct.pack("<H", bank) + digest for bank, digest in self.digests)
        return head + digests + struct.pack("<I", len(self.data)) + self.data

    def encode_sha1(self) -> bytes:
        """TCG_PCR_EVENT."""
        digest = dict(self.digests)[HashAlgorithm.SHA1]
        return (
            struct.pack("<II", self.pcr, self.type_code)
            + digest
            + struct.pack("<I", len(self.data))
            + self.data
        )


@dataclass(frozen=True, slots=True)
class Span:
    """Where one record of a log lies: offsets of its digests and data in the bytes of the log."""

    start: int
    digests: tuple[tuple[HashAlgorithm, int], ...]
    data: int
    end: int


def record(
    pcr: int,
    type_code: int,
    data: bytes,
    measured: bytes | None = None,
    banks: Iterable[HashAlgorithm] = BANKS,
) -> Record:
    """An event whose digests are those of `measured` (default: the data)."""
    return Record(pcr, type_code, tuple((bank, b"") for bank in banks), b"").with_data(data, measured)


def header(sizes: Sequence[tuple[int, int]] | None = None, *, data: bytes | None = None) -> bytes:
    """The first record of a crypto-agile log for digests of these (algorithm, size)."""
    sizes = [(bank, bank.size) for bank in BANKS] if sizes is None else sizes
    if data is None:
        algorithms = b"".join(struct.pack("<HH", *size) for size in sizes)
        data = SPEC_ID + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(sizes)) + algorithms + b"\0"
    return struct.pack("<II20xI", 0, 3, len(data)) + data


def build_log(records: Iterable[Record], banks: Iterable[HashAlgorithm] = BANKS) -> bytes:
    """A crypto-agile log."""
    return header([(bank, bank.size) for bank in banks]) + b"".join(item.encode() for item in records)


def spans(log: bytes) -> list[Span]:
    """Where the records after the header of a well-formed crypto-agile log lie."""
    (header_size,) = struct.unpack_from("<I", log, 28)
    offset = 32 + header_size
    found = []
    while offset < len(log):
        start = offset
        (count,) = struct.unpack_from("<I", log, offset + 8)
        offset += 12
        digests = []
        for _ in range(count):
            bank = HashAlgorithm(struct.unpack_from("<H", log, offset)[0])
            digests.append((bank, offset + 2))
            offset += 2 + bank.size
        (size,) = struct.unpack_from("<I", log, offset)
        found.append(Span(start, tuple(digests), offset + 4, offset + 4 + size))
        offset += 4 + size
    return found


def take_apart(log: bytes) -> list[Record]:
    """The records after the header of a well-formed crypto-agile log."""
    return [
        Record(
            struct.unpack_from("<I", log, span.start)[0],
            struct.unpack_from("<I", log, span.start + 4)[0],
            tuple((bank, log[start : start + bank.size]) for bank, start in span.digests),
            log[span.data : span.end],
        )
        for span in spans(log)
    ]


def flip(log: bytes, offset: int, bit: int) -> bytes:
    """`log` with one bit turned."""
    return log[:offset] + bytes([log[offset] ^ 1 << bit]) + log[offset + 1 :]


def variable(guid: bytes, name: str, value: bytes) -> bytes:
    """UEFI_VARIABLE_DATA."""
    return guid + struct.pack("<QQ", len(name), len(value)) + name.encode("utf-16-le") + value
