"""What the machine has logged, as files: where the logs are, and reading them; when it booted.

Blocking: the caller reads in a thread. The logs are opened before privileges drop, because the kernel lets
only root open them, and read afterwards. What the IMA measurement list says is in `ima_list`.
"""

import base64
import logging
import os
import threading
from pathlib import Path

log = logging.getLogger(__name__)

IMA_LIST = Path("/sys/kernel/security/ima/ascii_runtime_measurements")
BOOT_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")

_CHUNK = 256 * 1024
_SMALL_CHUNK = 4096


class LogFile:
    """A log that stays readable after privileges dropped; a readable file that replaces it is noticed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None
        self._in_use = threading.Lock()  # the TPM's thread reads the IMA list as well

    def reopen(self) -> bool:
        """Whether the file is open now: tries the path, and keeps what was open when that fails."""
        try:
            status = self.path.stat()
            if self._identity == (status.st_dev, status.st_ino):
                return True
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return self._descriptor is not None
        opened = os.fstat(descriptor)
        with self._in_use:
            self._close()
            self._descriptor, self._identity = descriptor, (opened.st_dev, opened.st_ino)
        return True

    @property
    def identity(self) -> tuple[int, int] | None:
        """Equal as long as the same file is read."""
        return self._identity

    def read_from(self, offset: int, until: bytes | None = None) -> bytes:
        """Everything from `offset` to the end. Files of securityfs have no size: only reading tells.

        With `until` no more is read than what holds it, and some bytes.
        """
        chunks = []
        size = _CHUNK if until is None else _SMALL_CHUNK
        with self._in_use:
            if self._descriptor is None:
                return b""
            while chunk := os.pread(self._descriptor, size, offset):
                chunks.append(chunk)
                offset += len(chunk)
                if until is not None and until in chunk:
                    break
        return b"".join(chunks)

    def close(self) -> None:
        """Let go of the file."""
        with self._in_use:
            self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._identity = None


class BootLog:
    """The firmware's event log."""

    def __init__(self, path: Path) -> None:
        self._file = LogFile(path)

    def open(self) -> bool:
        """Whether there is a log; warns when there is none, since not all firmware keeps one."""
        if self._file.reopen():
            return True
        log.warning("boot event log %s cannot be read: quotes will not carry one", self._file.path)
        return False

    def read_base64(self) -> str | None:
        """The whole log in base64, None when there is none."""
        data = self.read()
        return None if data is None else base64.b64encode(data).decode()

    def read(self) -> bytes | None:
        """The whole log, None when there is none."""
        return self._file.read_from(0) if self._file.reopen() else None

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def boot_time(proc_stat: str) -> int:
    """Seconds since the epoch at which the kernel started, from the text of /proc/stat; 0 if it does not say.

    The kernel recomputes it when the clock is set, so it is read once and kept with the boot's id.
    """
    for line in proc_stat.splitlines():
        name, _, value = line.partition(" ")
        if name == "btime" and value.strip().isdigit():
            return int(value)
    return 0
