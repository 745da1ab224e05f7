"""Second act: the same machines after a reboot, with revocation actions that are Python modules.

Each step returns in words what it saw, and raises when it did not see it.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tests.demo.fence_nodes import UNZIPPED, Host
from tests.demo.fence_stage import PAYLOADS, SSH_FILES, Stage, Step, expect, for_each
from tests.lab.waiting import await_value

_OWN = "local_action_rm_ssh"
_OTHERS = "local_action_fence_others"


@dataclass(frozen=True, slots=True)
class PythonAct:
    """The steps, in order. One module acts where its own serial is meant, another elsewhere."""

    stage: Stage
    _since: dict[str, int] = field(default_factory=dict)

    STEPS = 6

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.stage.site.hosts

    def run(self, step: Step) -> None:
        """All steps."""
        step("delete, reboot, repair, register again", self.reboot)
        step("add both with a payload of Python actions", self.add)
        step("the revocation of the first act comes once more", self.send_again)
        step("greets.sh gets one line more and runs", self.run_tampered)
        step("the module acts on node1, its opposite on node2", self.fence)
        step("everything stops cleanly", self.stop)

    def reboot(self) -> str:
        self.hosts[0].node.run("sed", "-i", "$ d", "greets.sh")
        for_each(self.hosts, self._reboot)
        return "certificates revoked; secrets, PCRs, IMA list and rules start anew; both are registered"

    def _reboot(self, host: Host) -> None:
        said = self.stage.site.control.tenant("-c", "delete", "-u", host.agent_id).stdout
        expect(f"the certificate of {host.node.name} was revoked", "is revoked" in said, True)
        self.stage.stop_agent(host)
        host.node.run("iptables", "-F", "INPUT")  # no rule survives a reboot
        shutil.rmtree(host.node.path("/root/.ssh"))
        host.machine.boot(self.stage.boot_log)
        if host is self.hosts[0]:
            host.machine.measure(Path("/etc/passwd"), Path("/root/greets.sh"))
        self._since[host.node.name] = host.agent.mark()
        self.stage.site.lab.start_agent(host.machine)

    def add(self) -> str:
        payload = self.stage.site.node.path("/root/payload")
        shutil.rmtree(payload)
        shutil.copytree(PAYLOADS / "python", payload)
        self.stage.make_keys()
        self._write_opposite(payload)
        lists = ("--allowlist", "allowlist.txt", "--exclude", "exclude.txt")
        first, second = self.hosts
        self.stage.add(second)  # before node1 passes: whoever is enrolled then is told that it is well again
        self.stage.add(first, *lists)
        for host in self.hosts:
            self._wait_for(host, r"payload script autorun\.sh: exit status 0")
            link = host.node.path(f"{UNZIPPED}/mycert.crt")
            expect(f"mycert.crt on {host.node.name}", str(link.readlink()), f"{host.agent_id}-cert.crt")
            expect(f"/root/.ssh on {host.node.name}", host.ssh_files(), SSH_FILES)
        counts = [self.stage.await_count(host, 2) for host in self.hosts]
        return f"mycert.crt is the own certificate; attestation_count {counts[0]} and {counts[1]}"

    def send_again(self) -> str:
        for host in self.hosts:
            self._wait_for(
                host, rf"about agent {self.hosts[0].agent_id} .*, event internal\.verifier\.cleared"
            )
        former = self.stage.sent_revocation()
        for host in self.hosts:
            since = host.agent.mark()
            self.stage.send(host, former)
            host.agent.wait_for("is about what is over: a later message about that agent came", since=since)
            executed = self._log(host).count("Executing revocation action")
            expect(f"actions run on {host.node.name} since the reboot", executed, 0)
            expect(f"rules on {host.node.name}", host.rules(), [])
        return "node1 passes again and both were told so: the old message is over; no action, no rule"

    def _write_opposite(self, payload: Path) -> None:
        action = (payload / f"{_OWN}.py").read_text()
        expect("comparisons of serials", action.count("serial == ca"), 1)
        opposite = action.replace("serial == ca", "serial != ca").replace(f'"{_OWN}"', f'"{_OTHERS}"')
        (payload / f"{_OTHERS}.py").write_text(opposite)
        (payload / "action_list").write_text(f"{_OWN}, {_OTHERS}\n")

    def run_tampered(self) -> str:
        response = self.stage.tamper("Python module")
        return f"it says Hacked!; the verifier names /root/greets.sh after {response.detected:.2f} s"

    def fence(self) -> str:
        first, second = self.hosts
        response = self.stage.responses[-1]
        compromised = f"A node in the network has been compromised: {first.node.ip}"
        for host, acting, idle in ((first, _OWN, _OTHERS), (second, _OTHERS, _OWN)):
            self._await_rule(host)
            response.executed[host.node.name] = response.elapsed()
            self._wait_for(host, rf"keylime\.{acting} - INFO - {compromised}")
            self._wait_for(host, f"Executing revocation action {idle}")
        self.stage.await_state(first, "Invalid Quote")
        count = self.stage.await_rounds(second, 1)
        for host in self.hosts:
            # By now the module that was to do nothing has had time to do something.
            expect(f"rules on {host.node.name}", host.rules(), [self.stage.rule])
            expect(f"reports on {host.node.name}", self._log(host).count(compromised), 1)
        return f"{_OWN} on node1, {_OTHERS} on node2: one rule each; node2 attested on to {count}"

    def stop(self) -> str:
        for_each(self.hosts, self.stage.stop_agent)
        for daemon in (self.stage.site.control.registrar, self.stage.site.control.verifier):
            expect(f"exit status of {daemon.name}", daemon.stop(), 0)
        return "4 daemons ended with 0 on SIGTERM; the agents took their tmpfs with them"

    def _await_rule(self, host: Host) -> None:
        what = f"{host.node.name} has the rule {self.stage.rule}"
        await_value(lambda: host.rules() == [self.stage.rule], what)

    def _wait_for(self, host: Host, pattern: str) -> None:
        host.agent.wait_for(pattern, since=self._since[host.node.name])

    def _log(self, host: Host) -> str:
        return host.agent.text(self._since[host.node.name])
