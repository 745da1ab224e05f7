"""Files of the service directories: atomic writes, reads that refuse links, the mode a private key must have.

Every failure is a ConfigError that names the path, because only an operator can mend it.
"""

import os
import secrets
import stat
from pathlib import Path

from keylime.errors import ConfigError

MAX_FILE_SIZE = 4 * 1024 * 1024  # bytes; certificates, keys and CRLs are far smaller

_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # non-blocking: a FIFO must not hang the start
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS = 0o007


def write_atomically(path: Path, data: bytes, mode: int) -> None:
    """Replace `path` by a file holding `data` with exactly `mode`, whatever the umask. Raises ConfigError.

    Readers see the old file or the new one; a symbolic link at `path` is replaced, never followed.
    """
    temporary = f".{path.name}.{secrets.token_hex(8)}"
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _write_and_rename(directory, temporary, path.name, data, mode)
        finally:
            os.close(directory)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _write_and_rename(directory: int, temporary: str, name: str, data: bytes, mode: int) -> None:
    descriptor = os.open(temporary, _CREATE_FLAGS, 0o600, dir_fd=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)


def read_file(path: Path) -> bytes:
    """The content of a file an operator named; links are followed. Raises ConfigError."""
    return _read(path, _OPEN_FLAGS, forbidden_mode=0)


def read_service_file(path: Path) -> bytes:
    """The content of a file this software made; a symbolic link is refused. Raises ConfigError."""
    return _read(path, _OPEN_FLAGS | os.O_NOFOLLOW, forbidden_mode=0)


def read_private_key_file(path: Path) -> bytes:
    """The content of a private key file that nobody outside owner and group can touch. Raises ConfigError."""
    return _read(path, _OPEN_FLAGS, forbidden_mode=_OTHERS)


def _read(path: Path, flags: int, forbidden_mode: int) -> bytes:
    try:
        descriptor = os.open(path, flags)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path} is not a regular file")
            mode = stat.S_IMODE(status.st_mode)
            if mode & forbidden_mode:
                raise ConfigError(f"{path} has mode {mode:04o}, open to all users; run `chmod 0600 {path}`")
            data = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_SIZE:
        raise ConfigError(f"{path} is larger than {MAX_FILE_SIZE} bytes")
    return data


def ensure_private_directory(path: Path) -> None:
    """Make `path` a directory of mode 0700 if there is none. Raises ConfigError, also for a symbolic link."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"directory {path} cannot be created: {error.strerror}") from error
    require_directory(path)


def require_directory(path: Path) -> None:
    """Raises ConfigError unless `path` itself, not the target of a link, is a directory."""
    try:
        status = path.lstat()
    except OSError as error:
        raise ConfigError(f"directory {path} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{path} is not a directory (symbolic links are not followed here)")
