"""An archive's files written below a directory; what is refused leaves no trace."""

import contextlib
import os
from pathlib import Path

from keylime.payload.archive import DEFAULT_LIMITS, ArchiveLimits, PayloadRefused, read_archive


def extract_archive(data: bytes, directory: Path, limits: ArchiveLimits = DEFAULT_LIMITS) -> tuple[str, ...]:
    """Writes the files of the zip `data` below the existing `directory`, modes 0600 and 0700; their paths.

    Nothing is written unless all of the archive is fit. No symbolic link is followed and no file replaced.
    Raises PayloadRefused, also when the disk is full; files written until then stay for the caller to remove.
    """
    files = read_archive(data, limits)
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for path, content in files:
                _write_below(root, path, content)
        finally:
            os.close(root)
    except OSError as error:
        raise PayloadRefused(f"the archive cannot be written to {directory}: {error.strerror}") from error
    return tuple(path for path, _ in files)


def _write_below(root: int, path: str, content: bytes) -> None:
    *parents, name = path.split("/")
    directory = os.dup(root)
    try:
        for parent in parents:
            directory = _enter(directory, parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o600, dir_fd=directory), "wb") as file:
            file.write(content)
    finally:
        os.close(directory)


def _enter(directory: int, name: str) -> int:
    """The directory `name` inside `directory`, made if missing. `directory` is closed on success."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=directory)
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    os.close(directory)
    return inner
