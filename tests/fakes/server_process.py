"""A registrar or verifier as the process that a service manager starts: environment, log, signals.

It is a fork of a process that has imported it, or the installed script where a fork would not be the
same: words come before the command, a library is loaded before others, the network is another one.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.fakes.forked_programs import ForkedProcess, Order, has_own_network, start
from tests.fakes.stopped import stop_still

LIMIT_S = 100.0  # a start costs a second and a half of CPU time


class ServerProcess:
    """`program` with its files in `work_dir`, on loopback ports that it chooses; killed at the end.

    It may be started again after it has ended; its log goes on.
    """

    def __init__(
        self,
        program: str,
        work_dir: Path,
        *arguments: str,
        name: str | None = None,
        prefix: Sequence[str] = (),
        **environ: str,
    ) -> None:
        """`name` tells processes in one directory apart; `prefix` are words before the command."""
        component = program.removeprefix("keylime_").upper()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KEYLIME_")}
        self.name = name or program
        self._environ = {
            **kept,
            "KEYLIME_DIR": str(work_dir),
            "KEYLIME_CA_PASSWORD": "a password",
            f"KEYLIME_{component}_PORT": "0",
            **environ,
        }
        if component == "REGISTRAR":
            self._environ.setdefault("KEYLIME_REGISTRAR_TLS_PORT", "0")
        self._order = Order(program, arguments, self._environ)
        self._prefix = prefix
        self.log = work_dir / f"{self.name}.log"
        self._log_began = 0
        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Starts the program; `ports` tells when it serves."""
        with self.log.open("ab") as log:
            self._log_began = log.tell()
            if self._prefix or "LD_PRELOAD" in self._environ or not has_own_network():
                script = str(Path(sys.executable).with_name(self._order.program))
                command = [*self._prefix, script, *self._order.arguments]
                self._process = subprocess.Popen(  # noqa: S603
                    command, env=self._environ, stdout=log, stderr=subprocess.STDOUT
                )
            else:
                self._process = start(self._order, stdout=log.fileno(), stderr=log.fileno())

    def kill(self) -> None:
        """For the end of a test, whatever has become of it; a worker that is stopped would stay."""
        if self._process is not None and self.is_running:
            for child in self.children:
                os.kill(child, signal.SIGKILL)
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """The process that a service manager knows, the last one that was started."""
        return self._started.pid

    @property
    def children(self) -> list[int]:
        """Its worker processes."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(child) for child in listed.split()]

    @property
    def is_running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def text(self) -> str:
        """All that it has said since the last start."""
        return self.log.read_bytes()[self._log_began :].decode(errors="replace")

    def line(self, pattern: str, *, count: int = 1) -> re.Match[str]:
        """Match number `count` of `pattern` in what it says."""
        deadline = time.monotonic() + LIMIT_S
        while len(found := list(re.finditer(pattern, self.text))) < count:
            if not self.is_running and not re.search(pattern, self.text):
                raise AssertionError(f"ended without {pattern!r}:\n{self.text}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {pattern!r} in:\n{self.text}")
            time.sleep(0.02)
        return found[count - 1]

    def ports(self) -> tuple[int, ...]:
        """Where it listens, as soon as it does."""
        found = self.line(r"Listening on 127\.0\.0\.1:([0-9/]+) ")[1]
        return tuple(int(port) for port in found.split("/"))

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; returns from SIGSTOP when the process stands still."""
        if number == signal.SIGSTOP:
            stop_still(self._started.pid)
        else:
            self._started.send_signal(number)

    def hang_up(self) -> None:
        """Sends SIGHUP."""
        self.send(signal.SIGHUP)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Exit status after the signal, and the seconds that it took for itself, however busy the machine."""
        if isinstance(self._started, ForkedProcess):
            return self._started.stop(number)
        began = time.monotonic()
        self.send(number)
        return self.ended(), time.monotonic() - began

    def ended(self) -> int:
        """Exit status, once it has ended."""
        return self._started.wait(LIMIT_S)

    @property
    def _started(self) -> subprocess.Popen[bytes] | ForkedProcess:
        if self._process is None:
            raise RuntimeError("not started")
        return self._process
