"""Reads little-endian firmware structures from hostile bytes, never past the end."""

import struct
import uuid

from keylime.errors import MalformedEvidence


class EventReader:
    """A cursor over `data`. Methods raise MalformedEvidence, naming the field, when the bytes run out."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    @property
    def offset(self) -> int:
        """Bytes consumed so far."""
        return self._offset

    @property
    def remaining(self) -> int:
        """Bytes not consumed yet."""
        return len(self._data) - self._offset

    def take(self, size: int, field: str) -> bytes:
        """The next `size` bytes."""
        start = self._offset
        end = start + size
        if end > len(self._data):
            raise MalformedEvidence(f"{field}: {size} bytes announced, {self.remaining} left")
        self._offset = end
        return self._data[start:end]

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(self.remaining, "rest")

    def u8(self, field: str) -> int:
        """An unsigned byte."""
        return self.take(1, field)[0]

    def u16(self, field: str) -> int:
        """An unsigned 16-bit number."""
        return int.from_bytes(self.take(2, field), "little")

    def u32(self, field: str) -> int:
        """An unsigned 32-bit number."""
        return int.from_bytes(self.take(4, field), "little")

    def u64(self, field: str) -> int:
        """An unsigned 64-bit number."""
        return int.from_bytes(self.take(8, field), "little")

    def u64s(self, count: int, field: str) -> tuple[int, ...]:
        """`count` unsigned 64-bit numbers."""
        return struct.unpack(f"<{count}Q", self.take(8 * count, field))

    def guid(self, field: str) -> uuid.UUID:
        """An EFI GUID: its first three groups are stored little-endian."""
        return uuid.UUID(bytes_le=self.take(16, field))

    def utf16(self, size: int, field: str) -> str:
        """`size` bytes of UTF-16LE text; embedded NULs are kept, unpaired surrogates refused."""
        raw = self.take(size, field)
        try:
            return raw.decode("utf-16-le")
        except UnicodeDecodeError as error:
            raise MalformedEvidence(f"{field} is not UTF-16 text") from error

    def expect_end(self, structure: str) -> None:
        """Raises MalformedEvidence when bytes are left behind `structure`."""
        if self.remaining:
            raise MalformedEvidence(f"{self.remaining} bytes after the {structure}")
