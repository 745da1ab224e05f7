"""A process as the kernel sees it, found among the children of another one."""

import os
import re
import resource
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ChildProcess:
    """One process; what is asked about one that has ended raises FileNotFoundError."""

    pid: int

    @property
    def command(self) -> str:
        """Its command line, blanks between the words."""
        return self._read("cmdline").replace("\0", " ").strip()

    @property
    def environment(self) -> dict[str, str]:
        """What it was started with."""
        pairs = (entry.partition("=") for entry in self._read("environ").split("\0") if entry)
        return {name: value for name, _, value in pairs}

    @property
    def opened(self) -> list[str]:
        """What its file descriptors stand for."""
        return [os.readlink(entry) for entry in Path(f"/proc/{self.pid}/fd").iterdir()]

    @property
    def threads(self) -> int:
        """How many it has."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    @property
    def is_there(self) -> bool:
        """Whether it has not ended; one that nobody has waited for yet has."""
        try:
            return not re.search(r"^State:\s+[ZX]", self._read("status"), re.MULTILINE)
        except (FileNotFoundError, ProcessLookupError):
            return False

    @property
    def cpu_s(self) -> float:
        """User and system seconds that it has used."""
        fields = self._read("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def niceness(self) -> int:
        """How far it stands back behind others."""
        return os.getpriority(os.PRIO_PROCESS, self.pid)

    def limit(self, kind: int) -> int:
        """A soft limit of `resource`."""
        return resource.prlimit(self.pid, kind)[0]

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        os.kill(self.pid, number)

    def _read(self, name: str) -> str:
        return Path(f"/proc/{self.pid}/{name}").read_text()


def children_of(parent: int, word: str) -> list[ChildProcess]:
    """The children of a process, or of its workers, that are there and have `word` in their command lines."""
    found: list[ChildProcess] = []
    try:
        pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except FileNotFoundError:
        return found
    for child in map(ChildProcess, map(int, pids)):
        try:
            if child.is_there and word in child.command:
                found.append(child)
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += children_of(child.pid, word)
    return found
