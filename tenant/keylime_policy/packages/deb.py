"""Debian packages and the indices of their repositories (deb(5), and the repository format of Debian's wiki).

Pure: parsers of bytes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from keylime_policy.compression import ByteReader, MalformedArchive, unpacked
from keylime_policy.packages.package import Package, checked_path

_MAGIC = b"!<arch>\n"
_MEMBER = re.compile(rb"(.{16})[ 0-9]{12}[ 0-9]{6}[ 0-9]{6}[ 0-7]{8}([0-9]{1,10}) *`\n", re.DOTALL)
_MEMBER_SIZE = 60
_LISTED = re.compile(r" ([0-9a-f]{64}) +([0-9]+) +(\S+)")
_SUFFIXES = ("xz", "zst", "gz", "bz2", "lz4")


def data_archive(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """A package's data archive, a tar archive without its compression. Raises MalformedArchive."""
    reader = ByteReader(pieces)
    if reader.take(len(_MAGIC), "the beginning of a package") != _MAGIC:
        raise MalformedArchive("no Debian package: it does not begin like an ar archive")
    while True:
        head = reader.take(_MEMBER_SIZE, "a header, before data.tar")
        match = _MEMBER.fullmatch(head)
        if match is None:
            raise MalformedArchive("a header of the ar archive is damaged")
        name, size = match[1].rstrip(b" ").rstrip(b"/"), int(match[2])
        content = reader.pieces(size, f"the member {name.decode('latin-1')!a}")
        if name.startswith(b"data.tar"):
            yield from unpacked(content)
            return
        for _ in content:
            pass
        reader.take(size % 2, "padding")


@dataclass(frozen=True, slots=True)
class Release:
    """What a Release file says: checked sizes and SHA-256 by path, and until when."""

    files: Mapping[str, tuple[str, int]]
    valid_until: str | None
    architectures: tuple[str, ...]
    components: tuple[str, ...]

    def indices(self, components: Sequence[str], architectures: Sequence[str]) -> list[str]:
        """The paths of the indices of these components, or of all that it has for the architectures.

        Raises MalformedArchive if there is none, or one that was asked for by name is not listed.
        """
        found = []
        for component in components or self.components or ("main",):
            for architecture in architectures:
                # Suites of security call their components updates/main, and the directories main.
                places = (component, component.rpartition("/")[2])
                paths = [self.index(f"{place}/binary-{architecture}") for place in places]
                path = paths[0] or paths[1]
                if path is not None:
                    found.append(path)
                elif components:
                    raise self._unlisted(f"{component}/binary-{architecture}")
        if not found:
            raise self._unlisted(f"the architecture {' '.join(architectures)}")
        return list(dict.fromkeys(found))

    def top_index(self) -> str:
        """The path of the only index, beside the Release file. Raises MalformedArchive."""
        path = self.index("")
        if path is None:
            raise self._unlisted("its own directory")
        return path

    def _unlisted(self, what: str) -> MalformedArchive:
        return MalformedArchive(
            f"lists no index of packages for {what}; components: {' '.join(self.components)}; "
            f"architectures: {' '.join(self.architectures)}"
        )

    def index(self, directory: str) -> str | None:
        """The path of the index of packages below `directory` in the best form that is listed."""
        prefix = f"{directory}/" if directory else ""
        names = [f"{prefix}Packages.{suffix}" for suffix in _SUFFIXES] + [f"{prefix}Packages"]
        return next((name for name in names if name in self.files), None)


def parse_release(text: str) -> Release:
    """A Release file. Raises MalformedArchive."""
    fields = next(stanzas(text.splitlines()), {})
    files = {}
    for line in fields.get("SHA256", "").split("\n"):
        match = _LISTED.fullmatch(f" {line.strip()}")
        if match is not None:
            files[match[3]] = (match[1], int(match[2]))
    if not files:
        raise MalformedArchive("lists no file with its SHA-256: it is no Release file, or a very old one")
    return Release(
        files,
        fields.get("Valid-Until"),
        tuple(fields.get("Architectures", "").split()),
        tuple(fields.get("Components", "").split()),
    )


def parse_packages(lines: Iterator[str]) -> Iterator[Package]:
    """The packages that an index lists. Raises MalformedArchive."""
    for fields in stanzas(lines):
        path, checksum, size = fields.get("Filename"), fields.get("SHA256"), fields.get("Size", "")
        if path is None:
            continue
        if checksum is None or not size.isascii() or not size.isdigit():
            raise MalformedArchive(f"the index lists {path[:200]!a} without SHA256 and Size")
        yield Package(checked_path(path), "sha256", checksum, int(size))


def stanzas(lines: Iterator[str] | list[str]) -> Iterator[dict[str, str]]:
    """The paragraphs of a control file (deb822(5)), by field; lines that continue one are joined to it."""
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        line = line.rstrip("\r\n")
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0] in " \t":
            if name:
                fields[name] += "\n" + line[1:]
        elif not line.startswith("#"):
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    if fields:
        yield fields
