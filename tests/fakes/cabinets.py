"""Cabinets by [MS-CAB], written with the mistakes that a test asks for."""

import struct
import zlib
from collections.abc import Sequence

_BLOCK = 32 * 1024


def cabinet(
    files: Sequence[tuple[str, bytes]],
    *,
    compressed: bool = True,
    reserve: int = 0,
    method: int | None = None,
    flags: int = 0,
    checksums: bool = True,
    claimed: int | None = None,
) -> bytes:
    """A cabinet of one folder; `reserve` bytes stand where signatures of cabinets have theirs."""
    content = b"".join(data for _, data in files)
    blocks = [content[at : at + _BLOCK] for at in range(0, len(content), _BLOCK)]
    body, before = b"", b""
    for block in blocks:
        packed = _deflated(block, before) if compressed else block
        head = struct.pack("<HH", len(packed), len(block) if claimed is None else claimed) + bytes(reserve)
        checksum = _xor(head) ^ _xor(packed) if checksums else 0
        body += struct.pack("<I", checksum) + head + packed
        before = (before + block)[-_BLOCK:]
    reserves = struct.pack("<HBB", reserve, reserve, reserve) + bytes(reserve) if reserve else b""
    folder_at = 36 + len(reserves)
    files_at = folder_at + 8 + reserve
    table, start = b"", 0
    for name, data in files:
        table += struct.pack("<IIHHHH", len(data), start, 0, 0, 0, 0x80) + name.encode() + b"\0"
        start += len(data)
    kind = method if method is not None else int(compressed)
    folder = struct.pack("<IHH", files_at + len(table), len(blocks), kind) + bytes(reserve)
    size = files_at + len(table) + len(body)
    flags |= 4 if reserve else 0
    header = struct.pack("<4s4xI4xI4xBBHHHHH", b"MSCF", size, files_at, 3, 1, 1, len(files), flags, 0, 0)
    return header + reserves + folder + table + body


def _deflated(block: bytes, before: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15, zdict=before)
    return b"CK" + compressor.compress(block) + compressor.flush()


def _xor(data: bytes) -> int:
    value = 0
    for at in range(0, len(data) - 3, 4):
        value ^= int.from_bytes(data[at : at + 4], "little")
    rest = data[len(data) // 4 * 4 :]
    return value ^ int.from_bytes(rest, "big")
