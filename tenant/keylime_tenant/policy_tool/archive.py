"""Initial RAM disks: cpio archives in the new ASCII format, one after the other, plain or compressed.

The kernel's description is Documentation/driver-api/early-userspace/buffer-format.rst. Contents are hashed
while they stream by; nothing is unpacked to a disk.
"""

import bz2
import lzma
import struct
import zlib
from binascii import unhexlify
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import zstandard

from keylime.errors import KeylimeError

MAX_UNPACKED = 8 << 30  # bytes of one compressed part
MAX_MEMBERS = 1_000_000
_MAX_NAME = 4096  # PATH_MAX
_PIECE = 1 << 16
# Four bytes of Zstandard can unpack to 128 KiB: small bites keep that bounded.
_ZSTD_PIECE = 512

_MAGICS = (b"070701", b"070702")
_HEADER_SIZE = 110
_FIELDS = struct.Struct(">13I")
_TRAILER = b"TRAILER!!!"
_FILE_TYPE = 0o170000
_REGULAR = 0o100000

# CPU microcode and ACPI tables: the kernel takes them from memory, no program ever sees these files.
_EARLY = (b"kernel/", b"early_cpio")
_UNSUPPORTED = {
    b"\x02\x21\x4c\x18": ("lz4", "unlz4"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"\x89LZO": ("lzo", "lzop -d"),
}


class MalformedArchive(KeylimeError):
    """Bytes that are no RAM disk that can be read; the text says why, and what to do."""


class Hash(Protocol):
    """A hash object of `hashlib`."""

    def update(self, data: bytes, /) -> None:
        """Adds data."""

    def hexdigest(self) -> str:
        """The digest so far."""


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A regular file in an archive: its name without a leading slash, and the hex digest of its content."""

    name: bytes
    digest: str


class ByteReader:
    """Bytes from an iterator of pieces, taken in any size."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = b""

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end; they stay."""
        while len(self._buffer) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._buffer += piece
        return self._buffer[:size]

    def take(self, size: int, what: str) -> bytes:
        """Exactly the next `size` bytes. Raises MalformedArchive."""
        data = self.peek(size)
        if len(data) != size:
            raise MalformedArchive(f"the archive ends within {what}")
        self._buffer = self._buffer[size:]
        return data

    def pieces(self, size: int, what: str) -> Iterator[bytes]:
        """The next `size` bytes in pieces. Raises MalformedArchive."""
        while size:
            piece = self.next_piece(size)
            if not piece:
                raise MalformedArchive(f"the archive ends within {what}")
            size -= len(piece)
            yield piece

    def next_piece(self, limit: int = _PIECE) -> bytes:
        """Some of the next bytes, at most `limit`; none at the end."""
        if not self._buffer:
            self._buffer = next(self._pieces, b"")
        piece, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return piece

    def put_back(self, data: bytes) -> None:
        """Makes `data` the next bytes."""
        self._buffer = data + self._buffer

    def skip_padding(self) -> None:
        """Passes over zeros, which stand between archives."""
        while self.peek(1) == b"\0":
            self._buffer = self._buffer.lstrip(b"\0")


def initrd_files(pieces: Iterator[bytes], new_hash: Callable[[], Hash]) -> Iterator[ArchiveFile]:
    """The regular files of a RAM disk, all its archives in order. Raises MalformedArchive."""
    reader = ByteReader(pieces)
    for is_plain, archive in _parts(reader):
        for file in archive_files(archive, new_hash):
            if not (is_plain and file.name.startswith(_EARLY)):
                yield file


def _parts(reader: ByteReader) -> Iterator[tuple[bool, ByteReader]]:
    """A reader for each archive, which must be read to its end before the next is asked for."""
    found = False
    while True:
        reader.skip_padding()
        magic = reader.peek(6)
        if not magic:
            break
        found = True
        if magic in _MAGICS:
            yield True, reader
            continue
        unpacked = ByteReader(_decompressed(reader, magic))
        while unpacked.peek(1):
            yield False, unpacked
            unpacked.skip_padding()
    if not found:
        raise MalformedArchive("the file is empty")


def archive_files(reader: ByteReader, new_hash: Callable[[], Hash]) -> Iterator[ArchiveFile]:
    """The regular files of one archive, up to its trailer. Raises MalformedArchive."""
    links: dict[tuple[int, int, int], _Links] = {}
    for _ in range(MAX_MEMBERS):
        member = _read_header(reader)
        if member.name == _TRAILER:
            break
        digest = new_hash()
        for piece in reader.pieces(member.size, f"the content of {_shown(member.name)}"):
            digest.update(piece)
        reader.take(-member.size % 4, "padding")
        if not member.is_regular:
            continue
        if member.identity is None:
            yield ArchiveFile(member.name, digest.hexdigest())
            continue
        # Of several names of one file only one has the content, usually the last.
        shared = links.setdefault(member.identity, _Links())
        shared.names.append(member.name)
        if member.size or shared.digest is None:
            shared.digest = digest.hexdigest()
    else:
        raise MalformedArchive(f"an archive has more than {MAX_MEMBERS} members")
    for shared in links.values():
        for name in shared.names:
            yield ArchiveFile(name, shared.digest or "")


@dataclass(slots=True)
class _Links:
    names: list[bytes] = field(default_factory=list)
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class _Member:
    name: bytes
    is_regular: bool
    size: int
    identity: tuple[int, int, int] | None  # of a file with several names


def _read_header(reader: ByteReader) -> _Member:
    header = reader.take(_HEADER_SIZE, "a header")
    if header[:6] not in _MAGICS:
        raise MalformedArchive(f"a member begins with {header[:6]!r}, which is no cpio header")
    try:
        inode, mode, _, _, links, _, size, major, minor, _, _, name_size, _ = _FIELDS.unpack(
            unhexlify(header[6:])
        )
    except ValueError:
        raise MalformedArchive("a cpio header has digits that are not hexadecimal") from None
    if not 1 <= name_size <= _MAX_NAME:
        raise MalformedArchive(f"a cpio header claims a name of {name_size} bytes")
    name = reader.take(name_size, "a name")
    if not name.endswith(b"\0") or b"\0" in name[:-1]:
        raise MalformedArchive(f"the name {_shown(name)} does not end where its header says")
    reader.take(-(_HEADER_SIZE + name_size) % 4, "padding")
    plain = name[:-1]
    if plain != _TRAILER:
        while plain.startswith((b"./", b"/")):
            plain = plain.removeprefix(b".").lstrip(b"/")
    identity = (inode, major, minor) if links > 1 else None
    return _Member(plain, mode & _FILE_TYPE == _REGULAR, size, identity)


def _decompressed(reader: ByteReader, magic: bytes) -> Iterator[bytes]:
    """The content of the compressed part that comes next; what follows it stays in `reader`."""
    total = 0
    for piece in _decompressor(magic)(reader):
        total += len(piece)
        if total > MAX_UNPACKED:
            raise MalformedArchive(f"the archive unpacks to more than {MAX_UNPACKED >> 30} GiB")
        yield piece


def _decompressor(magic: bytes) -> Callable[[ByteReader], Iterator[bytes]]:
    if magic.startswith((b"\x1f\x8b", b"\x1f\x9e")):
        return _gunzip
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return _unzstd
    if magic.startswith(b"BZh"):
        return lambda reader: _expand(reader, bz2.BZ2Decompressor(), "bzip2")
    if magic == b"\xfd7zXZ\x00" or magic.startswith(b"\x5d\x00\x00"):
        return lambda reader: _expand(reader, lzma.LZMADecompressor(), "xz")
    for start, (name, command) in _UNSUPPORTED.items():
        if magic.startswith(start):
            raise MalformedArchive(
                f"compressed with {name}, which is not supported: decompress it with `{command}` first"
            )
    raise MalformedArchive(f"begins with {magic.hex()}: neither a cpio archive nor a known compression")


def _expand(
    reader: ByteReader, decompressor: bz2.BZ2Decompressor | lzma.LZMADecompressor, name: str
) -> Iterator[bytes]:
    while not decompressor.eof:
        data = reader.next_piece() if decompressor.needs_input else b""
        if decompressor.needs_input and not data:
            raise MalformedArchive(f"the {name} data end too early")
        try:
            piece = decompressor.decompress(data, _PIECE)
        except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
            raise MalformedArchive(f"damaged {name} data: {error}") from error
        if piece:
            yield piece
    reader.put_back(decompressor.unused_data)


def _gunzip(reader: ByteReader) -> Iterator[bytes]:
    decompressor = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    while not decompressor.eof:
        data = decompressor.unconsumed_tail or reader.next_piece()
        try:
            piece = decompressor.decompress(data, _PIECE)
        except zlib.error as error:
            raise MalformedArchive(f"damaged gzip data: {error}") from error
        if piece:
            yield piece
        elif not data:
            raise MalformedArchive("the gzip data end too early")
    reader.put_back(decompressor.unused_data)


def _unzstd(reader: ByteReader) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    while not decompressor.eof:
        data = reader.next_piece(_ZSTD_PIECE)
        if not data:
            raise MalformedArchive("the zstd data end too early")
        try:
            piece = decompressor.decompress(data)
        except zstandard.ZstdError as error:
            raise MalformedArchive(f"damaged zstd data: {error}") from error
        if piece:
            yield piece
    reader.put_back(decompressor.unused_data)


def _shown(name: bytes) -> str:
    return ascii(name[:80].decode("latin-1"))
