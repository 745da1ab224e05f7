"""A daemon as the kernel sees it: CPU time, memory and log, read from outside while it runs."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROGRAMS = Path(sys.executable).parent
_START_LIMIT_S = 180.0


def family_of(pid: int) -> list[int]:
    """A process and its worker processes."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def cpu_s(pid: int) -> float:
    """User and system seconds that all threads of a process have used; the kernel counts in 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def exact_cpu_s(pid: int) -> float:
    """The same of the threads that are alive, in nanoseconds: for a process that does little."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def wakes(pid: int) -> int:
    """How often the threads of a process that are alive have waited for something."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    lines = [line for thread in threads for line in (thread / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))


def memory_kb(pid: int) -> int:
    """The resident memory of a process, what it shares with others counted in part (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} has no memory")


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def free_port() -> int:
    """A loopback port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Daemon:
    """One console script of this installation, in a process of its own, with only the given options."""

    def __init__(self, program: str, log: Path, options: Mapping[str, str]) -> None:
        """`options` are environment variables."""
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [str(_PROGRAMS / program)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], **options},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu_s(self) -> float:
        """CPU seconds since it was started, those of its workers included."""
        return sum(map(cpu_s, family_of(self.pid)))

    @property
    def exact_cpu_s(self) -> float:
        """The same of threads that are alive, exactly."""
        return sum(map(exact_cpu_s, family_of(self.pid)))

    @property
    def wakes(self) -> int:
        """How often its threads have waited for something, those of its workers included."""
        return sum(map(wakes, family_of(self.pid)))

    @property
    def memory_kb(self) -> int:
        """Resident memory now, that of its workers included."""
        return sum(map(memory_kb, family_of(self.pid)))

    @property
    def descriptors(self) -> int:
        """Files and sockets that are open now, those of its workers included."""
        return sum(map(descriptors, family_of(self.pid)))

    def wait_for(self, text: str) -> None:
        """Returns when `text` stands in the log. Raises RuntimeError, which shows the log's end."""
        deadline = time.monotonic() + _START_LIMIT_S
        while text not in (log := self._log.read_text(errors="replace")):
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.splitlines()[-10:])
                raise RuntimeError(f"{self._process.args!r} did not say {text!r}:\n{tail}")
            time.sleep(0.005)
