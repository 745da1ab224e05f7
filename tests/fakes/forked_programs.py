"""Our programs, each in a fork of one process that has imported them: one start for many runs.

What a fork has of its own is all that a program can tell apart: its arguments, environment, directory, open
files, signals and its end, which is an interpreter's. That the installed scripts start by themselves is for
tests/e2e and tests/packages to say.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.fakes.own_time import kept_waiting_ns

LIMIT_S = 100.0
_ROOT = Path(__file__).parents[2]
_SCRIPTS = Path(sys.executable).parent
_MOST = 1 << 17  # bytes of an order: arguments and environment
_NUMBER = 8  # bytes of a process id, a status, or nanoseconds
_LOADED_LATE = {
    "keylime-policy": "keylime_policy.main",
    "keylime_agent": "keylime_agent.main",
    "keylime_convert_runtime_policy": "keylime_policy.convert",
    "keylime_create_policy": "keylime_policy.create_policy",
    "keylime_ima_emulator": "keylime_agent.ima_emulator",
    "keylime_push_model_agent": "keylime_agent.pushing.main",
    "keylime_registrar": "keylime_registrar.main",
    "keylime_sign_runtime_policy": "keylime_policy.sign_runtime_policy",
    "keylime_tenant": "keylime_tenant.main",
    "keylime_verifier": "keylime_verifier.main",
}
Program = Callable[[], str | int | None]


@dataclass(frozen=True)
class Order:
    """What to run, and where; `user` is a number that the program runs as.

    With `is_leader` it begins a session, whose processes can be sent a signal together.
    """

    program: str
    arguments: Sequence[str]
    environ: Mapping[str, str]
    directory: str = "/"
    user: int | None = None
    is_leader: bool = False


@functools.cache
def console_scripts() -> dict[str, str]:
    """The programs that a user gets, and where each begins."""
    scripts: dict[str, str] = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return scripts


class ForkedProcess:
    """A program that was started; to be asked and told what a `subprocess.Popen` is."""

    def __init__(self, line: socket.socket, forker: int) -> None:
        """`line` brings its process id, and later how it ended; `forker` is the process that says so."""
        self.returncode: int | None = None
        self._kept_waiting_ns = 0
        self._line = line
        self._lock = threading.Lock()
        self._forker = forker
        (self.pid,) = self._numbers(line.recv(_NUMBER))
        line.setblocking(False)

    def poll(self) -> int | None:
        """The exit status (negative: the signal that ended it), None while it runs."""
        with self._lock:
            if self.returncode is None:
                with contextlib.suppress(BlockingIOError):
                    self.returncode, self._kept_waiting_ns = self._numbers(self._line.recv(2 * _NUMBER))
                    self._line.close()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once there is one. Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if (ended := self.poll()) is not None:
            return ended
        end = select.poll()
        end.register(self._line, select.POLLIN)
        while (status := self.poll()) is None:
            left = 1.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            end.poll(min(left, 0.25) * 1000)  # steps: another thread may have taken the status
        return status

    def send_signal(self, number: int) -> None:
        """Sends a signal, to nobody if it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """The exit status after the signal, and the seconds that the program took for itself.

        Those are not counted in which it, or who tells of its end, was ready and others had the processors.
        """
        began, before = time.monotonic(), self._all_kept_waiting_ns()
        self.send_signal(number)
        status = self.wait(LIMIT_S)
        return status, time.monotonic() - began - (self._all_kept_waiting_ns() - before) / 1e9

    def __del__(self) -> None:
        self._line.close()

    def _all_kept_waiting_ns(self) -> int:
        """Of those that work one after the other: the program's first thread, the forker, this thread."""
        own = self._kept_waiting_ns
        if self.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                own = kept_waiting_ns(self.pid)
        return own + kept_waiting_ns(self._forker) + kept_waiting_ns("thread-self")

    def _numbers(self, data: bytes) -> list[int]:
        if not data:
            raise RuntimeError("the process that forks our programs has ended")
        parts = (data[at : at + _NUMBER] for at in range(0, len(data), _NUMBER))
        return [int.from_bytes(part, "big", signed=True) for part in parts]


def has_own_network() -> bool:
    """Whether this thread is where forks are: one may have entered another network namespace."""
    return os.readlink("/proc/thread-self/ns/net") == os.readlink("/proc/self/ns/net")


def start(
    order: Order, *, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None
) -> ForkedProcess:
    """Begins to run a program on these descriptors, which stay the caller's; None is /dev/null."""
    assert has_own_network(), "a fork would be on the other side of a network namespace"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, open(os.devnull, "r+b", buffering=0) as nothing:
        files = [nothing.fileno() if file is None else file for file in (stdin, stdout, stderr)]
        message = json.dumps(asdict(order)).encode()
        assert len(message) <= _MOST, "too many arguments"
        line, forker = _forker()
        socket.send_fds(line, [message], [theirs.fileno(), *files])
    return ForkedProcess(ours, forker)


def run(
    order: Order, *, given: str = "", limit_s: float = LIMIT_S, merged: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end with `given` as its input. Raises TimeoutError after ending it.

    What it writes to stderr is part of stdout if they are `merged`.
    """
    with (
        tempfile.TemporaryFile("w+b") as stdin,
        tempfile.TemporaryFile("w+b") as stdout,
        tempfile.TemporaryFile("w+b") as stderr,
    ):
        stdin.write(given.encode())
        stdin.seek(0)
        errors = stdout if merged else stderr
        process = start(order, stdin=stdin.fileno(), stdout=stdout.fileno(), stderr=errors.fileno())
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.wait()
            stdout.seek(0)
            raise TimeoutError(f"{order.program} did not end:\n{stdout.read().decode()}") from error
        stdout.seek(0)
        stderr.seek(0)
        said, complained = (file.read().decode(errors="replace") for file in (stdout, stderr))
        return subprocess.CompletedProcess([order.program, *order.arguments], status, said, complained)


@functools.cache
def _forker() -> tuple[socket.socket, int]:
    """The line to the process that forks, which ends with this one, and its id."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for line in (ours, theirs):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            line.setsockopt(socket.SOL_SOCKET, option, 2 * _MOST)
    with theirs:
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "tests.fakes.forked_programs", str(theirs.fileno())],
            cwd=_ROOT,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def end() -> None:
        ours.close()
        process.wait(LIMIT_S)

    atexit.register(end)
    return ours, process.pid


@dataclass(frozen=True)
class _Child:
    """What a fork has to become."""

    order: Order
    program: Program
    files: Sequence[int]


class _Forker:
    """Takes orders from one line, and tells on a line for each how the program has ended."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._programs: dict[str, Program] = {}
        self._lines: dict[int, socket.socket] = {}
        self._ends, self._woken = socket.socketpair()
        for end in (self._ends, self._woken):
            end.setblocking(False)

    def serve(self) -> _Child | None:
        """None at the end; within a fork, what it is for."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, to all: the test's own matter
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        while True:
            ready, _, _ = select.select([self._orders, self._ends], [], [])
            if self._ends in ready:
                self._ends.recv(4096)
                self._tell()
            if self._orders in ready:
                data, files, _, _ = socket.recv_fds(self._orders, _MOST, 4)
                if not data:
                    return None
                child = self._fork(Order(**json.loads(data)), files)
                if child is not None:
                    return child

    def _tell(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None:
                    return
                kept_waiting = kept_waiting_ns(ended.si_pid)  # as long as it is there
                _, status = os.waitpid(ended.si_pid, 0)
                with self._lines.pop(ended.si_pid) as line, contextlib.suppress(OSError):
                    line.send(_bytes(os.waitstatus_to_exitcode(status)) + _bytes(kept_waiting))

    def _fork(self, order: Order, files: Sequence[int]) -> _Child | None:
        program = self._program(order.program)
        gc.freeze()  # what is there stays where it is, in memory that all share
        pid = os.fork()
        if pid == 0:
            self._leave(files[0])
            return _Child(order, program, files[1:])
        line = socket.socket(fileno=files[0])
        self._lines[pid] = line
        with contextlib.suppress(OSError):
            line.send(_bytes(pid))
        for file in files[1:]:
            os.close(file)
        return None

    def _program(self, name: str) -> Program:
        """Imported when it is first wanted, and before the fork: its user may not be able to."""
        if name not in self._programs:
            module, _, function = console_scripts()[name].partition(":")
            self._programs[name] = getattr(importlib.import_module(module), function)
            if name in _LOADED_LATE:
                importlib.import_module(_LOADED_LATE[name])
        return self._programs[name]

    def _leave(self, line: int) -> None:
        """Within a fork: nothing of this process stays open or set."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(line)
        for other in (self._orders, self._ends, self._woken, *self._lines.values()):
            other.close()


def _bytes(number: int) -> bytes:
    return number.to_bytes(_NUMBER, "big", signed=True)


def _become(child: _Child) -> None:
    """The surroundings that the program was ordered to have."""
    order = child.order
    for number, file in enumerate(child.files):
        os.dup2(file, number)
        os.close(file)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=stream is sys.stderr or stream.isatty())
    if order.is_leader:
        os.setsid()
    os.umask(0o022)
    os.chdir(order.directory)
    os.environ.clear()
    os.environ.update(order.environ)
    time.tzset()
    if order.user is not None:
        os.setgroups([])
        os.setgid(order.user)
        os.setuid(order.user)
    sys.argv = [str(_SCRIPTS / order.program), *order.arguments]
    # As the interpreter finds it at its start.
    sys.path[:1] = [str(_SCRIPTS), *filter(None, order.environ.get("PYTHONPATH", "").split(os.pathsep))]


def _main() -> None:
    """For a fork this is the program's whole life, to the interpreter's own end."""
    child = _Forker(socket.socket(fileno=int(sys.argv[1]))).serve()
    if child is not None:
        _become(child)
        sys.exit(child.program())  # as a console script does


if __name__ == "__main__":
    _main()
