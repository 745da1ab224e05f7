"""Files that options name: read whole, written plainly, with errors that name the option and the remedy."""

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keylime.errors import ConfigError, KeylimeError

_STDOUT = ("-", "/dev/stdout")
MAX_INPUT = 1 << 30  # bytes: an IMA list of a million files has 150 MiB


def read_input(option: str, path: str | Path) -> bytes:
    """The bytes of a file that `option` names. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_INPUT + 1)
    except OSError as error:
        raise unusable(option, path, error) from error
    if len(content) > MAX_INPUT:
        raise ConfigError(f"{option} {path}: larger than {MAX_INPUT >> 20} MiB")
    return content


def read_text(option: str, path: str | Path) -> str:
    """The text of a UTF-8 file that `option` names. Raises ConfigError."""
    try:
        return read_input(option, path).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{option} {path}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def write_output(option: str, path: str | None, text: str) -> None:
    """Writes a result to `path`; None, "-" and /dev/stdout are stdout. Raises ConfigError."""
    if path is None or path in _STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise unusable(option, path, error) from error


def write_new(option: str, path: str, content: bytes, *, mode: int) -> None:
    """Writes a file that must not be there yet, with permissions `mode`. Raises ConfigError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise ConfigError(
            f"{option} {path}: exists already and is not overwritten; name another file"
        ) from error
    except OSError as error:
        raise unusable(option, path, error) from error
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, stat.S_IMODE(mode))  # whatever the umask
        file.write(content)


def unusable(option: str, path: str | Path, error: OSError) -> ConfigError:
    """The error for a file that the system does not let us use."""
    remedy = "; run as root, or let this user read it" if isinstance(error, PermissionError) else ""
    return ConfigError(f"{option} {path}: {error.strerror or error}{remedy}")


@contextmanager
def blaming(option: str, path: str | Path) -> Iterator[None]:
    """Puts the option and file that were at fault before the reason of a KeylimeError."""
    try:
        yield
    except KeylimeError as error:
        raise ConfigError(f"{option} {path}: {error}") from error
