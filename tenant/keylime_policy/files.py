"""Files that options name: read whole, written plainly; errors name option, file, line and remedy."""

import os
import stat
import sys
from pathlib import Path

from keylime.errors import ConfigError
from keylime_policy.sources import SourceFile

STDOUT = ("-", "/dev/stdout")
MAX_INPUT = 1 << 30  # bytes: an IMA list of a million files has 150 MiB
_PIECE = 1 << 20  # a read of the most that may come would reserve as much


def read_input(option: str, path: str | Path) -> bytes:
    """The bytes of a file that `option` names. Raises ConfigError."""
    pieces, size = [], 0
    try:
        with open(path, "rb") as file:
            while piece := file.read(_PIECE):
                size += len(piece)
                if size > MAX_INPUT:
                    raise ConfigError(f"{option} {path}: larger than {MAX_INPUT >> 20} MiB")
                pieces.append(piece)
    except OSError as error:
        raise unusable(option, path, error) from error
    return b"".join(pieces)


def read_source(option: str, path: str | Path) -> SourceFile:
    """The file that `option` names, with both. Raises ConfigError."""
    return SourceFile(option, str(path), read_input(option, path))


def read_text(option: str, path: str | Path) -> str:
    """The text of a UTF-8 file that `option` names. Raises ConfigError."""
    return read_source(option, path).text


def write_output(option: str, path: str | None, text: str) -> None:
    """Writes a result to `path`; None, "-" and /dev/stdout are stdout. Raises ConfigError."""
    if path is None or path in STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise unusable(option, path, error, use="write") from error


def write_new(option: str, path: str, content: bytes, *, mode: int) -> None:
    """Writes a file that must not be there yet, with permissions `mode`. Raises ConfigError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise ConfigError(
            f"{option} {path}: exists already and is not overwritten; name another file"
        ) from error
    except OSError as error:
        raise unusable(option, path, error, use="write") from error
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, stat.S_IMODE(mode))  # whatever the umask
        file.write(content)


def unusable(option: str, path: str | Path, error: OSError, *, use: str = "read") -> ConfigError:
    """The error for a file that the system does not let us use."""
    remedy = f"; run as root, or let this user {use} it" if isinstance(error, PermissionError) else ""
    return ConfigError(f"{option} {path}: {error.strerror or error}{remedy}")
