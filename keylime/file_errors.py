"""Files that the system does not let a program use, told in one line at its end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from keylime.errors import ConfigError

_REMEDIES: dict[type[OSError], str] = {
    PermissionError: "start the program as root or as the file's owner, or change its owner or mode",
    FileNotFoundError: "is a part of the path missing?",
    IsADirectoryError: "a file is expected there",
    NotADirectoryError: "a directory is expected where a file is",
}


def reason_of(error: OSError) -> str:
    """What the system says of a file that was named already, and what to do about it."""
    said = error.strerror or str(error)
    remedy = _REMEDIES.get(type(error)) if isinstance(error, PermissionError) else None
    return said if remedy is None else f"{said}; {remedy}"


@contextmanager
def file_errors_explained() -> Iterator[None]:
    """Makes an error of the system about a file a ConfigError that names it; other errors are defects."""
    try:
        yield
    except OSError as error:
        if not isinstance(error.filename, str | bytes) or error.errno is None:
            raise
        name = os.fsdecode(error.filename)
        remedy = _REMEDIES.get(type(error))
        reason = f"{name}: {os.strerror(error.errno)}"
        raise ConfigError(reason if remedy is None else f"{reason}; {remedy}") from error
