"""The Authenticode digest of a PE image: what firmware and shim extend PCR 4 with when they start it.

It leaves the signatures out, so that signing an image changes nothing in a reference state (Microsoft,
"Windows Authenticode Portable Executable Signature Format", calculating the PE image hash).
"""

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.reader import EventReader

_MZ, _PE = b"MZ", b"PE\0\0"
_OFFSET_OF_PE = 0x3C
_COFF_SIZE = 20
_CHECKSUM = 64  # in the optional header, of both kinds
_CHECKSUM_SIZE = 4
_DIRECTORIES = {0x10B: 96, 0x20B: 112}  # by the magic of PE32 and PE32+
_DIRECTORY_SIZE = 8
_CERTIFICATES = 4  # index of the directory of signatures
_SECTION_SIZE = 40
_MAX_SECTIONS = 96
_NAME_SIZE = 8


def is_pe_image(image: bytes) -> bool:
    """Whether firmware could start it: a kernel with an EFI stub, a boot loader, a unified kernel image."""
    return image[:2] == _MZ and image[_pe_offset(image) :][:4] == _PE


def authenticode_digest(image: bytes, algorithm: HashAlgorithm = HashAlgorithm.SHA256) -> bytes:
    """The digest of `image` without its checksum and signatures. Raises MalformedEvidence."""
    layout = _Layout(image)
    parts = [image[: layout.checksum], image[layout.checksum + _CHECKSUM_SIZE : layout.directory]]
    parts.append(image[layout.directory + _DIRECTORY_SIZE : layout.headers_size])
    hashed = layout.headers_size
    for start, size in sorted(section[1:] for section in layout.sections if section[2]):
        parts.append(_slice(image, start, size))
        hashed += size
    rest = len(image) - layout.certificates_size
    if rest > hashed:
        parts.append(image[hashed:rest])
    return algorithm.digest(b"".join(parts))


def pe_section(image: bytes, name: str) -> bytes | None:
    """The contents of the first section called `name`, without padding. Raises MalformedEvidence."""
    layout = _Layout(image)
    for (found, start, size), virtual in zip(layout.sections, layout.virtual_sizes, strict=True):
        if found == name:
            return _slice(image, start, size)[: virtual or size]
    return None


class _Layout:
    """Where things stand in a PE image."""

    def __init__(self, image: bytes) -> None:
        if not is_pe_image(image):
            raise MalformedEvidence("no PE image: it does not begin like a program of UEFI")
        coff = _pe_offset(image) + len(_PE)
        reader = EventReader(_slice(image, coff, _COFF_SIZE))
        reader.u16("machine")
        count = reader.u16("number of sections")
        reader.take(12, "symbols")
        optional_size = reader.u16("size of the optional header")
        if count > _MAX_SECTIONS:
            raise MalformedEvidence(f"PE image has {count} sections, at most {_MAX_SECTIONS} are read")
        optional = coff + _COFF_SIZE
        head = EventReader(_slice(image, optional, optional_size))
        directories = _DIRECTORIES.get(head.u16("magic"))
        if directories is None or optional_size < directories + (_CERTIFICATES + 1) * _DIRECTORY_SIZE:
            raise MalformedEvidence("PE image has no directory of signatures")
        head.take(58, "optional header")
        self.headers_size = head.u32("size of the headers")
        self.checksum = optional + _CHECKSUM
        self.directory = optional + directories + _CERTIFICATES * _DIRECTORY_SIZE
        entry = EventReader(_slice(image, self.directory, _DIRECTORY_SIZE))
        entry.u32("place of the signatures")
        self.certificates_size = entry.u32("size of the signatures")
        table = optional + optional_size
        if not self.directory + _DIRECTORY_SIZE <= self.headers_size <= len(image):
            raise MalformedEvidence("PE image is cut off in its headers")
        if self.certificates_size > len(image) - self.headers_size:
            raise MalformedEvidence("PE image is shorter than its signatures")
        self.sections: list[tuple[str, int, int]] = []
        self.virtual_sizes: list[int] = []
        for at in range(count):
            self._read_section(EventReader(_slice(image, table + at * _SECTION_SIZE, _SECTION_SIZE)))

    def _read_section(self, reader: EventReader) -> None:
        name = reader.take(_NAME_SIZE, "section name").rstrip(b"\0").decode("ascii", "replace")
        self.virtual_sizes.append(reader.u32("size in memory"))
        reader.u32("address")
        size = reader.u32("size of a section")
        self.sections.append((name, reader.u32("place of a section"), size))


def _pe_offset(image: bytes) -> int:
    return int.from_bytes(image[_OFFSET_OF_PE : _OFFSET_OF_PE + 4], "little")


def _slice(image: bytes, start: int, size: int) -> bytes:
    part = image[start : start + size]
    if len(part) != size:
        raise MalformedEvidence("PE image is cut off")
    return part
