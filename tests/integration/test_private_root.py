"""The machines of the demonstrations: what their programs write stays theirs, in a chroot as well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.network import open_network
from tests.lab.private_root import NotPermittedError, missing_programs, private_root

MARKS = ("/etc/ssh/mark-of-a-test", "/root/mark-of-a-test", "/var/lib/keylime/mark-of-a-test")
REPOSITORY = Path(__file__).parents[2]


def write_marks(directory: Path) -> list[str]:
    """Writes files on such a machine; those of them that this process then finds where it lives itself."""
    with open_network(directory, ("control",)) as network, private_root(network.nodes[0]) as node:
        for mark in MARKS:
            node.run("mkdir", "-p", Path(mark).parent)
            node.run("touch", mark)
            assert node.path(mark).exists(), "the machine has it"
        assert node.run("pwd").stdout == "/root\n"
        return [mark for mark in MARKS if Path(mark).exists()]


@pytest.fixture(autouse=True)
def _permitted() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make machines with files of their own")
    if missing := missing_programs("ip", "unshare", "nsenter", "chroot", "mount"):
        pytest.skip(f"not installed: {', '.join(missing)}")


def test_a_machine_writes_nothing_on_its_host(tmp_path: Path) -> None:
    try:
        assert write_marks(tmp_path) == []
    except NotPermittedError as error:
        pytest.skip(f"no machines with files of their own: {error}")


def test_a_machine_in_a_chroot_writes_neither_there_nor_outside(tmp_path: Path) -> None:
    new_root = tmp_path / "root"
    new_root.mkdir()
    code = (
        "import pathlib, sys; from tests.integration.test_private_root import write_marks; "
        "print(write_marks(pathlib.Path(sys.argv[1])))"
    )
    # The same files once more, but below a directory: whoever leaves the chroot is on the host's.
    enter = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount --rbind / "$1" && exec chroot "$@"',
        "sh",
        str(new_root),
    ]
    done = subprocess.run(  # noqa: S603
        [*enter, "env", f"--chdir={REPOSITORY}", sys.executable, "-c", code, str(tmp_path / "nodes")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if done.stderr.startswith("unshare:"):
        pytest.skip(f"no mounts of its own here: {done.stderr.strip()}")
    is_refused = "NotPermittedError" in done.stderr or "permission denied" in done.stderr
    if is_refused and "would not be its own" not in done.stderr:
        pytest.skip(f"no machines with files of their own: {done.stderr.splitlines()[-1]}")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert [mark for mark in MARKS if Path(mark).exists()] == []
