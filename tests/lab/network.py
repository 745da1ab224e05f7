"""Machines to run daemons on: network namespaces on one bridge, or loopback addresses where need be."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_NETWORK = "10.77.0"
_LOOPBACK = "127.0.77"
_INSIDE_USER_NAMESPACE = "KEYLIME_LAB_USER_NAMESPACE"


@dataclass(frozen=True, slots=True)
class Node:
    """One machine: its address, a directory that stands for its disk, and how a command is started on it.

    With `forks` our own programs are forked from a process that has imported them: they begin sooner.
    """

    name: str
    ip: str
    disk: Path
    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    forks: bool = field(default=False, kw_only=True)

    @property
    def work_dir(self) -> Path:
        """What KEYLIME_DIR names on this machine."""
        return self.disk / "var/lib/keylime"

    def command(self, *words: str | Path) -> list[str]:
        """The words that run a command on this machine."""
        return [*self.prefix, *map(str, words)]

    def variables(self) -> dict[str, str]:
        """The environment of every process on this machine; nothing of the caller's KEYLIME_* leaks in."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("KEYLIME_", "TCTI"))
        }
        return {**inherited, "KEYLIME_DIR": str(self.work_dir), **self.environment}


@dataclass(frozen=True, slots=True)
class Network:
    """Some nodes, and in words how they are separated."""

    kind: str
    nodes: tuple[Node, ...]


def enter_user_namespace() -> None:
    """Without root: starts the program again as root of a user namespace, where that is permitted."""
    if os.geteuid() == 0 or os.environ.get(_INSIDE_USER_NAMESPACE):
        return
    namespaces = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--fork", "--kill-child"]
    if shutil.which("unshare") is None or not _succeeds([*namespaces, "true"]):
        return
    # `ip netns` keeps its names below /run, which belongs to the real root.
    script = 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"'
    environment = {**os.environ, _INSIDE_USER_NAMESPACE: "1"}
    command = [*namespaces, "sh", "-c", script, "sh", sys.executable, *sys.orig_argv[1:]]
    os.execvpe("unshare", command, environment)  # noqa: S606, S607


@contextmanager
def open_network(directory: Path, names: Sequence[str]) -> Iterator[Network]:
    """Nodes with these names and disks below `directory`; everything made for them is removed at the end."""
    namespaces: list[str] = []
    try:
        yield _network(directory, names, namespaces)
    finally:
        for namespace in namespaces:
            _run("ip", "netns", "delete", namespace)


def _network(directory: Path, names: Sequence[str], namespaces: list[str]) -> Network:
    """The best separation that is permitted here; `namespaces` is what to clean up, also after a failure."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        refusal = "network namespaces need root, or user namespaces"
    else:
        where = "a user namespace" if os.environ.get(_INSIDE_USER_NAMESPACE) else "root"
        try:
            nodes = _bridge(f"kl{os.getpid()}", directory, names, namespaces)
            return Network(f"network namespaces on one bridge (as {where})", nodes)
        except subprocess.CalledProcessError as error:
            refusal = error.stderr.decode(errors="replace").strip() or str(error)
    return Network(f"loopback addresses ({refusal})", loopback_nodes(directory, names, _LOOPBACK))


def loopback_nodes(
    directory: Path, names: Sequence[str], subnet: str, *, first: int = 1, forks: bool = False
) -> tuple[Node, ...]:
    """Nodes that are only addresses of 127.0.0.0/8; `subnet` is the first three numbers, like "127.0.77".

    The last number counts from `first`.
    """
    return tuple(
        Node(name, f"{subnet}.{number}", directory / name, environment={"KEYLIME_TEST": "on"}, forks=forks)
        for number, name in enumerate(names, start=first)
    )


def _bridge(tag: str, directory: Path, names: Sequence[str], namespaces: list[str]) -> tuple[Node, ...]:
    """Makes a namespace for each node, cabled to the bridge; `namespaces` is what to clean up."""
    _run("ip", "netns", "add", f"{tag}-bridge")
    namespaces.append(f"{tag}-bridge")
    in_bridge = ("ip", "-n", f"{tag}-bridge")
    _run(*in_bridge, "link", "add", "br0", "type", "bridge")
    _run(*in_bridge, "link", "set", "br0", "up")
    nodes = []
    for number, name in enumerate(names, start=1):
        namespace, ip = f"{tag}-{name}", f"{_NETWORK}.{number}"
        _run("ip", "netns", "add", namespace)
        namespaces.append(namespace)
        _run("ip", "-n", namespace, "link", "set", "lo", "up")
        cable = ("type", "veth", "peer", "name", "eth0", "netns", namespace)
        _run(*in_bridge, "link", "add", f"port{number}", *cable)
        _run(*in_bridge, "link", "set", f"port{number}", "master", "br0", "up")
        _run("ip", "-n", namespace, "addr", "add", f"{ip}/24", "dev", "eth0")
        _run("ip", "-n", namespace, "link", "set", "eth0", "up")
        nodes.append(Node(name, ip, directory / name, ("ip", "netns", "exec", namespace)))
    return tuple(nodes)


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
