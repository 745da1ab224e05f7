"""Machines with a file system of their own: programs find the paths they would find on a real one.

A process holds each machine's namespaces; every program of the machine enters them, and they end with it.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.lab.network import Node

_SCRIPT = Path(__file__).with_name("private-root")
_REPOSITORY = Path(__file__).parents[2]
_HIDDEN = (Path("/root"), Path("/run"))  # what of these the programs of the lab need is shown again
_LIMIT_S = 10


class NotPermittedError(RuntimeError):
    """This environment does not let us make such machines; the text says what it refused."""


@dataclass(frozen=True, slots=True)
class PrivateNode(Node):
    """A machine whose programs run in the namespaces of the process `holder`, as root in /root.

    `disk` is a directory of the host, for what the lab itself keeps about the machine.
    """

    holder: int = 0

    @property
    def work_dir(self) -> Path:
        """The machine's /var/lib/keylime, seen from outside."""
        return self.path("/var/lib/keylime")

    def path(self, inside: str) -> Path:
        """Where the host finds the machine's absolute path `inside`. Do not follow links there."""
        return Path(f"/proc/{self.holder}/root") / inside.lstrip("/")

    def variables(self) -> dict[str, str]:
        """Root's environment without a single KEYLIME_ variable: programs use their default paths."""
        inherited = Node.variables(self)
        del inherited["KEYLIME_DIR"]
        return {**inherited, "HOME": "/root"}

    def run(
        self, *words: str | Path, check: bool = True, limit_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end. Raises RuntimeError with its output when it fails."""
        done = subprocess.run(  # noqa: S603
            self.command(*words),
            env=self.variables(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        if check and done.returncode != 0:
            command = " ".join(map(str, words))
            raise RuntimeError(
                f"{self.name}: {command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done


@contextmanager
def private_root(node: Node) -> Iterator[PrivateNode]:
    """`node`, with a file system of its own; at the end its programs are killed. Raises NotPermittedError."""
    attached = node.disk / "memory"
    attached.mkdir(parents=True)
    with _held(node, attached) as holder:
        # Entering a mount namespace leads to its root, which is not ours where we live in a chroot.
        entered = ("nsenter", f"--target={holder}", "--mount", "--net", "--uts", "--root", "--wd", "--")
        prefix = (*entered, "env", "--chdir=/root")
        private = PrivateNode(node.name, node.ip, node.disk, prefix, node.environment, holder)
        _check_is_apart(private)
        yield private


def _check_is_apart(node: PrivateNode) -> None:
    """Raises NotPermittedError if programs of the machine would write to anybody's files but its own."""
    for directory in ("/etc", "/root", "/var/lib"):
        reached = node.run("stat", "--format=%d %i", directory).stdout.split()
        own, ours = (os.stat(path) for path in (node.path(directory), directory))
        if reached != [str(own.st_dev), str(own.st_ino)] or os.path.samestat(own, ours):
            raise NotPermittedError(f"{directory} of {node.name} would not be its own")


@contextmanager
def _held(node: Node, attached: Path) -> Iterator[int]:
    namespaces = node.command("unshare", "--mount", "--uts")
    with subprocess.Popen(  # noqa: S603
        [*namespaces, str(_SCRIPT), str(attached), node.name, *map(str, _kept())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                _, said = process.communicate(timeout=_LIMIT_S)
                raise NotPermittedError(said.strip().replace("\n", "; ") or "no private file systems here")
            yield process.pid
        finally:
            _end_programs(process.pid)
            if process.stdin is not None:
                process.stdin.close()


def _kept() -> list[Path]:
    """What the lab's programs need of the hidden directories: checkout, Python, sockets of TPMs."""
    needed = (_REPOSITORY, Path(sys.prefix), Path(sys.base_prefix), Path(tempfile.gettempdir()))
    places = {path.resolve() for path in needed}
    return sorted(path for path in places if any(path.is_relative_to(hidden) for hidden in _HIDDEN))


def _end_programs(holder: int) -> None:
    """Kills what still runs in the machine, such as children of daemons that were killed."""
    ours = _mount_namespace(holder)
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal() and int(directory.name) != holder:
            pid = int(directory.name)
            if ours is not None and _mount_namespace(pid) == ours:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _mount_namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return None


def missing_programs(*names: str) -> list[str]:
    """Those of the programs that are not installed."""
    places = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return [name for name in names if shutil.which(name, path=places) is None]
