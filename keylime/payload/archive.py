"""The zip archive that a payload often is, read from memory and made in memory.

An archive is read completely and checked before one byte of it is used: `extraction` writes it.
"""

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from keylime.errors import KeylimeError

_END_OF_DIRECTORY = b"PK\x05\x06"
_LOCAL_HEADER = b"PK\x03\x04"
_MAX_COMMENT = 0xFFFF
_END_SIZE = 22
_DIRECTORY_ENTRY_BUDGET = 512  # bytes of central directory per entry: 46, the name, a little extra data
_MAX_NAME = 255  # bytes, of a path component
_MAX_DEPTH = 16
_FIXED_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say: equal content gives equal bytes
# What zipfile raises on hostile bytes besides its own BadZipFile.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    IndexError,
)


class PayloadRefused(KeylimeError):
    """A payload that is not written or run; names what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """How much an archive may hold: files in number, and bytes of all files together."""

    entries: int = 512
    total_bytes: int = 16 * 1024 * 1024


DEFAULT_LIMITS = ArchiveLimits()


def looks_like_archive(data: bytes) -> bool:
    """Whether `data` begins as a zip archive does."""
    return data.startswith((_LOCAL_HEADER, _END_OF_DIRECTORY))


def pack_archive(files: Mapping[str, bytes]) -> bytes:
    """A zip of `files` (name to content) in their order, stored without compression."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression=zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, date_time=_FIXED_DATE)
            info.create_system = 3  # Unix, so that the mode below counts
            info.external_attr = (stat.S_IFREG | 0o600) << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def read_archive(data: bytes, limits: ArchiveLimits = DEFAULT_LIMITS) -> tuple[tuple[str, bytes], ...]:
    """The files in the zip `data` as (relative path, content), all of them fit to be written.

    Raises PayloadRefused for the whole archive when one entry has an unsafe or repeated name, is neither
    file nor directory, or is encrypted, when the limits are exceeded, or when the archive is damaged. Nested
    archives are ordinary files. Directories appear only as parts of paths.
    """
    _check_directory_size(data, limits)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            _check_members(members, limits)
            return _read_members(archive, members, limits)
    except _ZIP_ERRORS as error:
        raise PayloadRefused(f"the archive is damaged: {error}") from error


def _check_directory_size(data: bytes, limits: ArchiveLimits) -> None:
    """Refuses an archive with a huge directory before it is parsed, whatever number of entries it claims."""
    start = data.rfind(_END_OF_DIRECTORY, max(0, len(data) - _MAX_COMMENT - _END_SIZE))
    if start < 0 or len(data) - start < _END_SIZE:
        raise PayloadRefused("the archive is damaged: no end of central directory")
    entries, size = struct.unpack_from("<HI", data, start + 10)
    if entries > limits.entries or size > limits.entries * _DIRECTORY_ENTRY_BUDGET:
        raise PayloadRefused(f"the archive has more than {limits.entries} entries")


def _check_members(members: list[zipfile.ZipInfo], limits: ArchiveLimits) -> None:
    if len(members) > limits.entries:
        raise PayloadRefused(f"the archive has more than {limits.entries} entries")
    if sum(member.file_size for member in members) > limits.total_bytes:
        raise PayloadRefused(f"the archive holds more than {limits.total_bytes} bytes")
    files: set[str] = set()
    directories: set[str] = set()
    for member in members:
        _check_kind(member)
        path = _safe_path(member)
        parents = {path.rsplit("/", depth)[0] for depth in range(1, path.count("/") + 1)}
        if path in files or (path in directories and not member.is_dir()) or parents & files:
            raise PayloadRefused(f"the archive has two entries named {path!r}")
        (directories if member.is_dir() else files).add(path)
        directories |= parents


def _check_kind(member: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if member.is_dir() else stat.S_IFREG):
        raise PayloadRefused(f"archive entry {member.filename!r} is neither a file nor a directory")
    if member.flag_bits & 0x1:
        raise PayloadRefused(f"archive entry {member.filename!r} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PayloadRefused(f"archive entry {member.filename!r} is compressed by an unsupported method")


def _safe_path(member: zipfile.ZipInfo) -> str:
    name = member.orig_filename
    # zipfile cuts names at NUL; the name as it was stored must be the one that is used.
    if name != member.filename or not name.isprintable() or "\\" in name:
        raise PayloadRefused(f"archive entry {name!r} has an unsafe name")
    path = name.removesuffix("/")
    parts = path.split("/")
    if len(parts) > _MAX_DEPTH or not all(_is_safe_component(part) for part in parts):
        raise PayloadRefused(f"archive entry {name!r} has an unsafe name")
    return path


def _is_safe_component(part: str) -> bool:
    return part not in ("", ".", "..") and len(part.encode("utf-8")) <= _MAX_NAME


def _read_members(
    archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], limits: ArchiveLimits
) -> tuple[tuple[str, bytes], ...]:
    files = []
    remaining = limits.total_bytes
    for member in members:
        if member.is_dir():
            continue
        with archive.open(member) as file:
            content = file.read(remaining + 1)
        remaining -= len(content)
        if remaining < 0:
            raise PayloadRefused(f"the archive holds more than {limits.total_bytes} bytes")
        if len(content) != member.file_size:
            raise PayloadRefused(f"archive entry {member.filename!r} is shorter than it says")
        files.append((member.filename, content))
    return tuple(files)
