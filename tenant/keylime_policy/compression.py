"""Compressed streams, whole or one after the other: gzip, xz, lzma, bzip2, zstd, lz4 and lzo.

Pure: bytes come in pieces from an iterator and go out in pieces, and never many for few.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator

import lz4.block
import lz4.frame
import lzallright
import zstandard

from keylime.errors import KeylimeError

MAX_UNPACKED = 8 << 30  # bytes of one compressed part
_PIECE = 1 << 16
# Four bytes of Zstandard can unpack to 128 KiB: small bites keep that bounded.
_ZSTD_PIECE = 512

# The older of two formats of lz4, which the kernel's build makes (`lz4 -l`): blocks with a length in front.
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 << 20  # unpacked
_LZ4_BOUND = _LZ4_BLOCK + _LZ4_BLOCK // 255 + 16

_LZOP = b"\x89LZO\0\r\n\x1a\n"
_LZOP_BLOCK = 64 << 20
_LZOP_ADLER_PLAIN, _LZOP_ADLER_PACKED, _LZOP_CRC_PLAIN, _LZOP_CRC_PACKED = 1, 2, 0x100, 0x200
_LZOP_EXTRA, _LZOP_FILTER = 0x40, 0x800


class MalformedArchive(KeylimeError):
    """Bytes that are no archive that can be read; the text says why, and what to do."""


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


def is_compressed(magic: bytes) -> bool:
    """Whether a stream that begins so (six bytes) is in a format that is read here."""
    return _find(magic) is not None


def unpacked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """A whole stream without its compression, if it has one. Raises MalformedArchive."""
    reader = ByteReader(pieces)
    while magic := reader.peek(6):
        if is_compressed(magic):
            yield from decompressed(reader, magic)
            reader.skip_padding()
        else:
            while piece := reader.next_piece():
                yield piece


def decompressed(reader: ByteReader, magic: bytes) -> Iterator[bytes]:
    """The content of the compressed part that comes next; what follows it stays in `reader`."""
    expand = _find(magic)
    if expand is None:
        raise MalformedArchive(f"begins with {magic.hex()}: neither a cpio archive nor a known compression")
    total = 0
    for piece in expand(reader):
        total += len(piece)
        if total > MAX_UNPACKED:
            raise MalformedArchive(f"the archive unpacks to more than {MAX_UNPACKED >> 30} GiB")
        yield piece


def _find(magic: bytes) -> Callable[[ByteReader], Iterator[bytes]] | None:
    if magic.startswith((b"\x1f\x8b", b"\x1f\x9e")):
        return _gunzip
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return _unzstd
    if magic.startswith(b"BZh"):
        return lambda reader: _expand(reader, bz2.BZ2Decompressor(), "bzip2")
    if magic == b"\xfd7zXZ\x00" or magic.startswith(b"\x5d\x00\x00"):
        return lambda reader: _expand(reader, lzma.LZMADecompressor(), "xz")
    if magic.startswith(_LZ4_LEGACY):
        return _unlz4_legacy
    if magic.startswith(b"\x04\x22\x4d\x18"):
        return lambda reader: _expand(reader, lz4.frame.LZ4FrameDecompressor(), "lz4")
    if magic.startswith(_LZOP[:6]):
        return _unlzop
    return None


def _expand(
    reader: ByteReader,
    decompressor: "bz2.BZ2Decompressor | lzma.LZMADecompressor | lz4.frame.LZ4FrameDecompressor",
    name: str,
) -> Iterator[bytes]:
    while not decompressor.eof:
        data = reader.next_piece() if decompressor.needs_input else b""
        if decompressor.needs_input and not data:
            raise MalformedArchive(f"the {name} data end too early")
        try:
            piece = decompressor.decompress(data, _PIECE)
        except (OSError, EOFError, lzma.LZMAError, RuntimeError, ValueError) as error:
            raise MalformedArchive(f"damaged {name} data: {error}") from error
        if piece:
            yield piece
    reader.put_back(decompressor.unused_data or b"")  # lz4 has None


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


def _unlz4_legacy(reader: ByteReader) -> Iterator[bytes]:
    reader.take(len(_LZ4_LEGACY), "the lz4 header")
    while len(head := reader.peek(4)) == 4 and head != _LZ4_LEGACY:
        size = int.from_bytes(head, "little")
        if not 0 < size <= _LZ4_BOUND:
            return  # no block any more, but padding, or what follows
        reader.take(4, "the length of an lz4 block")
        block = reader.take(size, "an lz4 block")
        try:
            yield lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise MalformedArchive(f"damaged lz4 data: {error}") from error


def _unlzop(reader: ByteReader) -> Iterator[bytes]:
    """What lzop writes: a header, and blocks with their lengths and check sums."""
    flags = _lzop_header(reader)
    while size := _number(reader, 4):
        packed_size = _number(reader, 4)
        if not 0 < packed_size <= size <= _LZOP_BLOCK:
            raise MalformedArchive(f"damaged lzo data: a block of {packed_size} bytes for {size}")
        adler = _number(reader, 4) if flags & _LZOP_ADLER_PLAIN else None
        crc = _number(reader, 4) if flags & _LZOP_CRC_PLAIN else None
        if packed_size < size:
            reader.take(4 * bool(flags & _LZOP_ADLER_PACKED), "a check sum")
            reader.take(4 * bool(flags & _LZOP_CRC_PACKED), "a check sum")
        block = reader.take(packed_size, "an lzo block")
        content = block if packed_size == size else _lzo_block(block, size)
        if (adler is not None and zlib.adler32(content) != adler) or (
            crc is not None and zlib.crc32(content) != crc
        ):
            raise MalformedArchive("damaged lzo data: a check sum does not fit")
        yield content


def _lzo_block(block: bytes, size: int) -> bytes:
    try:
        content = lzallright.LZOCompressor.decompress(block, size)
    except lzallright.LZOError as error:
        raise MalformedArchive(f"damaged lzo data: {error}") from error
    if len(content) != size:
        raise MalformedArchive(f"damaged lzo data: {len(content)} bytes instead of {size}")
    return content


def _lzop_header(reader: ByteReader) -> int:
    """Reads the header of a file of lzop; its flags."""
    reader.take(len(_LZOP), "the lzo header")
    is_new = _number(reader, 2) >= 0x0940
    reader.take(6 if is_new else 3, "the lzo header")  # versions, method, level
    flags = _number(reader, 4)
    if flags & _LZOP_FILTER:
        raise MalformedArchive("lzo data with a filter: decompress them with `lzop -d` first")
    reader.take(12 if is_new else 8, "the lzo header")
    reader.take(_number(reader, 1), "the name in the lzo header")
    reader.take(4, "the lzo header")
    if flags & _LZOP_EXTRA:
        reader.take(_number(reader, 4), "the lzo header")
        reader.take(4, "the lzo header")
    return flags


def _number(reader: ByteReader, size: int) -> int:
    return int.from_bytes(reader.take(size, "lzo data"), "big")
