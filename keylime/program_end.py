"""The streams of a program from its start to its end, whoever has closed them, or does."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from keylime.interruption import end_interrupted

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


@contextmanager
def endings_told(program: str) -> Iterator[None]:
    """All that a program does belongs in here, its imports first.

    A reader of its output that has gone ends it with 1 and silently, a full disk with 1 and a line. Output
    that was closed before the start is written to nobody. What the locale's encoding has no character for is
    written with backslashes.
    """
    _open_missing_streams()
    _write_all_characters()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        end_interrupted(program)
    except BrokenPipeError:
        _give_up_output()
        sys.exit(1)
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        _give_up_output()
        sys.exit(f"{program}: error: what it writes cannot be kept: {os.strerror(error.errno)}")


def _open_missing_streams() -> None:
    """Nothing that is opened later may become standard output."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for the life of the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _write_all_characters() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower().replace("-", "") != "utf8":
        sys.stdout.reconfigure(errors="backslashreplace")


def _give_up_output() -> None:
    """What is still to be written at the end of the process goes nowhere, without an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
