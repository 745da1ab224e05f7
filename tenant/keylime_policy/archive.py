"""Initial RAM disks: cpio archives in the new ASCII format, one after the other, plain or compressed.

The kernel's description is Documentation/driver-api/early-userspace/buffer-format.rst. Contents are hashed
while they stream by; nothing is unpacked to a disk.
"""

import struct
from binascii import unhexlify
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from keylime_policy.compression import ByteReader, MalformedArchive, decompressed

MAX_MEMBERS = 1_000_000
_MAX_NAME = 4096  # PATH_MAX

_MAGICS = (b"070701", b"070702")
_HEADER_SIZE = 110
_FIELDS = struct.Struct(">13I")
_TRAILER = b"TRAILER!!!"
_FILE_TYPE = 0o170000
_REGULAR = 0o100000

# CPU microcode and ACPI tables: the kernel takes them from memory, no program ever sees these files.
_EARLY = (b"kernel/", b"early_cpio")


class Hash(Protocol):
    """A hash object of `hashlib`."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Adds data."""

    def hexdigest(self) -> str:
        """The digest so far."""


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A regular file in an archive: its name without a leading slash, and the hex digest of its content."""

    name: bytes
    digest: str


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
        unpacked = ByteReader(decompressed(reader, magic))
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


def _shown(name: bytes) -> str:
    return ascii(name[:80].decode("latin-1"))
