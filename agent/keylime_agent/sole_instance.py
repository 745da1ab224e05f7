"""One agent for a working directory: the second one ends before it has touched anything of the first."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keylime.errors import ConfigError


@contextmanager
def sole_agent(work_dir: Path) -> Iterator[None]:
    """Locks the working directory while the block runs. Raises ConfigError when another agent has it.

    The lock is on the directory itself: nothing is written for it, and nothing of it outlives the process.
    """
    try:
        descriptor = os.open(work_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            f"working directory {work_dir} cannot be opened: {error.strerror}; "
            "start the agent as root, or as the user whom the directory belongs to"
        ) from error
    try:
        _lock(descriptor, work_dir)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, work_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            raise ConfigError(
                f"another keylime_agent works in {work_dir}; nothing of it was touched. "
                "Stop it first (systemctl stop keylime_agent), or set KEYLIME_DIR to another directory"
            ) from error
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF):  # no locks on this file system
            raise ConfigError(f"working directory {work_dir} cannot be locked: {error.strerror}") from error
