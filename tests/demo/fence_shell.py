"""First act: keys delivered to two machines, one of them hacked, and a shell script that fences it off.

Each step returns in words what it saw, and raises when it did not see it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keylime.messages.revocation import RevocationMessage, SignedRevocation
from keylime.revocation.signing import sign_revocation
from tests.demo.fence_nodes import SECURE, UNZIPPED, Host
from tests.demo.fence_stage import PAYLOADS, SSH, SSH_FILES, Stage, Step, expect, for_each, side_by_side
from tests.lab.private_root import PrivateNode
from tests.lab.waiting import await_value

_ROUNDS = 5
_CV_CA = {"cacert.crt", "client-cert.crt", "client-private.pem", "server-cert.crt", "server-private.pem"}


@dataclass(frozen=True, slots=True)
class ShellAct:
    """The steps, in order."""

    stage: Stage

    STEPS = 14

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.stage.site.hosts

    def run(self, step: Step) -> None:
        """All steps."""
        step("power on: TPMs, boot logs, SSH servers", self.power_on)
        step("keylime_verifier makes its CA; keylime_registrar", self.start_services)
        step("the agents register, one configured in TOML, one in INI", self.register)
        step("allowlist of node1, exclude list, payload with an SSH key pair", self.prepare)
        step("add node1: allowlist, exclude list, empty reference state", self.add_first)
        step("add node2: empty reference state, `-v` without a value", self.add_second)
        step(f"both are attested {_ROUNDS} times", self.attest)
        step("the payload is in place, autorun.sh has run", self.inspect_payload)
        step("SSH without passwords: control to nodes, node to node", self.log_in)
        step("forged revocations are ignored", self.forge)
        step("node1 runs greets.sh, which is listed", self.run_approved)
        step("greets.sh gets one line more and runs", self.run_tampered)
        step("node1 loses its keys, node2 drops what node1 sends", self.fence)
        step("node1 is cut off from node2, the verifier is not", self.inspect_fence)

    def power_on(self) -> str:
        def switch_on(host: Host) -> None:
            host.machine.boot(self.stage.boot_log)
            host.sshd.start().wait_for("Server listening on")

        for_each(self.hosts, switch_on)
        # What a kernel measures early; the allowlist is to cover the one, the exclude list the other.
        self.hosts[0].machine.measure(Path("/etc/passwd"), Path("/usr/bin/env"))
        return f"boot log of {len(self.stage.boot_log)} bytes replayed into 2 TPMs; sshd on both nodes"

    def start_services(self) -> str:
        site = self.stage.site
        site.control.verifier.start().wait_for(r"Listening on 0\.0\.0\.0:8881")
        site.control.registrar.start().wait_for(r"Listening on 0\.0\.0\.0:8890/8891")
        made = {path.name for path in (site.node.work_dir / "cv_ca").iterdir()}
        expect("what is missing in cv_ca", _CV_CA - made, set())
        return f"8881, 8890 and 8891 are open on all addresses; cv_ca has {len(made)} files"

    def register(self) -> str:
        site = self.stage.site
        site.lab.trust_manufacturer()

        def start(host: Host) -> None:
            site.lab.start_agent(host.machine)
            host.agent.wait_for(f"Agent UUID: {host.agent_id}")
            expect(f"tmpfs on {SECURE} of {host.node.name}", host.is_secure_mounted(), True)

        for_each(self.hosts, start)
        listed = site.control.tenant("-c", "reglist", "--cert", "default").stdout
        expect("not in reglist", [host.node.name for host in self.hosts if host.agent_id not in listed], [])
        return f"both are active under the ids of their snippets; a tmpfs on {SECURE} of each"

    def prepare(self) -> str:
        node = self.stage.site.node
        shutil.copytree(PAYLOADS / "shell", node.path("/root/payload"))
        first = self.hosts[0].node
        side_by_side(self.stage.make_keys, lambda: first.run(PAYLOADS / "make-allowlist.sh"))
        made = first.path("/root/allowlist.txt").read_bytes()
        node.path("/root/allowlist.txt").write_bytes(made)
        shutil.copy(PAYLOADS / "exclude.txt", node.path("/root/exclude.txt"))
        node.path("/root/mb-refstate.json").write_text("{}\n")
        files = sorted(path.name for path in node.path("/root/payload").iterdir())
        return f"allowlist.txt has {len(made.splitlines())} lines; payload: {' '.join(files)}"

    def add_first(self) -> str:
        self.stage.add(self.hosts[0], "--allowlist", "allowlist.txt", "--exclude", "exclude.txt")
        return "EK certificate and quote checked, U delivered; the verifier has the agent"

    def add_second(self) -> str:
        self.stage.add(self.hosts[1], verifier=("-v",))
        return "the configured verifier was asked; it has the agent"

    def attest(self) -> str:
        counts = [self.stage.await_count(host, _ROUNDS) for host in self.hosts]
        return f"Get Quote, attestation_count {counts[0]} and {counts[1]}"

    def inspect_payload(self) -> str:
        for host in self.hosts:
            host.agent.wait_for(r"payload script autorun\.sh: exit status 0")
            self._inspect_certificates(host)
            expect(f"/root/.ssh on {host.node.name}", host.ssh_files(), SSH_FILES)
            self._compare_with_payload(host)
        return f"{UNZIPPED} holds scripts and own certificate; /root/.ssh has 3 files of mode 600"

    def _inspect_certificates(self, host: Host) -> None:
        unzipped = host.node.path(UNZIPPED)
        authority = x509.load_pem_x509_certificate((unzipped / "cacert.crt").read_bytes())
        own = x509.load_pem_x509_certificate((unzipped / f"{host.agent_id}-cert.crt").read_bytes())
        own.verify_directly_issued_by(authority)
        certificates = {path.name for path in unzipped.glob("*-cert.crt")}
        expected = {f"{host.agent_id}-cert.crt", "RevocationNotifier-cert.crt"}
        expect(f"certificates on {host.node.name}", certificates, expected)

    def _compare_with_payload(self, host: Host) -> None:
        payload = self.stage.site.node.path("/root/payload")
        pairs = [(f"{UNZIPPED}/{path.name}", path) for path in payload.iterdir()]
        pairs += [(f"/root/.ssh/{name}", payload / name) for name in ("id_rsa", "id_rsa.pub")]
        pairs += [("/root/.ssh/authorized_keys", payload / "id_rsa.pub")]
        differ = [at for at, given in pairs if host.node.path(at).read_bytes() != given.read_bytes()]
        expect(f"files on {host.node.name} unlike those of the payload", differ, [])

    def log_in(self) -> str:
        first, second = self.hosts
        control = self.stage.site.node

        def connect(here: PrivateNode, there: Host, *identity: str) -> None:
            came = here.run(*SSH, *identity, there.node.ip, "hostname")
            expect(f"ssh {here.name} -> {there.node.name}", came.stdout, f"{there.node.name}\n")

        side_by_side(
            lambda: connect(control, first, "-i", "payload/id_rsa"),
            lambda: connect(control, second, "-i", "payload/id_rsa"),
            lambda: connect(first.node, second),
            lambda: connect(second.node, first),
        )
        return "control -> node1, control -> node2, node1 -> node2, node2 -> node1"

    def forge(self) -> str:
        forged = self._forgeries()
        for host in self.hosts:
            since = host.agent.mark()
            self.stage.send(host, *forged)
            host.agent.wait_for(r"(?s)revocation message ignored.*revocation message ignored", since=since)
            expect(f"rules on {host.node.name}", host.rules(), [])
            expect(f"/root/.ssh on {host.node.name}", host.ssh_files(), SSH_FILES)
            expect(f"actions on {host.node.name}", host.agent.text().count("Executing"), 0)
        return "one unsigned, one signed with a stranger's key, to each node: no action, no rule"

    def _forgeries(self) -> tuple[SignedRevocation, SignedRevocation]:
        message = RevocationMessage(
            type="revocation",
            ip=self.hosts[0].node.ip,
            agent_id=self.hosts[0].agent_id,
            port=9002,
            tpm_policy="{}",
            meta_data="{}",
            event_time="Sun Nov 22 18:05:08 2026",
            event_id="forged",
            severity_label="emergency",
            context="{}",
        )
        stranger = rsa.generate_private_key(65537, 2048)
        pem = stranger.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return sign_revocation(message, ""), sign_revocation(message, pem)

    def run_approved(self) -> str:
        expect("greets.sh says", self.stage.run_greets(), "Hello!\n")
        return f"it says Hello!; no alarm, attestation_count {self.stage.await_rounds(self.hosts[0], 2)}"

    def run_tampered(self) -> str:
        response = self.stage.tamper("shell script")
        return f"it says Hacked!; the verifier names /root/greets.sh after {response.detected:.2f} s"

    def fence(self) -> str:
        first, second = self.hosts
        response = self.stage.responses[-1]
        await_value(lambda: first.ssh_files() == {}, "node1 has lost its SSH keys")
        response.executed["node1"] = response.elapsed()
        await_value(lambda: second.rules() == [self.stage.rule], f"node2 has the rule {self.stage.rule}")
        response.executed["node2"] = response.elapsed()
        expect("rules on node1", first.rules(), [])
        expect("/root/.ssh on node2", second.ssh_files(), SSH_FILES)
        for host in self.hosts:
            host.agent.wait_for("Action type: revocation")
            host.agent.wait_for(rf"Compromised system: {first.agent_id} \({first.node.ip}\)")
            executed = host.agent.text().count("Executing revocation action local_action_rm_ssh.sh")
            expect(f"executions on {host.node.name}", executed, 1)
        return (
            f"/root/.ssh of node1 is empty after {response.executed['node1']:.2f} s;\n"
            f"    node2 has {self.stage.rule} after {response.executed['node2']:.2f} s"
        )

    def inspect_fence(self) -> str:
        first, second = self.hosts
        control = self.stage.site.node
        shown = self.stage.site.control.status(first.agent_id)["operational_state"]
        expect("state of node1, as the tenant shows it", shown, "Invalid Quote")
        ping = ("ping", "-c", "1", "-W", "1")
        key = ("-i", "payload/id_rsa")
        lost, silent, _, _, refused, count = side_by_side(
            lambda: first.node.run(*ping, second.node.ip, check=False).returncode,
            lambda: first.node.run(*SSH, second.node.ip, "true", check=False).stderr,
            lambda: control.run(*ping, second.node.ip).returncode,
            lambda: control.run(*SSH, *key, second.node.ip, "true").returncode,
            lambda: control.run(*SSH, *key, first.node.ip, "true", check=False).stderr,
            lambda: self.stage.await_rounds(second, 2),
        )
        expect("exit status of ping node1 -> node2 (1: no answer)", lost, 1)
        expect("ssh node1 -> node2 times out", "timed out" in str(silent), True)
        expect("node1 refuses the payload's key", "Permission denied" in str(refused), True)
        return f"ping and ssh time out; node1 is Invalid Quote, node2 attested on to {count}"
