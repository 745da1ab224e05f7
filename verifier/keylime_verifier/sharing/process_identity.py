"""Names processes so that others on the same machine can tell for certain that one has ended."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process: `place` is a boot, a PID namespace and a user, `born` the start in clock ticks."""

    place: str
    pid: int
    born: int

    @classmethod
    def own(cls) -> Self | None:
        """This process; None where the kernel does not tell."""
        try:
            place, pid = _place(), os.getpid()
            return cls(place, pid, _born(pid))
        except (OSError, ValueError, IndexError):
            return None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The identity in `text`, None when there is none."""
        place, pid, born, *_ = [*text.split(" "), "", ""]
        return cls(place, int(pid), int(born)) if pid.isdigit() and born.isdigit() else None

    def __str__(self) -> str:
        return f"{self.place} {self.pid} {self.born}"

    def has_ended(self) -> bool:
        """True only when this is certain: it ran in this boot of this machine, and is not there any more."""
        try:
            if _place() != self.place:
                return False
        except OSError:
            return False
        try:
            return _born(self.pid) != self.born
        except (FileNotFoundError, ProcessLookupError):
            return True
        except (OSError, ValueError, IndexError):
            return False


def _place() -> str:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    # Processes of other users may be hidden, which is not to be taken for their end.
    return f"{boot}/{os.readlink(_PROC / 'self/ns/pid')}/{os.getuid()}"


def _born(pid: int) -> int:
    """When a process started. A zombie has ended: -1."""
    # The name in parentheses may contain anything.
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return -1 if fields[0] in "ZX" else int(fields[19])
