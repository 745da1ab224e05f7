"""RPM packages, the headers of their database, and the indices of their repositories.

Pure: parsers of bytes. The format is in the manual of RPM 4.18 and later ("package format"); tags are those
of its list of tags.
"""

import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO

from keylime.hashes import HashAlgorithm
from keylime_policy.compression import MalformedArchive
from keylime_policy.packages.package import CHECKSUMS, Package, checked_path

_LEAD_SIZE, _LEAD_MAGIC = 96, b"\xed\xab\xee\xdb"
_HEADER_MAGIC = b"\x8e\xad\xe8\x01"
_MAX_ENTRIES, _MAX_DATA = 1 << 16, 256 << 20  # as rpm itself
_ENTRY = struct.Struct(">IIII")
_INT16, _INT32, _INT64, _STRING, _BINARY, _STRINGS, _TRANSLATED = 3, 4, 5, 6, 7, 8, 9
_SIZES = {_INT16: ("H", 2), _INT32: ("I", 4), _INT64: ("Q", 8)}
_NAME, _OLD_NAMES, _MODES, _DIGESTS, _FLAGS = 1000, 1027, 1030, 1035, 1037
_DIRECTORIES, _BASES, _DIRECTORY_NAMES, _ALGORITHM = 1116, 1117, 1118, 5011
_IDENTITY = (_NAME, 1001, 1002, 1022)  # version, release, architecture
_SIGNATURES = (268, 267)  # over the header: by RSA, by others
_GHOST = 1 << 6
_FILE_TYPE, _REGULAR = 0o170000, 0o100000
# The numbers of OpenPGP. Without one they are MD5, which no policy can list.
_ALGORITHMS = {
    2: HashAlgorithm.SHA1,
    8: HashAlgorithm.SHA256,
    9: HashAlgorithm.SHA384,
    10: HashAlgorithm.SHA512,
}
_REPO = "{http://linux.duke.edu/metadata/repo}"
_COMMON = "{http://linux.duke.edu/metadata/common}"
_RPM = "{http://linux.duke.edu/metadata/rpm}"
_EXTENDED = "{http://linux.duke.edu/metadata/filelists-ext}"

Values = tuple[int, ...] | tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RpmFiles:
    """The regular files of a package: digests by name; `algorithm` is None where no policy can have it."""

    package: str
    algorithm: HashAlgorithm | None
    digests: Mapping[bytes, str]


@dataclass(frozen=True, slots=True)
class PackageHead:
    """The headers of a package: which it says it is, its files, and what its makers signed."""

    identity: tuple[str, ...]
    files: RpmFiles
    signed: bytes
    signatures: tuple[bytes, ...]  # OpenPGP, detached


def package_files(file: IO[bytes]) -> RpmFiles:
    """What the header of a package says of its files. Raises MalformedArchive."""
    return package_head(file).files


def package_head(file: IO[bytes]) -> PackageHead:
    """The headers at the beginning of a package. Raises MalformedArchive."""
    lead = _take(file, _LEAD_SIZE)
    if lead[:4] != _LEAD_MAGIC:
        raise MalformedArchive("no RPM: it does not begin like one")
    signatures = _read_header(file)
    _take(file, -len(signatures) % 8)
    header = _read_header(file)
    with _damage_named():
        found = _parse_header(signatures, _SIGNATURES)
        values = _parse_header(header, _IDENTITY)
    return PackageHead(
        tuple(b"".join(_strings(values, tag)).decode("utf-8", "replace") for tag in _IDENTITY),
        header_files(header),
        _HEADER_MAGIC + bytes(4) + header,
        tuple(value for tag in _SIGNATURES for value in _strings(found, tag)),
    )


def _read_header(file: IO[bytes]) -> bytes:
    """A header without its magic number: lengths, entries, data, as the database has it."""
    start = _take(file, 16)
    if start[:4] != _HEADER_MAGIC:
        raise MalformedArchive("a header of the RPM is damaged")
    entries, size = struct.unpack(">II", start[8:])
    if entries > _MAX_ENTRIES or size > _MAX_DATA:
        raise MalformedArchive(f"a header of the RPM claims {entries} entries and {size} bytes")
    return start[8:] + _take(file, entries * _ENTRY.size + size)


def _take(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise MalformedArchive("the RPM ends within its headers")
    return data


def header_files(header: bytes) -> RpmFiles:
    """What a header (without its magic number) says of a package's files. Raises MalformedArchive."""
    with _damage_named():
        return _files(_parse_header(header, _WANTED))


@contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except (struct.error, IndexError, ValueError, TypeError) as error:
        raise MalformedArchive(f"a header of the RPM is damaged: {error}") from error


def _parse_header(header: bytes, wanted: Collection[int]) -> dict[int, Values]:
    entries, size = struct.unpack_from(">II", header)
    start = 8 + entries * _ENTRY.size
    data = header[start : start + size]
    if entries > _MAX_ENTRIES or len(data) != size:
        raise MalformedArchive("a header of the RPM is cut off")
    values: dict[int, Values] = {}
    for number in range(entries):
        tag, kind, offset, count = _ENTRY.unpack_from(header, 8 + number * _ENTRY.size)
        if tag not in wanted:
            continue
        if kind in _SIZES:
            code, width = _SIZES[kind]
            if count * width > size:
                raise MalformedArchive("a header of the RPM claims more numbers than it has")
            values[tag] = struct.unpack_from(f">{count}{code}", data, offset)
        elif kind in (_STRING, _STRINGS, _TRANSLATED):
            values[tag] = _texts(data, offset, 1 if kind == _STRING else count)
        elif kind == _BINARY:
            values[tag] = (data[offset : offset + count],)
    return values


_WANTED = frozenset(
    {_NAME, _OLD_NAMES, _MODES, _DIGESTS, _FLAGS, _DIRECTORIES, _BASES, _DIRECTORY_NAMES, _ALGORITHM}
)


def _texts(data: bytes, offset: int, count: int) -> tuple[bytes, ...]:
    texts = []
    for _ in range(count):
        end = data.index(b"\0", offset)
        texts.append(data[offset:end])
        offset = end + 1
    return tuple(texts)


def _files(values: Mapping[int, Values]) -> RpmFiles:
    numbers = {tag: _numbers(values, tag) for tag in (_MODES, _FLAGS, _DIRECTORIES, _ALGORITHM)}
    names = list(_strings(values, _OLD_NAMES))
    if _BASES in values:
        directories = _strings(values, _DIRECTORY_NAMES)
        bases = _strings(values, _BASES)
        names = [directories[at] + base for at, base in zip(numbers[_DIRECTORIES], bases, strict=True)]
    texts = _strings(values, _DIGESTS)
    modes = numbers[_MODES]
    flags = numbers[_FLAGS] or (0,) * len(names)
    package = b"".join(_strings(values, _NAME)).decode("utf-8", "replace")
    if not len(names) == len(texts) == len(modes) == len(flags):
        if not texts:  # it has no files
            return RpmFiles(package, None, {})
        raise MalformedArchive("a header of the RPM has lists of files of different lengths")
    digests = {
        name: digest.decode("ascii")
        for name, digest, mode, flag in zip(names, texts, modes, flags, strict=True)
        if mode & _FILE_TYPE == _REGULAR and not flag & _GHOST and digest.strip(b"0")
    }
    algorithm = _ALGORITHMS.get(numbers[_ALGORITHM][0]) if numbers[_ALGORITHM] else None
    if algorithm is not None:
        for digest in digests.values():
            if len(bytes.fromhex(digest)) != algorithm.size or digest != digest.lower():
                raise MalformedArchive(
                    f"{digest[:80]!a} in a header of the RPM is no {algorithm.label} digest"
                )
    return RpmFiles(package, algorithm, digests)


def _numbers(values: Mapping[int, Values], tag: int) -> tuple[int, ...]:
    return tuple(value for value in values.get(tag, ()) if isinstance(value, int))


def _strings(values: Mapping[int, Values], tag: int) -> tuple[bytes, ...]:
    return tuple(value for value in values.get(tag, ()) if isinstance(value, bytes))


def parse_repomd(content: bytes) -> Mapping[str, Package]:
    """The files of metadata that a repository's repomd.xml lists, by kind. Raises MalformedArchive."""
    found = {}
    try:
        root = ElementTree.fromstring(content)  # noqa: S314 - expat bounds what entities become
        for data in root.iter(f"{_REPO}data"):
            path = _attribute(data.find(f"{_REPO}location"), "href")
            checksum = data.find(f"{_REPO}checksum")
            size = data.findtext(f"{_REPO}size")
            found[data.get("type", "")] = _package(path, checksum, None if size is None else int(size))
    except (ElementTree.ParseError, ValueError) as error:
        raise MalformedArchive(f"repomd.xml cannot be read: {error}") from error
    return found


def parse_primary(file: IO[bytes]) -> Iterator[Package]:
    """The packages that primary.xml lists. Raises MalformedArchive."""
    for element in _elements(file, f"{_COMMON}package"):
        if element.get("type") != "rpm" or element.findtext(f"{_COMMON}arch") == "src":
            continue
        path = _attribute(element.find(f"{_COMMON}location"), "href")
        size = _attribute(element.find(f"{_COMMON}size"), "package")
        package = _package(path, element.find(f"{_COMMON}checksum"), int(size) if size.isdigit() else None)
        version = element.find(f"{_COMMON}version")
        end = _attribute(element.find(f"{_COMMON}format/{_RPM}header-range"), "end")
        yield replace(
            package,
            identity=(
                element.findtext(f"{_COMMON}name", ""),
                _attribute(version, "ver"),
                _attribute(version, "rel"),
                element.findtext(f"{_COMMON}arch", ""),
            ),
            header_end=int(end) if end.isascii() and end.isdigit() else None,
        )


def parse_extended_lists(file: IO[bytes]) -> Iterator[tuple[bytes, str]]:
    """Names and digests of the files that filelists-ext.xml lists. Raises MalformedArchive."""
    for element in _elements(file, f"{_EXTENDED}package"):
        for entry in element.iter(f"{_EXTENDED}file"):
            digest = entry.get("hash")
            if digest and entry.text and digest.strip("0"):
                yield entry.text.encode(), digest


def _elements(file: IO[bytes], tag: str) -> Iterator[ElementTree.Element]:
    try:
        parsing = ElementTree.iterparse(file, events=("start", "end"))  # noqa: S314 - as above
        _, root = next(parsing)
        for event, element in parsing:
            if event == "end" and element.tag == tag:
                yield element
                root.clear()
    except (ElementTree.ParseError, StopIteration) as error:
        raise MalformedArchive(f"an index of the repository cannot be read: {error}") from error


def _attribute(element: ElementTree.Element | None, name: str) -> str:
    return "" if element is None else element.get(name, "")


def _package(path: str, checksum: ElementTree.Element | None, size: int | None) -> Package:
    algorithm = _attribute(checksum, "type")
    text = None if checksum is None else checksum.text
    if algorithm not in CHECKSUMS or not text:
        raise MalformedArchive(
            f"the index has no SHA-256 or longer checksum of {path[:200]!a}, but {algorithm[:20]!a}"
        )
    return Package(checked_path(path), algorithm, text.strip().lower(), size)
