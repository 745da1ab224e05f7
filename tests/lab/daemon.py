"""A daemon under observation: started on a node, its log in a file, ended by its own process id."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.fakes import forked_programs
from tests.fakes.forked_programs import ForkedProcess, Order
from tests.lab.network import Node

PROGRAMS = Path(sys.executable).parent
_PATIENCE_S = 100.0


def program(name: str) -> Path:
    """The installed console script `name`."""
    return PROGRAMS / name


def _is_forked(node: Node, path: Path) -> bool:
    return node.forks and path.parent == PROGRAMS


def run_program(
    node: Node, path: Path, *arguments: str | Path, environ: Mapping[str, str], limit_s: float
) -> subprocess.CompletedProcess[str]:
    """A program's run on a node, from its start to its end; `environ` is added to the node's own."""
    environment = {**node.variables(), **environ}
    if _is_forked(node, path):
        order = Order(path.name, tuple(map(str, arguments)), environment, str(node.disk))
        return forked_programs.run(order, limit_s=limit_s)
    return subprocess.run(  # noqa: S603
        node.command(path, *arguments),
        env=environment,
        cwd=node.disk,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


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
        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None

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
        environment = {**self.node.variables(), **self.environment}
        with self.log.open("ab") as log:
            if _is_forked(self.node, self.program):
                order = Order(self.name, (), environment, str(self.node.disk), is_leader=True)
                self._process = forked_programs.start(order, stdout=log.fileno(), stderr=log.fileno())
            else:
                self._process = subprocess.Popen(  # noqa: S603
                    self.node.command(self.program),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.node.disk,
                    env=environment,
                    start_new_session=True,
                )
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM, limit_s: float = 10) -> int:
        """Ends the process with a signal and returns its exit status; killed when that takes too long.

        `limit_s` is what a fork may take for itself, however busy the machine is.
        """
        if self._process is None:
            return 0
        process, self._process = self._process, None
        try:
            if isinstance(process, ForkedProcess):
                status, took_s = process.stop(number)
                return status if took_s <= limit_s else -signal.SIGKILL
            process.send_signal(number)
            return process.wait(_PATIENCE_S)
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

    def wait_for(self, pattern: str, *, since: int = 0, limit_s: float = _PATIENCE_S) -> re.Match[str]:
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
