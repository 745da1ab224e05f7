"""PE images of a few bytes, as boot loaders and kernels with an EFI stub are laid out."""

import struct
from collections.abc import Mapping

_HEADERS = 0x400


def pe_image(sections: Mapping[str, bytes], *, signature: bytes = b"", checksum: int = 0) -> bytes:
    """A PE32+ image with these sections; `signature` is appended and named in the directory."""
    start, table, body = _HEADERS, b"", b""
    for name, content in sections.items():
        padded = content + bytes(-len(content) % 16)
        table += struct.pack("<8sIIII16x", name.encode(), len(content), 0x1000, len(padded), start)
        body += padded
        start += len(padded)
    optional = bytearray(112 + 16 * 8)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<II", optional, 60, _HEADERS, checksum)
    if signature:
        struct.pack_into("<II", optional, 112 + 4 * 8, start, len(signature))
    coff = struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, len(optional), 0)
    head = b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0" + coff + bytes(optional) + table
    return head + bytes(_HEADERS - len(head)) + body + signature
