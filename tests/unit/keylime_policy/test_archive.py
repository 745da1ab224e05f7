"""RAM disks: every compression, hard links, early archives; and hostile bytes."""

import bz2
import contextlib
import gzip
import hashlib
import lzma
import struct
import zlib
from collections.abc import Callable

import lz4.block
import lz4.frame
import lzallright
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from keylime_policy import archive, compression
from keylime_policy.archive import ArchiveFile, initrd_files
from keylime_policy.compression import MalformedArchive

FILE, DIRECTORY, LINK = 0o100755, 0o040755, 0o120777


def member(name: bytes, content: bytes = b"", *, mode: int = FILE, inode: int = 1, links: int = 1) -> bytes:
    fields = (inode, mode, 0, 0, links, 0, len(content), 8, 1, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + name + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


TRAILER = member(b"TRAILER!!!", mode=0)
EARLY = member(b"kernel/x86/microcode/GenuineIntel.bin", b"microcode") + TRAILER
MAIN = (
    member(b".", mode=DIRECTORY)
    + member(b"./usr/bin/sh", b"shell")
    + member(b"bin", b"usr/bin", mode=LINK)
    + member(b"usr/bin/a", inode=7, links=2)
    + member(b"usr/bin/b", b"linked", inode=7, links=2)
    + member(b"empty")
    + TRAILER
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


FILES = {
    b"usr/bin/sh": sha256(b"shell"),
    b"usr/bin/a": sha256(b"linked"),
    b"usr/bin/b": sha256(b"linked"),
    b"empty": sha256(b""),
}


def read(data: bytes, piece: int = 1 << 20) -> list[ArchiveFile]:
    pieces = (data[start : start + piece] for start in range(0, len(data), piece))
    return list(initrd_files(pieces, hashlib.sha256))


def lzma_alone(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_ALONE)


def lz4_legacy(data: bytes) -> bytes:
    """As `lz4 -l` writes it."""
    blocks = [
        lz4.block.compress(data[at : at + (8 << 20)], store_size=False) for at in range(0, len(data), 8 << 20)
    ]
    return b"\x02\x21\x4c\x18" + b"".join(len(block).to_bytes(4, "little") + block for block in blocks)


def lzop(data: bytes) -> bytes:
    """As `lzop` writes it: its header in full, and a block for each 256 KiB."""
    head = b"\x89LZO\0\r\n\x1a\n" + struct.pack(">HHHBBIIIIB", 0x1040, 0x20A0, 0x0940, 1, 5, 3, 0, 0, 0, 0)
    blocks = []
    for start in range(0, len(data), 1 << 18):
        part = data[start : start + (1 << 18)]
        packed = lzallright.LZOCompressor().compress(part)
        sums = struct.pack(">I", zlib.adler32(part))
        if len(packed) < len(part):
            sums += struct.pack(">I", zlib.adler32(packed))
        else:
            packed = part
        blocks.append(struct.pack(">II", len(part), len(packed)) + sums + packed)
    return head + struct.pack(">I", zlib.adler32(head[9:])) + b"".join(blocks) + bytes(4)


COMPRESSIONS: list[Callable[[bytes], bytes]] = [
    bytes,
    gzip.compress,
    bz2.compress,
    lzma.compress,
    lzma_alone,
    zstandard.ZstdCompressor().compress,
    lz4.frame.compress,
    lz4_legacy,
    lzop,
]


@pytest.mark.parametrize(
    "compress", COMPRESSIONS, ids=["none", "gzip", "bzip2", "xz", "lzma", "zstd", "lz4", "lz4-legacy", "lzo"]
)
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_the_files_of_a_ram_disk_are_hashed(compress: Callable[[bytes], bytes], piece: int) -> None:
    early = EARLY + bytes(-len(EARLY) % 512)
    image = early + compress(MAIN + bytes(300)) + bytes(100)
    assert {file.name: file.digest for file in read(image, piece)} == FILES


@pytest.mark.parametrize("compress", COMPRESSIONS[1:4], ids=["gzip", "bzip2", "xz"])
def test_archives_may_follow_one_another(compress: Callable[[bytes], bytes]) -> None:
    more = member(b"usr/lib/module.ko", b"module") + TRAILER
    image = more + compress(MAIN + more) + bytes(8) + compress(more)
    assert [file.name for file in read(image)].count(b"usr/lib/module.ko") == 3


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "empty"),
        (bytes(512), "empty"),
        (b"#!/bin/sh\n", "neither a cpio archive nor a known compression"),
        (b"\x02\x21\x4c\x18\4\0\0\0data", "damaged lz4 data"),
        (lz4_legacy(MAIN)[:-20], "ends within an lz4 block"),
        (lz4.frame.compress(MAIN)[:-30], "lz4 data end too early|ends within"),
        (b"\x89LZO\0\r\n", "ends within the lzo header"),
        (lzop(MAIN)[:-20], "ends within an lzo block"),
        (lzop(MAIN).replace(b"usr", b"usx", 1), "a check sum does not fit"),
        (MAIN[:-200], "ends within"),
        (member(b"a")[:50], "ends within a header"),
        (member(b"a") + b"x" * 110, "no cpio header"),
        (b"070701" + b"g" * 104, "not hexadecimal"),
        (b"070701" + b"+0000001" * 13, "not hexadecimal"),
        (gzip.compress(MAIN)[:-12], "gzip data end too early"),
        (gzip.compress(MAIN)[:20] + b"\xff" * 30, "damaged gzip|gzip data end"),
        (lzma.compress(MAIN)[:-40], "xz data end too early"),
        (bz2.compress(MAIN)[:-20], "bzip2 data end too early"),
        (zstandard.ZstdCompressor().compress(MAIN)[:-4], "zstd data end too early"),
        (gzip.compress(b"no archive" * 20), "no cpio header"),
        (gzip.compress(b""), ""),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else f"{len(value)} bytes"
    ),  # else they hold a part of the clock's time, and each process would collect other tests
)
def test_what_is_no_ram_disk_is_refused_with_a_reason(image: bytes, reason: str) -> None:
    if not reason:
        assert read(image) == []
        return
    with pytest.raises(MalformedArchive, match=reason):
        read(image)


def test_names_must_end_where_the_header_says() -> None:
    broken = bytearray(member(b"abc", b"x"))
    broken[94:102] = b"00000002"
    with pytest.raises(MalformedArchive, match="does not end where its header says"):
        read(bytes(broken))
    broken[94:102] = b"00100000"
    with pytest.raises(MalformedArchive, match="claims a name of"):
        read(bytes(broken))


def test_bombs_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = member(b"zeros", bytes(1 << 20)) + TRAILER
    monkeypatch.setattr(compression, "MAX_UNPACKED", 1 << 19)
    for compress in COMPRESSIONS[1:]:
        with pytest.raises(MalformedArchive, match="unpacks to more than"):
            read(compress(bomb))


def test_the_number_of_members_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    with pytest.raises(MalformedArchive, match="more than 3 members"):
        read(MAIN)


def test_a_block_of_zstandard_never_unpacks_to_more_than_a_bite_may() -> None:
    run = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    pieces = compression._unzstd(compression.ByteReader(iter([run])))
    assert max(map(len, pieces)) <= compression._ZSTD_PIECE // 4 * (128 << 10)


@given(st.binary(max_size=400))
def test_any_bytes_are_files_or_a_declared_error(data: bytes) -> None:
    magics = (
        b"",
        b"070701",
        MAIN[:300],
        b"\x28\xb5\x2f\xfd",
        b"\x02\x21\x4c\x18",
        b"\x04\x22\x4d\x18",
        lzop(b"")[:-4],
    )
    for image in (gzip.compress(data), *(magic + data for magic in magics)):
        with contextlib.suppress(MalformedArchive):
            read(image)


@given(st.integers(0, len(MAIN) - 1), st.integers(1, 255))
def test_one_altered_byte_is_survived(position: int, change: int) -> None:
    altered = bytearray(MAIN)
    altered[position] ^= change
    with contextlib.suppress(MalformedArchive):
        read(bytes(altered))


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=30), st.binary(max_size=200)), max_size=8))
def test_what_is_packed_comes_out(files: list[tuple[bytes, bytes]]) -> None:
    named = [(b"f" + name.replace(b"\0", b"0"), content) for name, content in files]
    image = b"".join(member(name, content) for name, content in named) + TRAILER
    assert [(file.name, file.digest) for file in read(image, 64)] == [
        (name, sha256(content)) for name, content in named
    ]


def test_the_test_writes_headers_of_the_right_size() -> None:
    assert len(member(b"abc")) == 110 + 4 + 2
    assert struct.calcsize(">13I") * 2 + 6 == 110
