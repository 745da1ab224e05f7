"""Programs that the agent runs for operators: payload scripts and revocation actions, on a short leash.

Each gets a session of its own, a small environment, no input and a time limit; its output goes to the log.
"""

import asyncio
import errno
import logging
import os
import pwd
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_LINE = 4096
_MAX_LINES = 1000  # of one stream; what follows is read and dropped
_LINGER_S = 0.5  # for output still in the pipe when a program has ended


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """How a program ended: its exit status (negative: the signal), or None when the time limit ended it."""

    status: int | None

    @property
    def is_success(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.status == 0

    def __str__(self) -> str:
        if self.status is None:
            return "stopped at its time limit"
        return f"killed by signal {-self.status}" if self.status < 0 else f"exit status {self.status}"


def child_environment(agent_id: str, work_dir: Path, *, test_mode: bool = False) -> dict[str, str]:
    """The whole environment of such a program; nothing of the agent's own is inherited.

    `test_mode` is told on, because it decides where keylime.secure_mount finds the secure directory.
    """
    try:
        user = pwd.getpwuid(os.geteuid())
        home, name = user.pw_dir, user.pw_name
    except KeyError:
        home, name = "/", str(os.geteuid())
    return {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "HOME": home,
        "USER": name,
        "AGENT_UUID": agent_id,
        "KEYLIME_DIR": str(work_dir),
        **({"KEYLIME_TEST": "on"} if test_mode else {}),
    }


async def run_program(
    command: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    limit_s: float | None,
    on_line: Callable[[str, str], None],
) -> ProcessEnd:
    """Run `command` to its end; `on_line` gets "stdout" or "stderr" and each line of output. Raises OSError.

    A script without `#!` is run by the shell. When the limit is reached (None: there is none), or the caller
    is cancelled, the whole session of the program is killed.
    """
    process = await _start(command, directory, environment)
    readers = [
        asyncio.create_task(_forward(stream, name, on_line))
        for name, stream in (("stdout", process.stdout), ("stderr", process.stderr))
        if stream is not None
    ]
    try:
        async with asyncio.timeout(limit_s):
            status: int | None = await process.wait()
    except TimeoutError:
        status = None
    finally:
        # Daemons that a script started on purpose survive its regular end, nothing survives a forced one.
        if process.returncode is None:
            _kill_session(process.pid)
            await process.wait()
        await asyncio.wait(readers, timeout=_LINGER_S)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    return ProcessEnd(status)


async def _start(
    command: Sequence[str], directory: Path, environment: Mapping[str, str]
) -> asyncio.subprocess.Process:
    try:
        return await _spawn(command, directory, environment)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        return await _spawn(("/bin/sh", *command), directory, environment)


async def _spawn(
    command: Sequence[str], directory: Path, environment: Mapping[str, str]
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


def _kill_session(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


async def _forward(stream: asyncio.StreamReader, name: str, on_line: Callable[[str, str], None]) -> None:
    rest, count = b"", 0
    while chunk := await stream.read(_MAX_LINE):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MAX_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            count += 1
            _report(name, line, count, on_line)
    if rest:
        _report(name, rest, count + 1, on_line)


def _report(name: str, line: bytes, count: int, on_line: Callable[[str, str], None]) -> None:
    if count < _MAX_LINES:
        text = line[:_MAX_LINE].decode("utf-8", "replace").rstrip("\r")
        on_line(name, "".join(char if char.isprintable() or char == "\t" else "?" for char in text))
    elif count == _MAX_LINES:
        on_line(name, "... further output is not logged")
