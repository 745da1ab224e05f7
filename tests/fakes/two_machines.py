"""Two machines with two cables between them; one cable goes silent when it is told to.

Machines are network namespaces of the test's own; the second one has its own process ids too. A silent cable
is what a failed switch or a misconfigured packet filter looks like from both ends: the link stays up, nothing
that is sent arrives, and nobody says so.
"""

import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

ResultT = TypeVar("ResultT")

_CLONE_NEWNET = 0x40000000
_NOBODY = "02:00:00:00:00:ff"  # no interface has this address: frames to it are ignored by whoever gets them
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Cable:
    """Connects the address `here` of the first machine to the address `there` of the second one."""

    name: str
    here: str
    there: str
    _namespaces: tuple[str, str]

    def lay(self) -> None:
        """Brings it into being, with addresses and up."""
        first, second = self._namespaces
        far_end = ("type", "veth", "peer", "name", self.name, "netns", second)
        _run("ip", "-n", first, "link", "add", self.name, *far_end)
        for namespace, ip in zip(self._namespaces, (self.here, self.there), strict=True):
            _run("ip", "-n", namespace, "addr", "add", f"{ip}/24", "dev", self.name)
            _run("ip", "-n", namespace, "link", "set", self.name, "up")

    def cut(self) -> None:
        """From here on nothing arrives, in either direction, on connections old and new."""
        for namespace, ip in zip(self._namespaces, (self.there, self.here), strict=True):
            _run("ip", "-n", namespace, "neigh", "replace", ip, "lladdr", _NOBODY, "dev", self.name)

    def heal(self) -> None:
        """Everything arrives again."""
        for namespace, ip in zip(self._namespaces, (self.there, self.here), strict=True):
            _run("ip", "-n", namespace, "neigh", "del", ip, "dev", self.name)


class TwoMachines:
    """`run` does something on the first one; a command with `elsewhere` before it runs on the second one."""

    def __init__(self, first: str, second: str) -> None:
        self._first = first
        self.for_agents = Cable("agents", "10.77.1.1", "10.77.1.2", (first, second))
        self.for_database = Cable("database", "10.77.2.1", "10.77.2.2", (first, second))
        own_processes = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
        self.elsewhere = ("ip", "netns", "exec", second, *own_processes)

    def run(self, work: Callable[[], ResultT]) -> ResultT:
        """The result of `work`, whose sockets and child processes are those of the first machine."""
        with ThreadPoolExecutor(1, initializer=_enter, initargs=(self._first,)) as thread:
            return thread.submit(work).result()


@contextmanager
def two_machines() -> Iterator[TwoMachines]:
    """Two machines; skips the test where they cannot be had."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    if missing := [program for program in ("ip", "unshare") if shutil.which(program) is None]:
        pytest.skip(f"needs {' and '.join(missing)} (Debian packages iproute2, util-linux)")
    tag = f"kl{os.getpid()}-{next(_numbers)}"
    names = (f"{tag}-here", f"{tag}-there")
    made: list[str] = []
    try:
        try:
            for name in names:
                _run("ip", "netns", "add", name)
                made.append(name)
                _run("ip", "-n", name, "link", "set", "lo", "up")
            machines = TwoMachines(*names)
            for cable in (machines.for_agents, machines.for_database):
                cable.lay()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs network namespaces: {error.stderr.decode(errors='replace').strip()}")
        yield machines
    finally:
        for name in made:
            _run("ip", "netns", "delete", name)


def _enter(namespace: str) -> None:
    """Moves the calling thread to a network namespace, and with it what the thread starts."""
    library = ctypes.CDLL(None, use_errno=True)
    with (Path("/run/netns") / namespace).open() as place:
        if library.setns(place.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
