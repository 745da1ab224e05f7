"""The operating system's own log of what it measured, as systemd keeps it.

Only root may read it, so that it is opened before privileges drop. systemd holds a lock from before it
extends a PCR until the record is written: whoever reads under that lock finds the record of each extend that
a quote from before may cover.
"""

import base64
import fcntl
import logging
import os
import stat
import time
from pathlib import Path

from keylime.measured_boot.user_space_log import MAX_LOG_SIZE, whole_records

log = logging.getLogger(__name__)

OS_LOG = Path("/run/log/systemd/tpm2-measure.log")

_LOCK_WAIT_S = 3.0  # systemd holds it for one command of the TPM
_LOCK_RETRY_S = 0.02


class OsLog:
    """The log; on most machines there is none, because nothing after the boot loader is measured."""

    def __init__(self, path: Path, *, lock_wait_s: float = _LOCK_WAIT_S) -> None:
        self._path = path
        self._lock_wait_s = lock_wait_s
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None
        self._warned = False

    def open(self) -> bool:
        """Whether there is a log; warns of one that may not be read."""
        try:
            status = self._path.stat()
            if self._identity == (status.st_dev, status.st_ino):
                return True
            if not stat.S_ISREG(status.st_mode):
                raise PermissionError("it is no regular file")
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return self._descriptor is not None
        except OSError as error:
            if self._descriptor is None:
                self._warn(f"cannot be read ({error.strerror or error}): start the agent as root")
            return self._descriptor is not None
        self.close()
        opened = os.fstat(descriptor)
        self._descriptor, self._identity = descriptor, (opened.st_dev, opened.st_ino)
        return True

    def read_base64(self) -> str | None:
        """All whole records in base64, None when there are none.

        Of a log that is longer than any verifier reads, the first ones: those of the boot.
        """
        if not self.open() or self._descriptor is None:
            return None
        is_locked = self._lock(self._descriptor)
        try:
            content = os.pread(self._descriptor, MAX_LOG_SIZE + 1, 0)
            is_marked = bool(os.fstat(self._descriptor).st_mode & stat.S_ISVTX)
        finally:
            if is_locked:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        records = whole_records(content)
        if len(content) > MAX_LOG_SIZE:
            self._warn(f"is longer than {MAX_LOG_SIZE} bytes: its end is not sent")
        elif is_locked and is_marked:
            self._warn("lacks a record, says its mark: systemd died while it measured; a reboot mends that")
        return base64.b64encode(records).decode() if records else None

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._identity = None

    def _lock(self, descriptor: int) -> bool:
        """Whether nobody writes now; a writer that never ends is not waited for for ever."""
        until = time.monotonic() + self._lock_wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    return False
                time.sleep(_LOCK_RETRY_S)
            else:
                return True

    def _warn(self, what: str) -> None:
        """Once: what is wrong with the log stays so until the next boot."""
        if not self._warned:
            log.warning("log of measurements %s %s", self._path, what)
        self._warned = True
