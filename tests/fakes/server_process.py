"""A registrar or verifier as the process that a service manager starts: environment, log, signals."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

LIMIT_S = 30.0


class ServerProcess:
    """`program` with its files in `work_dir`, on loopback ports that it chooses; killed at the end."""

    def __init__(self, program: str, work_dir: Path, *arguments: str, **environ: str) -> None:
        component = program.removeprefix("keylime_").upper()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KEYLIME_")}
        self._environ = {
            **kept,
            "KEYLIME_DIR": str(work_dir),
            "KEYLIME_CA_PASSWORD": "a password",
            f"KEYLIME_{component}_PORT": "0",
            **environ,
        }
        if component == "REGISTRAR":
            self._environ.setdefault("KEYLIME_REGISTRAR_TLS_PORT", "0")
        self._command = [str(Path(sys.executable).with_name(program)), *arguments]
        self._log = work_dir / f"{program}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                self._command, env=self._environ, stdout=log, stderr=subprocess.STDOUT
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running.poll() is None:
            self._running.kill()
        self._running.wait()

    @property
    def pid(self) -> int:
        """The process that a service manager knows."""
        return self._running.pid

    @property
    def text(self) -> str:
        """All that it has said."""
        return self._log.read_text()

    def line(self, pattern: str, *, count: int = 1) -> re.Match[str]:
        """Match number `count` of `pattern` in what it says."""
        deadline = time.monotonic() + LIMIT_S
        while len(found := list(re.finditer(pattern, self.text))) < count:
            if self._running.poll() is not None and not re.search(pattern, self.text):
                raise AssertionError(f"ended without {pattern!r}:\n{self.text}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {pattern!r} in:\n{self.text}")
            time.sleep(0.02)
        return found[count - 1]

    def ports(self) -> tuple[int, ...]:
        """Where it listens, as soon as it does."""
        found = self.line(r"Listening on 127\.0\.0\.1:([0-9/]+) ")[1]
        return tuple(int(port) for port in found.split("/"))

    def hang_up(self) -> None:
        """Sends SIGHUP."""
        self._running.send_signal(signal.SIGHUP)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Exit status after the signal, and how many seconds it took."""
        began = time.monotonic()
        self._running.send_signal(number)
        return self.ended(), time.monotonic() - began

    def ended(self) -> int:
        """Exit status, once it has ended."""
        return self._running.wait(LIMIT_S)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("not started")
        return self._process
