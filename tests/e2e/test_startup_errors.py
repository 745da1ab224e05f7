"""Whatever keeps a daemon from starting is told in one line that names the remedy, with exit status 1."""

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.forked_programs import Order, console_scripts, run
from tests.fakes.swtpm import SoftwareTpm
from tests.lab.daemon import program
from tests.lab.installation import write_config

_LIMIT_S = 100.0


@dataclass(frozen=True)
class Run:
    """How a program that could not start ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def reason(self) -> str:
        """The one line for the operator."""
        assert self.status == 1, self
        assert "Traceback" not in self.stdout + self.stderr
        (line,) = self.stderr.splitlines()
        return line


@dataclass(frozen=True)
class Host:
    """A machine with nothing on it but configuration."""

    work_dir: Path
    address: str

    def run(self, name: str, options: Mapping[str, str] | None = None, **environ: str) -> Run:
        """Runs a daemon with these options until it gives up."""
        section = name.removeprefix("keylime_")
        config = write_config(self.work_dir.parent / f"{section}.conf", {section: dict(options or {})})
        environ = {
            "PATH": os.environ["PATH"],
            "KEYLIME_DIR": str(self.work_dir),
            "KEYLIME_TEST": "on",
            f"KEYLIME_{section.upper()}_CONFIG": str(config),
            "KEYLIME_CA_PASSWORD": "secret",
            **environ,
        }
        done = run(Order(name, (), environ))
        return Run(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def host(tmp_path: Path, subnets: Iterator[str]) -> Host:
    work_dir = tmp_path / "keylime"
    work_dir.mkdir(mode=0o700)
    return Host(work_dir, f"{next(subnets)}.1")


def agent_options(host: Host, **options: str) -> dict[str, str]:
    return {"uuid": '"node1"', "ip": f'"{host.address}"', "run_as": '""', **options}


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    with SoftwareTpm.manufactured(tmp_path_factory.mktemp("tpm"), with_ek_certificate=False) as started:
        yield started


@pytest.fixture
def prepared(host: Host) -> Host:
    """With the verifier's CA certificate, as an operator copies it."""
    data = Path(__file__).parents[1] / "data/ca-7.14.3"
    (host.work_dir / "cv_ca").mkdir()
    (host.work_dir / "cv_ca/cacert.crt").write_bytes((data / "cacert.crt").read_bytes())
    return host


def test_an_agent_without_the_verifiers_certificate(host: Host) -> None:
    reason = host.run("keylime_agent", agent_options(host)).reason
    assert f"{host.work_dir}/cv_ca/cacert.crt" in reason
    assert "copy it from the verifier" in reason


def test_an_agent_without_a_tpm(prepared: Host) -> None:
    tcti = f"swtpm:path={prepared.work_dir}/nothing"
    reason = prepared.run("keylime_agent", agent_options(prepared), TCTI=tcti).reason
    assert "TPM" in reason
    assert tcti in reason


def test_an_agent_without_its_working_directory(host: Host) -> None:
    host.work_dir.rmdir()
    assert str(host.work_dir) in host.run("keylime_agent", agent_options(host)).reason


def test_a_registrar_without_a_certificate_authority(host: Host) -> None:
    run = host.run("keylime_registrar", {"ip": host.address})
    assert "start keylime_verifier first" in run.reason


@pytest.mark.parametrize(
    ("option", "value"),
    [("quote_interval", "soon"), ("port", "88811"), ("port", "https"), ("max_retries", "-1x")],
)
def test_a_verifier_with_a_wrong_value_names_it(host: Host, option: str, value: str) -> None:
    reason = host.run("keylime_verifier", {option: value}).reason
    for word in (str(host.work_dir.parent / "verifier.conf"), "[verifier]", option, value):
        assert word in reason


@pytest.mark.parametrize("workers", ["1", "2"])
def test_m14_a_verifier_with_a_measured_boot_policy_that_is_not_there(host: Host, workers: str) -> None:
    options = {"measured_boot_policy_name": "exmaple", "num_workers": workers}
    reason = host.run("keylime_verifier", options).reason
    names = "accept-all, components, efi-stub, example, reject-all, shim-grub"
    for word in ("[verifier] measured_boot_policy_name", "'exmaple'", names):
        assert word in reason
    assert not list(host.work_dir.iterdir()), "nothing was made"


@pytest.mark.parametrize("name", ["keylime_agent", "keylime_registrar", "keylime_verifier"])
def test_a_placeholder_left_in_a_snippet(host: Host, name: str) -> None:
    option = "registrar_ip" if name == "keylime_agent" else "ip"
    reason = host.run(name, {option: "<REMOTE_IP>"}).reason
    for word in (".conf", option, "<REMOTE_IP>"):
        assert word in reason


def occupied(address: str, port: int) -> socket.socket:
    taken = socket.socket()
    taken.bind((address, port))
    taken.listen()
    return taken


def check_port_in_use(host: Host, name: str, port: int, options: Mapping[str, str], **environ: str) -> None:
    with occupied(host.address, port):
        reason = host.run(name, options, **environ).reason
    assert host.address in reason
    assert str(port) in reason
    assert "in use" in reason


def test_the_verifiers_port_is_in_use(host: Host) -> None:
    check_port_in_use(host, "keylime_verifier", 8881, {"ip": host.address})


def test_the_verifiers_zeromq_port_is_in_use(host: Host) -> None:
    environ = {
        "KEYLIME_VERIFIER_REVOCATIONS_ENABLED_REVOCATION_NOTIFICATIONS": "['zeromq']",
        "KEYLIME_VERIFIER_REVOCATIONS_ZMQ_IP": host.address,
    }
    check_port_in_use(host, "keylime_verifier", 8992, {"ip": host.address}, **environ)


@pytest.mark.parametrize("port", [8890, 8891])
def test_a_registrars_port_is_in_use(prepared: Host, port: int) -> None:
    options = {"ip": prepared.address, "tls_dir": "generate"}
    check_port_in_use(prepared, "keylime_registrar", port, options)


def test_the_agents_port_is_in_use(prepared: Host, tpm: SoftwareTpm) -> None:
    check_port_in_use(prepared, "keylime_agent", 9002, agent_options(prepared), TCTI=tpm.tcti)


@pytest.mark.parametrize("name", console_scripts())
def test_every_installed_script_starts_by_itself_and_helps(name: str) -> None:
    done = subprocess.run(  # noqa: S603 - our own program
        [program(name), "--help"], capture_output=True, text=True, timeout=_LIMIT_S, check=True
    )
    assert f"usage: {name}" in done.stdout


@pytest.mark.parametrize("name", console_scripts())
def test_wrong_usage_is_told_with_what_would_be_right(name: str) -> None:
    done = run(Order(name, ("--no-such-option",), {"PATH": os.environ["PATH"]}))
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: error: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"`{name} --help` lists them)\n")
    assert done.stdout == ""
