"""What the machine has logged: the IMA measurement list, and the boot event log.

Blocking: the caller reads in a thread. The logs are opened before privileges drop, because the kernel lets
only root open them, and read afterwards.
"""

import base64
import logging
import os
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

IMA_LIST = Path("/sys/kernel/security/ima/ascii_runtime_measurements")
BOOT_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")

_CHUNK = 256 * 1024
_MAX_BOOKMARKS = 128


@dataclass(frozen=True, slots=True)
class ListExcerpt:
    """Complete lines of the IMA list; `entry` is the index of the first one."""

    text: str
    entry: int


class LogFile:
    """A log that stays readable after privileges dropped; a readable file that replaces it is noticed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None

    def open(self) -> bool:
        """Whether the file is open now: tries the path, and keeps what was open when that fails."""
        try:
            status = self.path.stat()
            if self._identity == (status.st_dev, status.st_ino):
                return True
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return self._descriptor is not None
        self.close()
        opened = os.fstat(descriptor)
        self._descriptor, self._identity = descriptor, (opened.st_dev, opened.st_ino)
        return True

    @property
    def identity(self) -> tuple[int, int] | None:
        """Equal as long as the same file is read."""
        return self._identity

    def read_from(self, offset: int) -> bytes:
        """Everything from `offset` to the end. Files of securityfs have no size: only reading tells."""
        if self._descriptor is None:
            return b""
        chunks = []
        while chunk := os.pread(self._descriptor, _CHUNK, offset):
            chunks.append(chunk)
            offset += len(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._identity = None


class ImaList:
    """The IMA list by entry numbers. Where entries begin is remembered, so that a poll reads what is new."""

    def __init__(self, path: Path) -> None:
        self._file = LogFile(path)
        self._identity: tuple[int, int] | None = None
        self._bookmarks: dict[int, int] = {0: 0}  # entry -> offset, in the order they were last used

    def open(self) -> bool:
        """Whether there is a list; warns when there is none, since agents without IMA are ordinary."""
        if self._file.open():
            return True
        log.warning("IMA measurement list %s cannot be read: quotes will not carry one", self._file.path)
        return False

    def read_from(self, entry: int) -> ListExcerpt | None:
        """The lines from `entry` on, the whole list when it has fewer entries, None when there is no list.

        A line that is still being written is left out: it belongs to the next poll.
        """
        if not self._file.open():
            return None
        if self._file.identity != self._identity:
            self._forget()
        known = max(number for number in self._bookmarks if number <= entry)
        text = self._lines_at(known)
        if text is None:  # the file was cut or written anew
            self._forget()
            known, text = 0, self._lines_at(0) or b""
        skipped = _skip_lines(text, entry - known)
        if skipped is None:
            entry, known, skipped = 0, 0, 0
            text = self._lines_at(0) or b""
        self._remember(entry, self._bookmarks[known] + skipped)
        self._remember(known + text.count(b"\n"), self._bookmarks[known] + len(text))
        # Names are UTF-8 in practice. Others cannot travel as JSON text; replaced, they fail the replay.
        return ListExcerpt(text[skipped:].decode("utf-8", "replace"), entry)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _lines_at(self, known: int) -> bytes | None:
        """The complete lines from the bookmark of entry `known`, or None if no line begins there."""
        offset = self._bookmarks[known]
        if offset == 0:
            text = self._file.read_from(0)
        else:
            before = self._file.read_from(offset - 1)
            if not before.startswith(b"\n"):
                return None
            text = before[1:]
        return text[: text.rfind(b"\n") + 1]

    def _remember(self, entry: int, offset: int) -> None:
        self._bookmarks.pop(entry, None)
        self._bookmarks[entry] = offset
        while len(self._bookmarks) > _MAX_BOOKMARKS:
            del self._bookmarks[next(number for number in self._bookmarks if number)]

    def _forget(self) -> None:
        self._bookmarks = {0: 0}
        self._identity = self._file.identity


class BootLog:
    """The firmware's event log."""

    def __init__(self, path: Path) -> None:
        self._file = LogFile(path)

    def open(self) -> bool:
        """Whether there is a log; warns when there is none, since not all firmware keeps one."""
        if self._file.open():
            return True
        log.warning("boot event log %s cannot be read: quotes will not carry one", self._file.path)
        return False

    def read_base64(self) -> str | None:
        """The whole log in base64, None when there is none."""
        return base64.b64encode(self._file.read_from(0)).decode() if self._file.open() else None

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _skip_lines(text: bytes, count: int) -> int | None:
    """The offset after `count` lines of `text`, None if there are fewer."""
    offset = 0
    for _ in range(count):
        offset = text.find(b"\n", offset) + 1
        if offset == 0:
            return None
    return offset


def boot_time(proc_stat: str) -> int:
    """Seconds since the epoch at which the kernel started, from the text of /proc/stat; 0 if it does not say.

    The kernel recomputes it when the clock is set, so it is read once and kept with the boot's id.
    """
    for line in proc_stat.splitlines():
        name, _, value = line.partition(" ")
        if name == "btime" and value.strip().isdigit():
            return int(value)
    return 0
