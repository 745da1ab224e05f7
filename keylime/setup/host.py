"""This machine as `keylime-setup` changes it: files, programs and services."""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from keylime.checkup import Result, read_document
from keylime.config.loader import load_settings
from keylime.config.settings import Settings
from keylime.errors import ConfigError, CredentialError
from keylime.pki.certificates import parse_certificate
from keylime.pki.files import write_atomically
from keylime.setup.authority import fingerprint
from keylime.setup.plan import Options, contradictions, snippet

_FILE = "setup.conf"
_SHOWN_LINES = "5"


@dataclass(frozen=True, slots=True)
class Host:
    """Where things are. What is set for this shell with KEYLIME_ variables is not what services will see."""

    etc: Path = Path("/etc/keylime")
    usr_etc: Path = Path("/usr/etc/keylime")
    work_dir: Path = Path("/var/lib/keylime")

    @property
    def authority_file(self) -> Path:
        """The certificate that agents and servers trust by default."""
        return self.work_dir / "cv_ca" / "cacert.crt"

    def settings(self, component: str) -> Settings:
        """What a component reads. Raises ConfigError."""
        return load_settings(component, environ={}, etc=self.etc, usr_etc=self.usr_etc)

    def write(self, component: str, options: Options) -> Path:
        """Writes the snippet. Raises ConfigError, also when other files say something else."""
        directory = self.etc / f"{component}.conf.d"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            group = directory.stat().st_gid  # the daemon's, who reads it after its start as well
        except OSError as error:
            raise ConfigError(f"{directory}: {error.strerror}") from error
        path = directory / _FILE
        write_atomically(path, snippet(component, options).encode(), 0o640, owner=(os.geteuid(), group))
        others = contradictions(self.settings(component), options)
        if others:
            raise ConfigError(
                f"{path} is written, but {'; '.join(others)}: remove the line there, or do without me"
            )
        return path

    def trusted(self) -> x509.Certificate | None:
        """The authority that is trusted already. Raises ConfigError when the file cannot be read."""
        try:
            return parse_certificate(self.authority_file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, CredentialError) as error:
            raise ConfigError(f"{self.authority_file}: {error}; remove it if it is of no use") from error

    def trust(self, authority: x509.Certificate) -> None:
        """Stores it for the user of the working directory, never in place of another. Raises ConfigError."""
        before = self.trusted()
        if before is not None and before != authority:
            raise ConfigError(
                f"{self.authority_file} is another authority ({fingerprint(before)}): if this machine is "
                "to be watched by others from now on, remove that file first"
            )
        if before is not None:
            return
        directory = self.authority_file.parent
        try:
            owner = self.work_dir.stat()
            if not directory.exists():
                directory.mkdir(mode=0o700)
                os.chown(directory, owner.st_uid, owner.st_gid)
        except OSError as error:
            raise ConfigError(f"{directory}: {error.strerror}; install the package first") from error
        pem = authority.public_bytes(Encoding.PEM)
        write_atomically(self.authority_file, pem, 0o644, owner=(owner.st_uid, owner.st_gid))

    def check(self, program: str) -> None:
        """Asks the program itself whether it can use its configuration. Raises ConfigError with its words."""
        done = self._run(program, "--check-config")
        for line in done.stdout.splitlines():
            if line.startswith("warning: "):
                print(f"{program}: {line}")
        if done.returncode != 0:
            raise ConfigError(done.stderr.strip() or f"{program} --check-config ended with {done.returncode}")

    def examine(self, program: str, *flags: str, service: str | None = None) -> tuple[Result, ...]:
        """What a program finds on this machine; with `service`, in the environment that its unit has.

        Raises ConfigError when it tells nothing.
        """
        done = self._run(program, *flags, "--json", more=self._environment_of(service) if service else {})
        try:
            return read_document(json.loads(done.stdout))
        except ValueError as error:
            said = (done.stderr.strip() or f"it ended with {done.returncode}: {error}").splitlines()[-1]
            raise ConfigError(f"{' '.join((program, *flags))}: {said}") from error

    def _environment_of(self, service: str) -> dict[str, str]:
        """What a unit and its drop-ins set: another TPM, for one."""
        shown = self._run("systemctl", "show", "--property=Environment", "--value", service)
        try:
            words = shlex.split(shown.stdout) if shown.returncode == 0 else []
        except ValueError:
            return {}
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start(self, *services: str) -> None:
        """Enables services and starts them anew, in order. Raises ConfigError with what they said last."""
        for service in services:
            for verb in ("enable", "restart"):
                done = self._run("systemctl", "--quiet", verb, service)
                if done.returncode != 0:
                    said = self._run(
                        "journalctl", "-u", service, "-n", _SHOWN_LINES, "-o", "cat", "--no-pager"
                    )
                    what = said.stdout.strip() or done.stderr.strip()
                    raise ConfigError(f"systemctl {verb} {service} failed: {what}")

    def has(self, program: str) -> bool:
        """Whether a program is installed."""
        return shutil.which(program) is not None

    def _run(
        self, *command: str, more: Mapping[str, str] = MappingProxyType({})
    ) -> "subprocess.CompletedProcess[str]":
        environ = {name: value for name, value in os.environ.items() if not name.startswith("KEYLIME_")}
        environ.update(more)
        try:
            return subprocess.run(  # noqa: S603
                command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise ConfigError(f"{command[0]} is not installed on this machine") from None
        except OSError as error:
            raise ConfigError(f"{command[0]}: {error.strerror}") from error
