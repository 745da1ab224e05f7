"""Debian machines with systemd as process 1 (systemd-nspawn), a network, a software TPM, logs of a kernel.

What a machine has on disk is a layer over one image and lives until the test ends; it survives reboots, as
the TPM's state does. The kernel's measurements are a directory of the test's, seen at their usual place. To
its programs such a machine is a real one, but for the kernel: the TPM is reached over a socket, which the
services are told by a drop-in, and IMA measures what a test says.
"""

import errno
import functools
import itertools
import os
import pty
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from keylime.measured_boot.event_log import parse_event_log
from keylime.tpm.device import Tpm
from tests.fakes.swtpm import SoftwareTpm
from tests.lab.waiting import await_value

# Reserved for documentation (RFC 5737), so that the documentation's addresses are those of machines.
NETWORK = "192.0.2"
SECURITYFS = "/sys/kernel/security"
_TPM = "/srv/tpm"
_LIMIT_S = 300
_numbers = itertools.count(1)

# The container's init wants control groups that it may divide; those of the second generation can be had
# beside those of the first one that the host may have.
_BOOT = """\
set -eu
mount --make-rprivate /
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup/$1"
echo $$ >"/sys/fs/cgroup/$1/cgroup.procs"
shift
exec "$@"
"""


class CannotBootError(RuntimeError):
    """No machine with a systemd of its own can be booted here; the text says why."""


@dataclass(slots=True)
class BootedMachine:
    """One machine; `leader` is the process that is its systemd."""

    name: str
    ip: str
    namespace: str
    root: Path
    tpm: SoftwareTpm
    securityfs: Path
    shared: Path
    _process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)
    leader: int = 0

    @property
    def ima_list(self) -> Path:
        """What the kernel has measured."""
        return self.securityfs / "ima/ascii_runtime_measurements"

    def boot(self, boot_log: bytes) -> None:
        """Power on: the TPM starts anew, the firmware measures what is in `boot_log`, systemd comes up."""
        self.tpm.restart()
        self.tpm.open_to_all_users()
        self.ima_list.write_bytes(b"")
        (self.securityfs / "tpm0/binary_bios_measurements").write_bytes(boot_log)
        with Tpm.open(self.tpm.tcti) as tpm:
            for event in parse_event_log(boot_log).events:
                if event.is_extended:
                    tpm.extend_pcr(event.pcr, event.digests)
        sockets = Path(self.tpm.tcti.partition("=")[2]).parent
        command = [
            *("unshare", "--mount", "sh", "-c", _BOOT, "sh", self.namespace),
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot", "--link-journal=no"),
            "--capability=all",
            *(f"--directory={self.root}", f"--machine={self.namespace}", f"--hostname={self.name}"),
            f"--network-namespace-path=/run/netns/{self.namespace}",
            *(f"--bind={sockets}:{_TPM}", f"--bind={self.securityfs}:{SECURITYFS}"),
            *(f"--bind-ro={self.shared}:/root/dist", "--console=pipe", "--resolv-conf=off", "--timezone=off"),
        ]
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.leader = await_value(self._find_leader, f"systemd of {self.name}")
        await_value(self._is_up, f"{self.name} has booted")

    def _find_leader(self) -> int | None:
        if self._process is None:
            raise RuntimeError(f"{self.name} is off")
        if self._process.poll() is not None:
            said = self._process.stdout.read().decode(errors="replace") if self._process.stdout else ""
            raise CannotBootError(said.strip() or f"systemd-nspawn ended with {self._process.returncode}")
        pid = self._process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            try:
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
            except OSError:
                continue
        return None

    def _is_up(self) -> bool:
        return self.run("systemctl is-system-running", check=False).stdout.strip() in ("running", "degraded")

    def power_off(self) -> None:
        """An orderly shutdown."""
        if self._process is None:
            return
        self.run("systemctl poweroff", check=False)
        self._end(60)

    def _end(self, patience_s: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired:
            os.kill(self.leader or process.pid, signal.SIGKILL)  # and with it all of the machine's processes
            process.communicate()

    def reboot(self, boot_log: bytes) -> None:
        """Off and on."""
        self.power_off()
        self.boot(boot_log)

    def cut_power(self) -> None:
        """Off at once."""
        self._end(0)
        _remove_control_groups(self.namespace)

    def command(self, script: str) -> list[str]:
        """What runs a script of root's on the machine, in root's home."""
        entered = (
            "nsenter",
            f"--target={self.leader}",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
        )
        clean = ("env", "-i", "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb", "DEBIAN_FRONTEND=noninteractive")
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        tpm = f"TCTI=swtpm:path={_TPM}/tpm"
        tools = f"TPM2TOOLS_TCTI=swtpm:path={_TPM}/tpm"
        return [
            *(*entered, f"--root=/proc/{self.leader}/root", f"--wd=/proc/{self.leader}/root/root"),
            *(*clean, path, tpm, tools, "bash", "-c", script),
        ]

    def run(
        self, script: str, *, check: bool = True, limit_s: float = _LIMIT_S
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a script to its end, stopping at the first command that fails. Raises AssertionError then."""
        done = subprocess.run(  # noqa: S603
            self.command(f"set -e\n{script}" if check else script),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        if check and done.returncode != 0:
            said = done.stdout[-4000:] + done.stderr[-4000:]
            raise AssertionError(f"{self.name}: {script}\nended with {done.returncode}:\n{said}")
        return done

    def type_at(self, script: str, *answers: tuple[str, str], limit_s: float = _LIMIT_S) -> str:
        """What a script shows on a terminal, where each question (a part of it) gets its answer in turn."""
        primary, secondary = pty.openpty()
        with subprocess.Popen(  # noqa: S603
            self.command(f"set -e\n{script}"),
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
            close_fds=True,
        ) as process:
            os.close(secondary)
            shown, waiting, end = "", list(answers), time.monotonic() + limit_s
            while time.monotonic() < end:
                if not select.select([primary], [], [], 1)[0]:
                    continue
                try:
                    shown += os.read(primary, 65536).decode(errors="replace")
                except OSError:  # how Linux tells that nobody holds the other side
                    break
                if waiting and waiting[0][0] in shown:
                    os.write(primary, f"{waiting.pop(0)[1]}\n".encode())
            else:
                process.kill()
        os.close(primary)
        if process.returncode != 0 or waiting:
            raise AssertionError(f"{self.name}: {script}\nended with {process.returncode}:\n{shown}")
        return shown.replace("\r\n", "\n")

    def path(self, inside: str) -> Path:
        """Where the test finds a file of the machine. Do not follow links there."""
        return Path(f"/proc/{self.leader}/root") / inside.lstrip("/")

    def write(self, inside: str, text: str) -> None:
        """A file as `cat >` makes it."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)

    def journal(self, unit: str) -> str:
        """What a service has said since the boot."""
        return self.run(f"journalctl -b -u {unit} -o cat --no-pager", check=False).stdout

    def await_journal(self, unit: str, text: str) -> None:
        """Returns when a service has said `text`."""
        try:
            await_value(lambda: text in self.journal(unit), f"{unit} of {self.name} says {text!r}")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.journal(unit)[-4000:]}") from error

    def measure(self, *files: str) -> None:
        """What IMA does when files are run or read: a line in the list, and PCR 10 extended in every bank."""
        self.run(f"keylime_ima_emulator --append {' '.join(files)}")


@contextmanager
def open_machines(
    image: Path, shared: Path, directory: Path, names: Sequence[str]
) -> Iterator[tuple[BootedMachine, ...]]:
    """Machines that are off, with addresses 192.0.2.1 and so on; `shared` is /root/dist on each."""
    tag = f"kl{os.getpid()}x{next(_numbers)}"
    with ExitStack() as stack:
        bridge = f"{tag}b"
        _run("ip", "netns", "add", bridge)
        stack.callback(_run, "ip", "netns", "delete", bridge)
        _run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", bridge, "addr", "add", f"{NETWORK}.254/24", "dev", "br0")
        _run("ip", "-n", bridge, "link", "set", "br0", "up")
        machines = []
        for number, name in enumerate(names, start=1):
            namespace = f"{tag}n{number}"
            _cable(stack, bridge, namespace, number)
            root = stack.enter_context(_disk(image, directory / name))
            tpm = SoftwareTpm.manufactured(directory / name / "tpm", ca_directory=directory / "tpm-ca")
            securityfs = directory / name / "security"
            for place in ("ima", "tpm0"):
                (securityfs / place).mkdir(parents=True)
            stack.enter_context(tpm)
            machine = BootedMachine(name, f"{NETWORK}.{number}", namespace, root, tpm, securityfs, shared)
            (root / "etc/hostname").write_text(f"{name}\n")
            _know_each_other(root, names)
            stack.callback(machine.cut_power)
            machines.append(machine)
        yield tuple(machines)


def _cable(stack: ExitStack, bridge: str, namespace: str, number: int) -> None:
    _run("ip", "netns", "add", namespace)
    stack.callback(_run, "ip", "netns", "delete", namespace)
    cable = ("type", "veth", "peer", "name", "host0", "netns", namespace)
    _run("ip", "-n", bridge, "link", "add", f"port{number}", *cable)
    _run("ip", "-n", bridge, "link", "set", f"port{number}", "master", "br0", "up")
    inside = ("ip", "-n", namespace)
    _run(*inside, "link", "set", "lo", "up")
    _run(*inside, "addr", "add", f"{NETWORK}.{number}/24", "dev", "host0")
    _run(*inside, "link", "set", "host0", "up")
    _run(*inside, "route", "add", "default", "via", f"{NETWORK}.254")


@contextmanager
def _disk(image: Path, directory: Path) -> Iterator[Path]:
    """A file system of its own over the image, in memory."""
    memory, root = directory / "memory", directory / "root"
    for place in (memory, root):
        place.mkdir(parents=True)
    with mounted("tmpfs", memory, "mode=0755"):
        (memory / "upper").mkdir()
        (memory / "work").mkdir()
        layers = f"lowerdir={image},upperdir={memory}/upper,workdir={memory}/work"
        with mounted("overlay", root, layers):
            yield root


def _remove_control_groups(name: str) -> None:
    """What systemd-nspawn leaves of the machine's in the hierarchy, which is also there without it."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            group = Path(fields[4]) / name
            for directory, _, _ in os.walk(group, topdown=False):
                await_value(functools.partial(_removed, Path(directory)), f"the end of {directory}")


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:  # its processes are ending
            raise
        return False
    return True


def _know_each_other(root: Path, names: Sequence[str]) -> None:
    """Names, and root's SSH key, which is everybody's: an administrator gets from each machine to each."""
    hosts = "".join(f"{NETWORK}.{number} {name}\n" for number, name in enumerate(names, start=1))
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
    for service in ("keylime_agent", "keylime_push_model_agent"):
        drop_in = root / f"etc/systemd/system/{service}.service.d/tpm.conf"
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        drop_in.write_text(f"[Service]\nEnvironment=TCTI=swtpm:path={_TPM}/tpm\n")


@contextmanager
def mounted(kind: str, place: Path, options: str) -> Iterator[None]:
    """A mount for the time of a block."""
    _run("mount", "-t", kind, "-o", options, kind, str(place))
    try:
        yield
    finally:
        _run("umount", "-l", str(place))


def copy_file(of: BootedMachine, source: str, to: BootedMachine, target: str) -> None:
    """What an administrator does with scp."""
    to.path(target).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(of.path(source), to.path(target))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise CannotBootError(f"{' '.join(command)}: {done.stderr.strip()}")
