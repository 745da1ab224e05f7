"""Files in tar archives, such as those of Debian packages and of layers of container images.

Contents are hashed while they stream by; nothing is unpacked to a disk.
"""

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, cast

from keylime_policy.archive import Hash
from keylime_policy.compression import MalformedArchive

MAX_MEMBERS = 1_000_000
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class TarFile:
    """A member: its name without a slash in front; no digest where it is no regular file."""

    name: bytes
    digest: str | None


class _Stream:
    """A file object for `tarfile`, of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = bytearray()

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._buffer += piece
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data


def tar_files(pieces: Iterator[bytes], new_hash: Callable[[], Hash]) -> Iterator[TarFile]:
    """Every member of a tar archive, in order; hard links have the digest of what they link to.

    Raises MalformedArchive.
    """
    digests: dict[bytes, str] = {}
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _Stream(pieces)), mode="r|") as archive:
            for count, member in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise MalformedArchive(f"an archive has more than {MAX_MEMBERS} members")
                name = _plain(member.name)
                if member.isreg():
                    digests[name] = _digest(archive, member, new_hash)
                    yield TarFile(name, digests[name])
                elif member.islnk():
                    target = digests.get(_plain(member.linkname))
                    if target is not None:
                        digests[name] = target
                    yield TarFile(name, target)
                else:
                    yield TarFile(name, None)
                archive.members.clear()  # type: ignore[attr-defined]  # what has been read is not needed again
    except (tarfile.TarError, EOFError, OSError, OverflowError, ValueError) as error:
        raise MalformedArchive(f"no tar archive, or a damaged one: {error}") from error


def _digest(archive: tarfile.TarFile, member: tarfile.TarInfo, new_hash: Callable[[], Hash]) -> str:
    content = archive.extractfile(member)
    digest = new_hash()
    size = 0
    while content is not None and (piece := content.read(_PIECE)):
        digest.update(piece)
        size += len(piece)
    if size != member.size:
        raise MalformedArchive(f"the archive ends within {member.name[:80]!a}")
    return digest.hexdigest()


def _plain(name: str) -> bytes:
    plain = os.fsencode(name)
    while plain.startswith((b"./", b"/")):
        plain = plain.removeprefix(b".").lstrip(b"/")
    return plain
