"""A real software TPM 2.0 with endorsement certificates of its own CA, all in one directory.

    with SoftwareTpm.manufactured(tmp_path / "tpm") as tpm:
        Tpm.open(tpm.tcti)

Several TPMs may share a `ca_directory`: machines of one manufacturer.
"""

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

_SETUP_LIMIT_S = 100
_START_LIMIT_S = 100

_LOCALCA_CONF = """\
statedir = {ca}
signingkey = {ca}/signkey.pem
issuercert = {ca}/issuercert.pem
certserial = {ca}/certserial
"""
_LOCALCA_OPTIONS = """\
--platform-manufacturer Keylime
--platform-version 1
--platform-model software
"""
_SETUP_CONF = """\
create_certs_tool = {localca}
create_certs_tool_config = {home}/localca.conf
create_certs_tool_options = {home}/localca.options
"""


class SoftwareTpm:
    """One swtpm. `restart` is a reboot of the machine: PCRs start anew and resetCount rises; keys stay."""

    def __init__(self, home: Path, ca_directory: Path) -> None:
        self.home = home
        self.ca_directory = ca_directory
        self._process: subprocess.Popen[bytes] | None = None
        # Sockets live apart: pytest's directories can be longer than the 108 bytes of a socket's address.
        self._sockets = Path(tempfile.mkdtemp(prefix="swtpm-"))

    @classmethod
    def manufactured(
        cls,
        home: Path,
        *,
        ca_directory: Path | None = None,
        banks: tuple[str, ...] = ("sha1", "sha256"),
        with_ek_certificate: bool = True,
    ) -> Self:
        """A new TPM whose state lives in `home`, with RSA-2048 and P-384 EK certificates; not started yet."""
        ca = ca_directory or home / "ca"
        state = home / "state"
        for directory in (state, ca):
            directory.mkdir(parents=True, exist_ok=True)
        (home / "localca.conf").write_text(_LOCALCA_CONF.format(ca=ca))
        (home / "localca.options").write_text(_LOCALCA_OPTIONS)
        localca = shutil.which("swtpm_localca") or "/usr/bin/swtpm_localca"
        (home / "setup.conf").write_text(_SETUP_CONF.format(home=home, localca=localca))
        certificates = ("--create-ek-cert", "--create-platform-cert") if with_ek_certificate else ()
        subprocess.run(  # noqa: S603  # a fixed program with arguments of our own
            [
                _program("swtpm_setup"),
                "--tpm2",
                *("--tpm-state", str(state)),
                *("--config", str(home / "setup.conf")),
                *("--pcr-banks", ",".join(banks)),
                *("--logfile", str(home / "setup.log")),
                *certificates,
            ],
            check=True,
            capture_output=True,
            timeout=_SETUP_LIMIT_S,
        )
        return cls(home, ca)

    @property
    def tcti(self) -> str:
        """What to put into TCTI or hand to Tpm.open."""
        return f"swtpm:path={self._socket}"

    @property
    def ca_certificates(self) -> list[Path]:
        """The PEM files of the CA that signed the EK certificates: issuer and root."""
        return [self.ca_directory / "issuercert.pem", self.ca_directory / "swtpm-localca-rootca-cert.pem"]

    @property
    def _socket(self) -> Path:
        return self._sockets / "tpm"

    def start(self) -> None:
        """Power on: TPM2_Startup(CLEAR)."""
        self._process = subprocess.Popen(  # noqa: S603  # a fixed program with arguments of our own
            [
                _program("swtpm"),
                "socket",
                "--tpm2",
                *("--tpmstate", f"dir={self.home / 'state'}"),
                *("--server", f"type=unixio,path={self._socket}"),
                *("--ctrl", f"type=unixio,path={self._socket}.ctrl"),
                *("--flags", "not-need-init,startup-clear"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_LIMIT_S
        while not (_listens(self._socket) and _listens(Path(f"{self._socket}.ctrl"))):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("swtpm did not start")
            time.sleep(0.01)

    def stop(self) -> None:
        """Power off without an orderly shutdown."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=100)
            self._process = None
        for path in self._sockets.glob("tpm*"):
            path.unlink()

    def open_to_all_users(self) -> None:
        """Let programs of other users connect, as a resource manager would."""
        self._sockets.chmod(0o755)
        for path in self._sockets.glob("tpm*"):
            path.chmod(0o666)

    def restart(self) -> None:
        """Reboot."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._sockets, ignore_errors=True)


def _listens(path: Path) -> bool:
    """Whether somebody accepts connections there: the file is there some time before."""
    with socket.socket(socket.AF_UNIX) as one:
        return one.connect_ex(str(path)) == 0


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed")
    return found
