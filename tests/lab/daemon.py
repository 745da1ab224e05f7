"""A daemon under observation: started on a node, its log in a file, ended by its own process id."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.lab.network import Node

PROGRAMS = Path(sys.executable).parent


def program(name: str) -> Path:
    """The installed console script `name`."""
    return PROGRAMS / name


class Daemon:
    """One process. The log grows over restarts; `mark` and `wait_for` look at what came after a moment."""

    def __init__(
        self, node: Node, name: str, environment: dict[str, str], *, programs: Path = PROGRAMS
    ) -> None:
        self.node = node
        self.name = name
        self.environment = environment
        self.program = programs / name
        self.log = node.disk / "log" / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id while it runs."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> "Daemon":
        """Starts the process; its output goes to the end of the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                self.node.command(self.program),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.node.disk,
                env={**self.node.variables(), **self.environment},
                start_new_session=True,
            )
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM, limit_s: float = 10) -> int:
        """Ends the process with a signal and returns its exit status; killed when that takes too long."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return -signal.SIGKILL

    def stop_all(self, limit_s: float = 20) -> None:
        """Ends the process and its children, for programs whose parent alone does not listen."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self.stop(limit_s=limit_s)

    def wait(self, limit_s: float) -> int:
        """The exit status of a process that is expected to end by itself."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        status = self._process.wait(limit_s)
        self._process = None
        return status

    def mark(self) -> int:
        """A place in the log: now."""
        return self.log.stat().st_size if self.log.exists() else 0

    def text(self, since: int = 0) -> str:
        """The log from a place on."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(since)
            return log.read().decode(errors="replace")

    def wait_for(self, pattern: str, *, since: int = 0, limit_s: float = 30) -> re.Match[str]:
        """The first match of `pattern` in the log. Raises TimeoutError, which shows the end of the log."""
        deadline = time.monotonic() + limit_s
        while True:
            match = re.search(pattern, self.text(since))
            if match is not None:
                return match
            if time.monotonic() > deadline or not self.is_running:
                state = "is running" if self.is_running else "has ended"
                tail = "\n".join(self.text(since).splitlines()[-15:])
                raise TimeoutError(
                    f"{self.name} on {self.node.name} ({state}) never said {pattern!r}:\n{tail}"
                )
            time.sleep(0.02)
