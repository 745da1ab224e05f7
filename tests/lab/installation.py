"""A whole installation: verifier, registrar and tenant on the first node, an agent on each of the others."""

import json
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keylime.measured_boot.event_log import parse_event_log
from keylime.tpm.device import Tpm
from tests.fakes.swtpm import SoftwareTpm
from tests.lab.daemon import PROGRAMS, Daemon, program, run_program
from tests.lab.network import Node
from tests.lab.rest import Identity, Rest, client_context

CA_PASSWORD = "lab"  # noqa: S105  # of a CA that lives as long as the lab

Sections = Mapping[str, Mapping[str, str]]


def write_config(path: Path, sections: Sections) -> Path:
    """An INI file with these sections, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for section, options in sections.items():
        lines += [f"[{section}]", *(f"{name} = {value}" for name, value in options.items()), ""]
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return path


@dataclass(slots=True)
class Control:
    """The control node: verifier, registrar, and the tenant's command line."""

    node: Node
    verifier: Daemon
    registrar: Daemon
    environment: dict[str, str]
    programs: Path = PROGRAMS

    @property
    def administrator(self) -> Identity:
        """The client certificate that the verifier made for operators."""
        cv_ca = self.node.work_dir / "cv_ca"
        return Identity(cv_ca / "client-cert.crt", cv_ca / "client-private.pem")

    def verifier_api(self, identity: Identity | None) -> Rest:
        """The verifier's REST interface, as whoever holds `identity`."""
        return Rest(self.node.ip, 8881, client_context(identity))

    def registrar_api(self, identity: Identity | None) -> Rest:
        """The registrar's TLS interface, as whoever holds `identity`."""
        return Rest(self.node.ip, 8891, client_context(identity))

    @property
    def registration_api(self) -> Rest:
        """The registrar's plain interface, which agents use."""
        return Rest(self.node.ip, 8890, None)

    def tenant(
        self,
        *arguments: str | Path,
        check: bool = True,
        limit_s: float = 100,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs keylime_tenant with these arguments. Raises RuntimeError with its output when it fails."""
        done = run_program(
            self.node,
            self.programs / "keylime_tenant",
            *arguments,
            environ={**self.environment, **(environ or {})},
            limit_s=limit_s,
        )
        if check and done.returncode != 0:
            words = " ".join(map(str, arguments))
            raise RuntimeError(
                f"keylime_tenant {words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def status(self, agent_id: str) -> dict[str, Any]:
        """What the verifier says about an agent."""
        answer = self.tenant("--json", "-c", "cvstatus", "-u", agent_id)
        document: dict[str, Any] = json.loads(answer.stdout)
        return dict(document.get(agent_id, document))


@dataclass(slots=True)
class Machine:
    """An agent node with a TPM, and files that stand for the kernel's IMA list and the firmware's log."""

    node: Node
    agent_id: str
    tpm: SoftwareTpm
    agent: Daemon
    ima_list: Path
    boot_log: Path | None = None

    @property
    def secure(self) -> Path:
        """Where the agent keeps keys and payload: a tmpfs, or what takes its place in test mode."""
        in_test_mode = self.node.environment.get("KEYLIME_TEST") == "on"
        return self.node.work_dir / ("tmpfs-dev" if in_test_mode else "secure")

    @property
    def identity(self) -> Identity:
        """The certificate and key of the agent's listener, which are on the machine's disk."""
        return Identity(self.node.work_dir / "server-cert.crt", self.node.work_dir / "server-private.pem")

    def api(self, identity: Identity | None) -> Rest:
        """The agent's REST interface, as whoever holds `identity`."""
        return Rest(self.node.ip, 9002, client_context(identity))

    def boot(self, log: bytes | None) -> None:
        """Power on (or off and on): the TPM starts anew and gets what the firmware of `log` measured."""
        self.tpm.restart()
        self.ima_list.write_bytes(b"")
        if log is None or self.boot_log is None:
            return
        self.boot_log.write_bytes(log)
        with Tpm.open(self.tpm.tcti) as tpm:
            for event in parse_event_log(log).events:
                if event.is_extended:
                    tpm.extend_pcr(event.pcr, event.digests)

    def measure(self, *files: Path) -> None:
        """What IMA does when files are run: a line in the list, and PCR 10 extended in every bank.

        The first entry of a boot is boot_aggregate.
        """
        emulator, environ = program("keylime_ima_emulator"), {"TCTI": self.tpm.tcti}
        arguments: list[str | Path] = ["-f", self.ima_list, "--append", *files]
        run_program(self.node, emulator, *arguments, environ=environ, limit_s=100).check_returncode()


@dataclass(frozen=True, slots=True)
class Options:
    """What differs between labs: options by program, over those that the lab needs itself."""

    verifier: Mapping[str, str] = field(default_factory=dict)
    revocations: Mapping[str, str] = field(default_factory=dict)
    registrar: Mapping[str, str] = field(default_factory=dict)
    tenant: Mapping[str, str] = field(default_factory=dict)
    agent: Mapping[str, str] = field(default_factory=dict)
    ca: Mapping[str, str] = field(default_factory=dict)
    banks: tuple[str, ...] = ("sha1", "sha256")


@contextmanager
def control_node(node: Node, options: Options) -> Iterator[Control]:
    """Verifier and registrar, configured but not started; stopped at the end."""
    etc = node.disk / "etc/keylime"
    node.work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = {
        "verifier": {
            "verifier": {"ip": node.ip, "quote_interval": "1", **options.verifier},
            "revocations": {
                "enabled_revocation_notifications": "['agent', 'zeromq']",
                "zmq_ip": node.ip,
                **options.revocations,
            },
        },
        "registrar": {"registrar": {"ip": node.ip, **options.registrar}},
        "tenant": {
            "tenant": {
                "verifier_ip": node.ip,
                "registrar_ip": node.ip,
                "tpm_cert_store": str(node.work_dir / "tpm_cert_store"),
                **options.tenant,
            }
        },
        "ca": {"ca": {"password": CA_PASSWORD, **options.ca}},
    }
    environment = {
        f"KEYLIME_{name.upper()}_CONFIG": str(write_config(etc / f"{name}.conf", sections))
        for name, sections in files.items()
    }
    control = Control(
        node,
        Daemon(node, "keylime_verifier", environment),
        Daemon(node, "keylime_registrar", environment),
        environment,
    )
    try:
        yield control
    finally:
        control.registrar.stop()
        control.verifier.stop()


@contextmanager
def machine(
    node: Node,
    control: Control,
    ca_directory: Path,
    options: Options,
    *,
    agent_id: str | None = None,
    program: str = "keylime_agent",
) -> Iterator[Machine]:
    """An agent's machine with a manufactured TPM, neither booted nor started; stopped at the end."""
    node.work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    securityfs = node.disk / "sys/kernel/security"
    securityfs.mkdir(parents=True, exist_ok=True)
    agent_id = agent_id or str(uuid.uuid4())
    ima_list, boot_log = securityfs / "ascii_runtime_measurements", securityfs / "binary_bios_measurements"
    agent = {
        "uuid": f'"{agent_id}"',
        "ip": f'"{node.ip}"',
        "contact_ip": f'"{node.ip}"',
        "registrar_ip": f'"{control.node.ip}"',
        "verifier_url": f'"https://{control.node.ip}:8881"',
        "revocation_notification_ip": f'"{control.node.ip}"',
        "enable_revocation_notifications": "true",
        "run_as": '""',
        "ima_ml_path": f'"{ima_list}"',
        "measuredboot_ml_path": f'"{boot_log}"',
        **options.agent,
    }
    config = write_config(node.disk / "etc/keylime/agent.conf", {"agent": agent})
    tpm = SoftwareTpm.manufactured(node.disk / "tpm", ca_directory=ca_directory, banks=options.banks)
    with tpm:
        daemon = Daemon(node, program, {"KEYLIME_AGENT_CONFIG": str(config), "TCTI": tpm.tcti})
        try:
            yield Machine(node, agent_id, tpm, daemon, ima_list, boot_log)
        finally:
            daemon.stop()


@dataclass(frozen=True, slots=True)
class Lab:
    """A control node and its machines."""

    control: Control
    machines: tuple[Machine, ...]

    def start_services(self) -> None:
        """Verifier (which makes the CA), then registrar; returns when both listen."""
        self.control.verifier.start().wait_for("Listening on")
        self.control.registrar.start().wait_for("Listening on")

    def trust_manufacturer(self) -> None:
        """Puts the CA of the TPMs' EK certificates into the tenant's store."""
        trust_manufacturer(self.control, self.machines[0])

    def start_agent(self, which: Machine) -> None:
        """Gives a machine the verifier's CA certificate, starts its agent; returns when it is registered."""
        start_agent(self.control, which)


def trust_manufacturer(control: Control, which: Machine) -> None:
    """Puts the CA of a machine's EK certificate into the tenant's store."""
    store = control.node.work_dir / "tpm_cert_store"
    store.mkdir(exist_ok=True)
    for certificate in which.tpm.ca_certificates:
        (store / certificate.name).write_bytes(certificate.read_bytes())


def start_agent(control: Control, which: Machine) -> None:
    """Gives a machine the verifier's CA certificate, starts its agent; returns when it is registered."""
    prepare_agent(control, which)
    since = which.agent.mark()
    which.agent.start().wait_for("is registered and active", since=since)


def prepare_agent(control: Control, which: Machine) -> None:
    """Copies the verifier's CA certificate to a machine, without which no agent starts."""
    (which.node.work_dir / "cv_ca").mkdir(exist_ok=True)
    certificate = control.node.work_dir / "cv_ca/cacert.crt"
    (which.node.work_dir / "cv_ca/cacert.crt").write_bytes(certificate.read_bytes())


@contextmanager
def open_lab(directory: Path, nodes: Sequence[Node], options: Options | None = None) -> Iterator[Lab]:
    """An installation on `nodes`, the first being the control node. Nothing is started yet but the TPMs."""
    options = options or Options()
    with ExitStack() as stack:
        control = stack.enter_context(control_node(nodes[0], options))
        machines = [
            stack.enter_context(machine(node, control, directory / "tpm-ca", options)) for node in nodes[1:]
        ]
        yield Lab(control, tuple(machines))
