"""The three nodes of the fence demonstration, configured as an administrator does it: by files in /etc."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.demo.fence_client import NodeClient
from tests.fakes.swtpm import SoftwareTpm
from tests.lab.daemon import Daemon
from tests.lab.installation import CA_PASSWORD, Control, Lab, Machine
from tests.lab.network import Network
from tests.lab.private_root import NotPermittedError, PrivateNode, private_root

IMA_LIST = "/sys/kernel/security/ima/ascii_runtime_measurements"
BOOT_LOG = "/sys/kernel/security/tpm0/binary_bios_measurements"
SECURE = "/var/lib/keylime/secure"
UNZIPPED = f"{SECURE}/unzipped"

QUOTE_INTERVAL_S = 1

_VERIFIER = f"""\
[verifier]
ip = 0.0.0.0
quote_interval = {QUOTE_INTERVAL_S}

[revocations]
enabled_revocation_notifications = ['agent', 'zeromq']
zmq_ip = 0.0.0.0
"""
_REGISTRAR = """\
[registrar]
ip = 0.0.0.0
"""
_CA = f"""\
[ca]
password = {CA_PASSWORD}
"""
# The agent's configuration is read as TOML and as INI; each machine has one of them.
_AGENT_QUOTED = """\
[agent]
uuid = "{agent_id}"
registrar_ip = "{control}"
revocation_notification_ip = "{control}"
"""
_AGENT_BARE = """\
[agent]
uuid = {agent_id}
registrar_ip = {control}
revocation_notification_ip = {control}
"""
# The payload's scripts write to /root and call iptables, so the agent stays root.
_AGENT_NODE = """\
[agent]
ip = "{ip}"
contact_ip = "{ip}"
run_as = ""
"""
_SSHD = """\
ListenAddress {ip}
HostKey /etc/ssh/node_key
PidFile /run/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile /root/.ssh/authorized_keys
UsePAM no
"""


@dataclass(frozen=True, slots=True)
class Host:
    """A node with an agent, a TPM and an SSH server."""

    node: PrivateNode
    machine: Machine
    sshd: Daemon

    @property
    def agent(self) -> Daemon:
        return self.machine.agent

    @property
    def agent_id(self) -> str:
        return self.machine.agent_id

    def rules(self) -> list[str]:
        """The rules of the INPUT chain, without its default."""
        listed = self.node.run("iptables", "-S", "INPUT").stdout.splitlines()
        return [line for line in listed if line.startswith("-A")]

    def ssh_files(self) -> dict[str, int]:
        """Names and modes of what is in the machine's /root/.ssh."""
        directory = self.node.path("/root/.ssh")
        if not directory.exists():
            return {}
        return {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}

    def is_secure_mounted(self) -> bool:
        """Whether the machine has its tmpfs for secrets."""
        mounts = Path(f"/proc/{self.node.holder}/mountinfo").read_text()
        return f" {SECURE} " in mounts


@dataclass(frozen=True, slots=True)
class Site:
    """The control node and the two hosts."""

    node: PrivateNode
    control: Control
    client: NodeClient
    first: Host
    second: Host

    @property
    def hosts(self) -> tuple[Host, Host]:
        return (self.first, self.second)

    @property
    def lab(self) -> Lab:
        """The same, as the lab's own tools know it."""
        return Lab(self.control, tuple(host.machine for host in self.hosts))


def write(node: PrivateNode, inside: str, text: str) -> None:
    """A file on the machine, readable by root only; missing directories are made."""
    path = node.path(inside)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)


@contextmanager
def open_site(directory: Path, network: Network) -> Iterator[Site]:
    """The nodes of `network`, configured; nothing runs yet but the TPMs. Raises NotPermittedError."""
    if not all(node.prefix for node in network.nodes):
        raise NotPermittedError(network.kind)
    with ExitStack() as stack:
        control, *hosts = (stack.enter_context(private_root(node)) for node in network.nodes)
        for node in hosts:
            _enable_firewall(node)
        _share_host_keys((control, *hosts))
        services = stack.enter_context(_control(control))
        yield Site(
            control,
            services,
            stack.enter_context(NodeClient(control, services.administrator)),
            stack.enter_context(_host(hosts[0], control, directory / "tpm-ca", _AGENT_QUOTED)),
            stack.enter_context(_host(hosts[1], control, directory / "tpm-ca", _AGENT_BARE)),
        )


def _enable_firewall(node: PrivateNode) -> None:
    """Makes `iptables` work on the node. Raises NotPermittedError when the kernel has no packet filter."""
    if node.run("iptables", "-S", check=False).returncode == 0:
        return
    # The kernel lacks nf_tables, but perhaps not its predecessor. Both are one program with many names.
    node.run("mount", "--bind", "/usr/sbin/xtables-legacy-multi", "/usr/sbin/xtables-nft-multi", check=False)
    answer = node.run("iptables", "-S", check=False)
    if answer.returncode != 0:
        raise NotPermittedError(f"iptables does not work: {answer.stderr.strip()}")


def _share_host_keys(nodes: Sequence[PrivateNode]) -> None:
    """Gives every node a host key and lets all know them, so that no connection asks a question."""
    known = []
    for node in nodes:
        node.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", "/etc/ssh/node_key")
        known.append(f"{node.ip} {node.path('/etc/ssh/node_key.pub').read_text()}")
    for node in nodes:
        write(node, "/etc/ssh/ssh_known_hosts", "".join(known))


@contextmanager
def _control(node: PrivateNode) -> Iterator[Control]:
    write(node, "/etc/keylime/verifier.conf.d/demo.conf", _VERIFIER)
    write(node, "/etc/keylime/registrar.conf.d/demo.conf", _REGISTRAR)
    write(node, "/etc/keylime/ca.conf.d/demo.conf", _CA)
    control = Control(node, Daemon(node, "keylime_verifier", {}), Daemon(node, "keylime_registrar", {}), {})
    try:
        yield control
    finally:
        control.registrar.stop()
        control.verifier.stop()


@contextmanager
def _host(node: PrivateNode, control: PrivateNode, tpm_ca: Path, snippet: str) -> Iterator[Host]:
    agent_id = str(uuid.uuid4())
    configuration = snippet.format(agent_id=agent_id, control=control.ip)
    write(node, "/etc/keylime/agent.conf.d/agent.conf", configuration)
    write(node, "/etc/keylime/agent.conf.d/node.conf", _AGENT_NODE.format(ip=node.ip))
    write(node, "/etc/ssh/sshd_config", _SSHD.format(ip=node.ip))
    node.path("/run/sshd").mkdir()
    # Without PAM sshd refuses root where the distribution has locked the account's password.
    node.run("sed", "-i", "s/^root:![^:]*:/root:*:/", "/etc/shadow")
    tpm = SoftwareTpm.manufactured(node.disk / "tpm", ca_directory=tpm_ca)
    with tpm:
        agent = Daemon(node, "keylime_agent", {"TCTI": tpm.tcti})
        machine = Machine(node, agent_id, tpm, agent, node.path(IMA_LIST), node.path(BOOT_LOG))
        sshd = Daemon(node, "sshd", {}, programs=_foreground_sshd(node.disk / "programs"))
        try:
            yield Host(node, machine, sshd)
        finally:
            agent.stop()
            sshd.stop()


def _foreground_sshd(directory: Path) -> Path:
    """A directory with an `sshd` that stays in the foreground and says on standard error what it does."""
    directory.mkdir()
    program = directory / "sshd"
    program.write_text("#!/bin/sh\nexec /usr/sbin/sshd -D -e\n")
    program.chmod(0o700)
    return directory
