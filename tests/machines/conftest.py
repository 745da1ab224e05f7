"""One image and one set of packages for all tests on machines (`make test-systemd`).

KEYLIME_TEST_SYSTEMD_IMAGE names a directory that keeps the image from one run to the next,
KEYLIME_TEST_SYSTEMD_PACKAGES one with packages that are built already.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.captures import capture
from tests.machines.booted import BootedMachine, open_machines
from tests.packages.debian_root import names_in

ROOT = Path(__file__).parents[2]
TOOLS = (
    "debootstrap",
    "dpkg-buildpackage",
    "ip",
    "nsenter",
    "swtpm",
    "swtpm_setup",
    "systemd-nspawn",
    "unshare",
)
# What our packages depend on, so that they are installed without a network, and what the documentation's
# commands need.
INCLUDED = (
    *("ca-certificates", "curl", "dbus", "iproute2", "iptables", "iputils-ping", "libtss2-esys-3.0.2-0"),
    *("libtss2-fapi1", "libtss2-rc0", "libtss2-tcti-device0", "libtss2-tcti-swtpm0", "libtss2-tcti-tabrmd0"),
    "libtss2-tctildr0",
    *(
        "openssh-client",
        "openssh-server",
        "openssl",
        "procps",
        "python3",
        "sqlite3",
        "systemd",
        "systemd-sysv",
    ),
    *("tpm2-abrmd", "tpm2-tools"),
)
BOOT_LOG = capture("direct-efistub").boot_log

Boot: TypeAlias = Callable[..., tuple[BootedMachine, ...]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this is for those who ask for it."""
    reasons = {
        "run by `make test-systemd`": "KEYLIME_TEST_SYSTEMD" not in os.environ,
        "needs root, to boot machines": os.geteuid() != 0,
        f"one of these is not installed: {', '.join(TOOLS)}": not all(map(shutil.which, TOOLS)),
    }
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(3600))
            for reason, holds in reasons.items():
                if holds:
                    item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the project's Debian packages."""
    output = Path(os.environ.get("KEYLIME_TEST_SYSTEMD_PACKAGES") or tmp_path_factory.mktemp("dist"))
    if not list(output.glob("*.deb")):
        command = [str(ROOT / "packaging/tools/make-deb"), str(ROOT / "build/wheels"), str(output)]
        subprocess.run(command, check=True)  # noqa: S603
    return output


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian of this machine's release with systemd, without our packages; nobody changes it."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text("utf-8").splitlines() if "=" in line
    )
    kept = os.environ.get("KEYLIME_TEST_SYSTEMD_IMAGE")
    directory = Path(kept) if kept else tmp_path_factory.mktemp("image") / "root"
    if not (directory / "ready").exists():
        suite = release["VERSION_CODENAME"].strip('"')
        command = [
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(names_in(suite, INCLUDED))}",
            suite,
            str(directory),
        ]
        mirror = os.environ.get("KEYLIME_TEST_PACKAGES_MIRROR")
        command += [mirror] if mirror else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        _let_root_in(directory)
        # It would wait for a device, and the agent for it.
        (directory / "etc/systemd/system/tpm2-abrmd.service").symlink_to("/dev/null")
        (directory / "ready").touch()
    return directory


def _let_root_in(directory: Path) -> None:
    """One key of root's for all machines, whose host key is the same as well: scp and ssh ask nothing."""
    ssh = directory / "root/.ssh-of-the-administrator"
    ssh.mkdir(mode=0o700)
    subprocess.run(  # noqa: S603
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / "key")],  # noqa: S607
        check=True,
    )
    public = (ssh / "key.pub").read_text()
    host_key = (directory / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    (directory / "etc/ssh/ssh_known_hosts").write_text(f"* {host_key}")
    (directory / "etc/ssh/administrator").write_text(public)
    (directory / "etc/ssh/sshd_config.d/administrator.conf").write_text(
        "AuthorizedKeysFile .ssh/authorized_keys /etc/ssh/administrator\n"
    )
    (directory / "etc/ssh/ssh_config.d/administrator.conf").write_text(
        "IdentityFile /root/.ssh-of-the-administrator/key\n"
    )


@pytest.fixture
def boot(image: Path, packages: Path, tmp_path: Path) -> Iterator[Boot]:
    """Machines by their names, which are on."""
    with ExitStack() as stack:

        def boot(*names: str) -> tuple[BootedMachine, ...]:
            machines = stack.enter_context(open_machines(image, packages, tmp_path, names))
            for machine in machines:
                machine.boot(BOOT_LOG)
            return machines

        yield boot
