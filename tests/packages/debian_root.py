"""A Debian of its own below a folder: packages come and go in it, and what they leave is seen."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

_ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    **{name: value for name, value in os.environ.items() if name.endswith(("_proxy", "_PROXY"))},
}
_OWN_NAMESPACES = ("/usr/bin/unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")
# What our packages depend on, so that they are installed without a network.
_INCLUDED = (
    *("ca-certificates", "iproute2", "libtss2-esys-3.0.2-0", "libtss2-fapi1", "libtss2-rc0"),
    *("libtss2-tcti-device0", "libtss2-tctildr0", "python3", "systemd-standalone-sysusers"),
    "systemd-standalone-tmpfiles",
)
# Where packages leave things on purpose, or the system does by itself.
_OF_OTHERS = ("dev", "proc", "sys", "tmp", "packages", "var/cache", "var/lib/apt", "var/lib/dpkg", "var/log")


# As Debian 12 calls them. From 13 on the names of libraries with 64-bit times end in t64, and
# debootstrap takes no name that is only provided.
_WITH_TIMES = frozenset(
    {
        "libtss2-esys-3.0.2-0",
        "libtss2-fapi1",
        "libtss2-rc0",
        "libtss2-tcti-device0",
        "libtss2-tcti-swtpm0",
        "libtss2-tctildr0",
    }
)


def names_in(suite: str, packages: Iterable[str]) -> tuple[str, ...]:
    """What packages of Debian 12 are called in a release of Debian, by its code name."""
    if suite == "bookworm":
        return tuple(packages)
    return tuple(f"{name}t64" if name in _WITH_TIMES else name for name in packages)


class DebianRoot:
    """Commands run in it as root, by chroot, without services: no systemd is process 1."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def make(cls, directory: Path, suite: str) -> "DebianRoot":
        """A minimal system with what our packages depend on, fetched from Debian's mirror."""
        mirror = os.environ.get("KEYLIME_TEST_PACKAGES_MIRROR")  # else debootstrap's own
        include = f"--include={','.join(names_in(suite, _INCLUDED))}"
        command = ["/usr/sbin/debootstrap", "--variant=minbase", include, suite, str(directory)]
        command += [mirror] if mirror else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        root = cls(directory)
        # No package starts a service in here.
        policy = directory / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        (directory / "packages").mkdir()
        return root

    def run(self, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        inside = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
        done = subprocess.run(  # noqa: S603
            [*_OWN_NAMESPACES, "sh", "-c", inside, str(self.directory), *command],
            env=_ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{command}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
        return done

    def install(self, packages: Sequence[Path]) -> None:
        for package in packages:
            shutil.copy(package, self.directory / "packages")
        self.run(
            *("apt-get", "-qq", "install", "-y", "--no-install-recommends"),
            *(f"/packages/{package.name}" for package in packages),
        )

    def files(self) -> set[str]:
        """Everything below it but for what other programs keep."""
        found = set()
        for directory, names, files in os.walk(self.directory):
            here = os.path.relpath(directory, self.directory)
            if here in _OF_OTHERS:
                names.clear()
                continue
            found |= {os.path.normpath(f"{here}/{name}") for name in (*names, *files)}
        return found

    def installed(self) -> set[str]:
        listed = self.run(
            "dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\\n", "keylime*", check=False
        )
        lines = (line.split() for line in listed.stdout.splitlines())
        return {line[1] for line in lines if len(line) == 2 and line[0] == "installed"}
