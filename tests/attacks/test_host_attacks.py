"""Attacks on the machines of an installation itself: files that others reach, memory that gets on disk.

Ids are those of the attack catalogue (Host and supply).
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.forked_programs import Order, run
from tests.fakes.running_verifier import install_certificates
from tests.fakes.server_process import ServerProcess

_LIMIT_S = 100
PROGRAMS = {
    "keylime_agent": (),
    "keylime_registrar": (),
    "keylime_verifier": (),
    "keylime_tenant": ("-c", "cvlist"),
}


@dataclass(frozen=True)
class Host:
    """A directory with all that the programs need, but for what a test does to it."""

    root: Path

    @property
    def work_dir(self) -> Path:
        return self.root / "keylime"

    def config(self, name: str, text: str, mode: int) -> Path:
        """A configuration file of a component."""
        path = self.root / f"{name}.conf"
        path.write_text(text)
        path.chmod(mode)
        return path

    def refusal(self, name: str) -> str:
        """The one line with which a program refuses to start."""
        component = name.removeprefix("keylime_").upper()
        environ = {
            "PATH": os.environ["PATH"],
            "KEYLIME_DIR": str(self.work_dir),
            "KEYLIME_TEST": "on",
            "KEYLIME_CA_PASSWORD": "a password",
            "TCTI": f"swtpm:path={self.root}/nothing",
            f"KEYLIME_{component}_CONFIG": str(self.root / f"{component.lower()}.conf"),
        }
        done = run(Order(name, PROGRAMS[name], environ))
        assert done.returncode == 1, done
        assert "Traceback" not in done.stdout + done.stderr
        return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.work_dir.mkdir(mode=0o700)
    install_certificates(host.work_dir)
    for name in PROGRAMS:
        component = name.removeprefix("keylime_")
        host.config(component, f"[{component}]\n", 0o600)
    return host


@pytest.mark.parametrize("name", PROGRAMS)
def test_h1_a_configuration_that_others_may_write_stops_the_start(host: Host, name: str) -> None:
    component = name.removeprefix("keylime_")
    path = host.config(component, f"[{component}]\n", 0o602)
    line = host.refusal(name)
    assert f"{path} may be written by" in line
    assert "chmod" in line


SECRETS = [
    ("keylime_verifier", "server_key_password"),
    ("keylime_verifier", "client_key_password"),
    ("keylime_registrar", "server_key_password"),
    ("keylime_tenant", "client_key_password"),
    ("keylime_agent", "server_key_password"),
    ("keylime_agent", "tpm_ownerpassword"),
]


@pytest.mark.parametrize(("name", "option"), SECRETS)
def test_h1_a_secret_that_others_may_read_stops_the_start_and_is_not_told(
    host: Host, name: str, option: str
) -> None:
    component = name.removeprefix("keylime_")
    quote = '"' if component == "agent" else ""
    path = host.config(component, f"[{component}]\n{option} = {quote}hunter2{quote}\n", 0o604)
    line = host.refusal(name)
    assert f"{path} may be read by" in line
    assert "chmod" in line
    assert "hunter2" not in line


KEYS = [
    ("keylime_verifier", "server-private.pem"),
    ("keylime_verifier", "client-private.pem"),
    ("keylime_registrar", "server-private.pem"),
    ("keylime_tenant", "client-private.pem"),
]


@pytest.mark.parametrize("mode", [0o604, 0o602])
@pytest.mark.parametrize(("name", "key"), KEYS)
def test_h1_a_private_key_that_others_reach_stops_the_start(
    host: Host, name: str, key: str, mode: int
) -> None:
    path = host.work_dir / "cv_ca" / key
    path.chmod(mode)
    line = host.refusal(name)
    assert str(path) in line
    assert "chmod" in line


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit (util-linux) is not installed")
@pytest.mark.parametrize("name", ["keylime_verifier", "keylime_registrar"])
def test_h5_no_core_dump_holds_the_keys_of_a_server(host: Host, name: str) -> None:
    allowed = ("prlimit", f"--core={1 << 20}:{1 << 20}")
    workers = {"KEYLIME_VERIFIER_NUM_WORKERS": "2", "KEYLIME_REGISTRAR_NUM_WORKERS": "2"}
    with ServerProcess(name, host.work_dir, prefix=allowed, **workers) as server:
        server.ports()
        for pid in (server.pid, *server.children):
            (limit,) = (
                line.split()[4:6]
                for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
                if line.startswith("Max core file size")
            )
            assert limit == ["0", "0"], pid
