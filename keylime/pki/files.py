"""Files of the service directories: atomic writes, and reads of what nobody else may change.

Every failure is a ConfigError that names the path, because only an operator can mend it.
"""

import contextlib
import os
import secrets
import stat
from pathlib import Path

from keylime.errors import ConfigError
from keylime.file_errors import reason_of
from keylime.safe_paths import Owners, require_safe_directory, require_safe_file

MAX_FILE_SIZE = 4 * 1024 * 1024  # bytes; certificates, keys and CRLs are far smaller

_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # non-blocking: a FIFO must not hang the start
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS = 0o007


def replace_keeping_access(path: Path, data: bytes, mode: int) -> None:
    """Replace `path`, which keeps owner, group and mode; a new one gets `mode`. Raises ConfigError.

    What root writes into a service's directory is the service's, who must be able to read it.
    """
    try:
        status = path.lstat() if path.is_file() and not path.is_symlink() else None
        place = status or path.parent.stat()
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {reason_of(error)}") from error
    kept = mode if status is None else stat.S_IMODE(status.st_mode)
    write_atomically(path, data, kept, owner=(place.st_uid, place.st_gid))


def write_atomically(path: Path, data: bytes, mode: int, *, owner: tuple[int, int] | None = None) -> None:
    """Replace `path` by a file holding `data` with exactly `mode`, whatever the umask. Raises ConfigError.

    Readers see the old file or the new one; a symbolic link at `path` is replaced, never followed. It is
    given to the user and group `owner` as far as that is allowed.
    """
    temporary = f".{path.name}.{secrets.token_hex(8)}"
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _write_and_rename(directory, temporary, path.name, data, mode, owner)
        finally:
            os.close(directory)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {reason_of(error)}") from error


def _write_and_rename(
    directory: int, temporary: str, name: str, data: bytes, mode: int, owner: tuple[int, int] | None
) -> None:
    descriptor = os.open(temporary, _CREATE_FLAGS, 0o600, dir_fd=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            _give(file.fileno(), owner)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)


def _give(descriptor: int, owner: tuple[int, int] | None) -> None:
    status = os.fstat(descriptor)
    if owner is None or owner == (status.st_uid, status.st_gid):
        return
    if os.geteuid() == 0:
        os.fchown(descriptor, *owner)
    else:
        with contextlib.suppress(PermissionError):  # a group that we are not in
            os.fchown(descriptor, -1, owner[1])


def read_file(path: Path, owners: Owners | None = None) -> bytes:
    """The content of a file an operator named; links are followed.

    Raises ConfigError, also when others than `owners` (by default those of a service) may change it.
    """
    return _read(path, _OPEN_FLAGS, forbidden_mode=0, owners=owners)


def read_service_file(path: Path) -> bytes:
    """The content of a file this software made; a symbolic link is refused. Raises ConfigError."""
    return _read(path, _OPEN_FLAGS | os.O_NOFOLLOW, forbidden_mode=0)


def read_private_key_file(path: Path) -> bytes:
    """The content of a private key file that nobody outside owner and group can touch. Raises ConfigError."""
    return _read(path, _OPEN_FLAGS, forbidden_mode=_OTHERS)


def _read(path: Path, flags: int, forbidden_mode: int, owners: Owners | None = None) -> bytes:
    try:
        descriptor = os.open(path, flags)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path} is not a regular file")
            mode = stat.S_IMODE(status.st_mode)
            if mode & forbidden_mode:
                raise ConfigError(f"{path} has mode {mode:04o}, open to all users; run `chmod 0600 {path}`")
            require_safe_file(path, owners)
            data = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {reason_of(error)}") from error
    if len(data) > MAX_FILE_SIZE:
        raise ConfigError(f"{path} is larger than {MAX_FILE_SIZE} bytes")
    return data


def ensure_private_directory(path: Path) -> None:
    """Make `path` a directory of mode 0700 if there is none.

    Raises ConfigError as `require_directory` does, and for a symbolic link: nothing is made through one.
    """
    if path.is_symlink():
        raise ConfigError(
            f"{path} is a symbolic link, and nothing is made through it; name the directory itself"
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"directory {path} cannot be created: {reason_of(error)}") from error
    require_directory(path)


def require_directory(path: Path) -> None:
    """Raises ConfigError unless `path` is a directory, or a link to one, that nobody else may change."""
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"directory {path} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{path} is not a directory")
    require_safe_directory(path)
