"""A strict reader of Microsoft cabinets ([MS-CAB]), stored or compressed with MSZIP.

For one purpose: the bundles of certificates that are published so. Whatever is unusual is refused and named,
and what is unpacked is bounded by the caller before it is unpacked. Signatures of cabinets are not looked at:
what comes out is compared by its fingerprints. Pure.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from keylime.errors import KeylimeError

SIGNATURE = b"MSCF"
_HEADER = struct.Struct("<4s4xI4xI4xBBHHHHH")
_RESERVES = struct.Struct("<HBB")
_FOLDER = struct.Struct("<IHH")
_FILE = struct.Struct("<IIHHHH")
_BLOCK = struct.Struct("<IHH")
_HAS_PREVIOUS, _HAS_NEXT, _HAS_RESERVES = 1, 2, 4
_STORED, _MSZIP, _QUANTUM, _LZX = 0, 1, 2, 3
_METHODS = {_QUANTUM: "Quantum", _LZX: "LZX"}
_WINDOW = 32 * 1024  # bytes of a block, and of what the next one may refer to
_MAX_NAME = 256
_NAME_IS_UTF = 0x80


class CabinetError(KeylimeError):
    """A cabinet that cannot be read; its text says why."""


@dataclass(frozen=True, slots=True)
class CabinetFile:
    """A file of a cabinet: its name, and where in which folder it is."""

    name: str
    folder: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class _Folder:
    """Files that are compressed as one: where its blocks are, how many, and how they are compressed."""

    start: int
    blocks: int
    method: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a cabinet's header says."""

    folders: tuple[_Folder, ...]
    files_at: int
    file_count: int
    block_reserve: int


def read_cabinet(data: bytes, *, most_files: int, most_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in `data`, in order. Raises CabinetError.

    At most `most_files`, and at most `most_bytes` that are unpacked, or handed out.
    """
    data, layout = _layout(data)
    if layout.file_count > most_files:
        raise CabinetError(f"it has {layout.file_count} files, at most {most_files} are read")
    members = _members(data, layout)
    inside: dict[int, list[CabinetFile]] = {}
    for member in members:
        inside.setdefault(member.folder, []).append(member)
    wanted = {number: max(one.start + one.size for one in found) for number, found in inside.items()}
    read = 0
    # Files may overlap.
    if max(sum(member.size for member in members), sum(wanted.values())) > most_bytes:
        raise CabinetError(f"it holds more than {most_bytes} bytes")
    for number in sorted(inside):
        # One folder at a time, in the order of its files.
        folder = layout.folders[number]
        content, end = _unpack(data, folder, layout.block_reserve, wanted[number])
        read += end - folder.start
        if read > len(data):
            raise CabinetError("it has blocks that are part of several folders")
        for member in inside[number]:
            end = member.start + member.size
            if end > len(content):
                raise CabinetError(f"the file {member.name!r} goes beyond the end of its folder")
            yield member.name, content[member.start : end]


def _layout(data: bytes) -> tuple[bytes, _Layout]:
    """The cabinet without what follows it, such as its signature, and what its header says."""
    signature, size, files_at, minor, major, folders, files, flags, _, _ = _at(_HEADER, data, 0)
    if signature != SIGNATURE:
        raise CabinetError("it is no cabinet")
    if (major, minor) != (1, 3):
        raise CabinetError(f"it has version {major}.{minor}, expected 1.3")
    if flags & (_HAS_PREVIOUS | _HAS_NEXT):
        raise CabinetError("it is a part of several cabinets")
    if size > len(data):
        raise CabinetError(f"it is cut off: {len(data)} of {size} bytes")
    data = data[:size]
    offset, header_reserve, folder_reserve, block_reserve = _HEADER.size, 0, 0, 0
    if flags & _HAS_RESERVES:
        header_reserve, folder_reserve, block_reserve = _at(_RESERVES, data, offset)
        offset += _RESERVES.size + header_reserve
    step = _FOLDER.size + folder_reserve
    table = tuple(_folder(data, offset + number * step) for number in range(folders))
    return data, _Layout(table, files_at, files, block_reserve)


def _folder(data: bytes, offset: int) -> _Folder:
    start, blocks, compression = _at(_FOLDER, data, offset)
    method = compression & 0xF
    if method not in (_STORED, _MSZIP):
        name = _METHODS.get(method, f"method {method}")
        raise CabinetError(f"it is compressed with {name}, and only MSZIP is read")
    return _Folder(start, blocks, method)


def _members(data: bytes, layout: _Layout) -> list[CabinetFile]:
    members = []
    offset = layout.files_at
    for _ in range(layout.file_count):
        size, start, folder, _, _, attributes = _at(_FILE, data, offset)
        offset += _FILE.size
        end = data.find(b"\0", offset, offset + _MAX_NAME + 1)
        if end < 0:
            raise CabinetError(f"it has a file name of more than {_MAX_NAME} bytes")
        if folder >= len(layout.folders):
            raise CabinetError("it has a file without a folder")
        name = data[offset:end].decode("utf-8" if attributes & _NAME_IS_UTF else "cp1252", "replace")
        members.append(CabinetFile(name, folder, start, size))
        offset = end + 1
    return members


def _unpack(data: bytes, folder: _Folder, reserve: int, wanted: int) -> tuple[bytes, int]:
    """The first `wanted` bytes of a folder, and at most a block more; where the blocks with them end."""
    content = bytearray()
    offset = folder.start
    for _ in range(folder.blocks):
        if len(content) >= wanted:
            break
        checksum, size, unpacked = _at(_BLOCK, data, offset)
        body = offset + _BLOCK.size + reserve
        packed = data[body : body + size]
        if len(packed) != size:
            raise CabinetError("it is cut off within a block")
        if not unpacked:
            raise CabinetError("it has an empty block")  # thousands of them would be the work of nothing
        if unpacked > _WINDOW:
            raise CabinetError(f"it has a block of {unpacked} bytes, at most {_WINDOW} are allowed")
        if checksum and checksum != _checksum(data[offset + 4 : body], _checksum(packed, 0)):
            raise CabinetError("it is damaged: the checksum of a block does not fit")
        block = packed if folder.method == _STORED else _inflated(packed, unpacked, content[-_WINDOW:])
        if len(block) != unpacked:
            raise CabinetError(f"a block has {len(block)} bytes, and claims to have {unpacked}")
        content += block
        offset = body + size
    return bytes(content), offset


def _inflated(packed: bytes, unpacked: int, before: bytes | bytearray) -> bytes:
    """One MSZIP block; it may refer to the bytes `before` it."""
    if packed[:2] != b"CK":
        raise CabinetError("it has a block that is not of MSZIP")
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS, zdict=bytes(before))
    try:
        block = decompressor.decompress(packed[2:], unpacked + 1)
    except zlib.error as error:
        raise CabinetError(f"it is damaged: {error}") from error
    return block


def _checksum(data: bytes, seed: int) -> int:
    """The exclusive or of the numbers of four bytes in `data`; the rest counts from its last byte."""
    whole = len(data) // 4 * 4
    value = seed
    for (number,) in struct.iter_unpack("<I", data[:whole]):
        value ^= number
    return value ^ int.from_bytes(data[whole:], "big")


def _at(structure: struct.Struct, data: bytes, offset: int) -> tuple[Any, ...]:
    try:
        return structure.unpack_from(data, offset)
    except struct.error as error:
        raise CabinetError("it is cut off") from error
