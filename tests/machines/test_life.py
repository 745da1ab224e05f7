"""Three installed machines, set up as existing guides say, through what happens to machines.

Commands are typed as they are printed in guides of the field: systemd's, those of an administrator's shell,
and those of the programs, with nothing but packaged defaults where the guides have nothing else.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.demo.fence_stage import PAYLOADS
from tests.lab.waiting import await_value
from tests.machines.booted import BootedMachine
from tests.machines.commands import PUSH, README, ROOT, TWO_MACHINES, blocks_of
from tests.machines.conftest import BOOT_LOG, Boot
from tests.machines.test_documentation import trust_maker

IDS = {
    "node1": "d111ec46-34d8-41af-ad56-d560bc97b2e8",
    "node2": "e2c0ffee-0000-4000-8000-d560bc97b2e9",
}
SECURE = "/var/lib/keylime/secure"
# As printed for the two kinds of agents of the field: TOML, and INI.
QUOTED = """\
mkdir -p /etc/keylime/agent.conf.d
cat << EOF > /etc/keylime/agent.conf.d/agent.conf
[agent]
uuid = "{uuid}"
registrar_ip = "192.0.2.1"
revocation_notification_ip = "192.0.2.1"
EOF
chown -R keylime:tss /etc/keylime
chmod -R 600 /etc/keylime
"""
BARE = QUOTED.replace('"', "")
FETCH_CA = """\
mkdir -p /var/lib/keylime/cv_ca
scp 192.0.2.1:/var/lib/keylime/cv_ca/cacert.crt /var/lib/keylime/cv_ca
chown -R keylime:tss /var/lib/keylime/cv_ca
"""
FOREIGN_CA = """\
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \\
  -subj '/CN=Somebody else' -keyout /dev/null -out {place}/cacert.crt
chown keylime:tss {place}/cacert.crt
"""
GREETS = """\
cat << EOF > /root/greets.sh
#!/bin/bash
echo "Hello!"
EOF
chmod a+x /root/greets.sh
"""
RESOURCE_MANAGER = "/etc/systemd/system/tpm2-abrmd.service"
# As Debian's, which waits for a device; a software TPM has none.
MANAGED = """\
[Service]
Type=dbus
BusName=com.intel.tss2.Tabrmd
ExecStart=/usr/sbin/tpm2-abrmd --tcti={tcti}
User=tss
"""


@dataclass(slots=True)
class Site:
    """The three machines."""

    control: BootedMachine
    node1: BootedMachine
    node2: BootedMachine

    @property
    def nodes(self) -> tuple[BootedMachine, BootedMachine]:
        return (self.node1, self.node2)

    def tenant(self, arguments: str, *, check: bool = True) -> str:
        """What `keylime_tenant` says on the control plane, with the CA's password in its environment."""
        done = self.control.run(f"KEYLIME_CA_PASSWORD=secret keylime_tenant {arguments}", check=check)
        return done.stdout + done.stderr

    def add(self, node: BootedMachine, arguments: str = "") -> None:
        self.tenant(
            f"-v 127.0.0.1 -t {node.ip} -u {IDS[node.name]} --cert default --include payload {arguments} "
            "--mb_refstate mb-refstate.json -c add"
        )

    def status(self, node: BootedMachine) -> dict[str, Any]:
        """What the verifier tells of a node."""
        told = self.control.run(f"keylime_tenant --json -c cvstatus -u {IDS[node.name]}").stdout
        answer = json.loads(told)
        return dict(answer.get(IDS[node.name], answer))

    def await_passes(self, node: BootedMachine, more: int = 2) -> None:
        """Returns when a node has passed `more` times from now."""
        goal = int(self.status(node).get("attestation_count", 0)) + more

        def passed() -> bool:
            now = self.status(node)
            assert now["attestation_status"] != "FAIL", now.get("last_findings", now)
            return int(now["attestation_count"]) >= goal

        await_value(passed, f"{node.name} passes {more} times")


@pytest.fixture
def site(boot: Boot) -> Site:
    """Packages are installed, nothing is configured."""
    control, node1, node2 = boot("control", "node1", "node2")
    on_control, on_node = blocks_of(README, TWO_MACHINES)[:2]
    control.run(on_control)
    for node in (node1, node2):
        node.run(on_node)
        # The kernel, which is not the machine's own, may lack nf_tables, but not its predecessor.
        node.run("iptables -S || update-alternatives --set iptables /usr/sbin/iptables-legacy")
        node.run("iptables -S")
    return Site(control, node1, node2)


def test_three_machines_live(site: Site) -> None:
    for step in STEPS:
        began = time.monotonic()
        try:
            step(site)
        except (AssertionError, TimeoutError):
            for machine in (site.control, site.node1, site.node2):
                print(f"--- {machine.name}\n{machine.journal('keylime_*')[-4000:]}", flush=True)
            raise
        took = time.monotonic() - began
        print(f"{step.__name__.strip('_').replace('_', ' '):66}{took:6.1f} s", flush=True)


def _what_the_firewalls_service_does_not_open_is_closed(site: Site) -> None:
    service = (ROOT / "systemd/firewalld/keylime.xml").read_text("utf-8")
    ports = (*re.findall(r'port="([0-9]+)"', service), "22")  # and what administrators come in by
    rules = ("-i lo", "-p icmp", "-p tcp ! --syn", *(f"-p tcp --dport {port}" for port in ports))
    for machine in (site.control, site.node1):  # node2 is to make rules of its own
        machine.run("\n".join(f"iptables -A INPUT {rule} -j ACCEPT" for rule in rules))
        machine.run("iptables -P INPUT DROP")


def _services_start_with_packaged_files_alone(site: Site) -> None:
    control = site.control
    control.run("systemctl start --no-block keylime_registrar")
    control.await_journal("keylime_registrar", "keylime_verifier")  # whose start makes the certificates
    control.run("systemctl enable --now keylime_verifier.service")
    control.run("systemctl enable --now keylime_registrar.service")
    look = "stat -c '%a %U' /var/lib/keylime/cv_ca; cd /var/lib/keylime/cv_ca; sha256sum *"
    made = control.run(look).stdout
    assert made.startswith("700 keylime\n")
    for name in ("cacert", "server-cert", "client-cert"):
        assert f" {name}.crt\n" in made
    control.run("cd /var/lib/keylime/cv_ca && openssl verify -CAfile cacert.crt server-cert.crt")
    control.run("systemctl restart keylime_verifier keylime_registrar")
    assert control.run(look).stdout == made
    for port in (8881, 8890, 8891):
        site.node1.run(f"timeout 10 bash -c '</dev/tcp/192.0.2.1/{port}'")
    assert control.run("ps -o user= -C keylime_verifier | sort -u").stdout.strip() == "keylime"


def _an_agent_without_the_authority_says_what_is_missing(site: Site) -> None:
    for node, snippet in zip(site.nodes, (QUOTED, BARE), strict=True):
        node.run(snippet.format(uuid=IDS[node.name]))
    node = site.node1
    assert node.run("systemctl start keylime_agent.service", check=False).returncode != 0
    node.await_journal("keylime_agent", "cv_ca/cacert.crt")
    node.run("systemctl stop keylime_agent.service")


def _agents_register_with_snippets_as_they_are_printed(site: Site) -> None:
    for node in site.nodes:
        node.run(FETCH_CA)
        node.run("systemctl enable --now keylime_agent.service")
        found = node.run('journalctl -u keylime_agent.service | grep "Agent UUID:"').stdout
        assert IDS[node.name] in found
        node.await_journal("keylime_agent", "is registered and active")
        # Its packaged contact address is loopback, the registrar is elsewhere.
        assert "set contact_ip to an address of this machine" in node.journal("keylime_agent")
        assert node.run("ps -o user=,group= -C keylime_agent").stdout.split() == ["keylime", "tss"]
    listed = site.tenant("-v 127.0.0.1 --cert default -c reglist")
    assert all(agent_id in listed for agent_id in IDS.values())


def _a_stopped_agent_leaves_its_mount(site: Site) -> None:
    node = site.node1
    look = f"findmnt -no FSTYPE,OPTIONS {SECURE}; stat -c '%a %U:%G' {SECURE}"
    shown = node.run(look).stdout
    assert re.match(r"tmpfs .*size=1024k", shown)
    assert shown.endswith("700 keylime:tss\n")
    node.run("systemctl stop keylime_agent")
    assert node.run(look).stdout == shown
    assert "active (mounted)" in node.run("systemctl status var-lib-keylime-secure.mount").stdout
    node.run("systemctl start keylime_agent")


def _the_tenant_tells_where_it_looks_for_an_agent(site: Site) -> None:
    trust_maker(site.control, site.node1)
    done = site.control.run(f"timeout 10 keylime_tenant -u {IDS['node1']} -c add", check=False)
    said = done.stdout + done.stderr
    assert "name its address with -t, or set [agent] contact_ip" in said
    assert IDS["node1"] not in site.tenant("--json -c cvlist")


def _agents_are_added_with_payload_lists_and_an_empty_reference_state(site: Site) -> None:
    control = site.control
    for node in site.nodes:  # the payload writes to /root and calls iptables
        node.run(
            "sed -i '$ a run_as = \"\"' /etc/keylime/agent.conf.d/agent.conf; systemctl restart keylime_agent"
        )
        node.await_journal("keylime_agent", "is registered and active")
    for path in (PAYLOADS / "shell").iterdir():
        control.write(f"/root/payload/{path.name}", path.read_text())
    control.run('ssh-keygen -q -b 2048 -t rsa -N "" -f payload/id_rsa')
    control.write("/root/exclude.txt", (PAYLOADS / "exclude.txt").read_text())
    control.run('echo "{}" > mb-refstate.json')
    site.node1.run(GREETS)
    site.node1.write("/root/make-allowlist.sh", (PAYLOADS / "make-allowlist.sh").read_text())
    site.node1.measure("/usr/bin/systemctl")  # which is excluded; and what starts a list
    site.node1.run("bash make-allowlist.sh")
    control.run("scp 192.0.2.2:/root/allowlist.txt .")
    site.add(site.node1, "--allowlist allowlist.txt --exclude exclude.txt")
    site.add(site.node2)
    for node in site.nodes:
        site.await_passes(node)
    again = site.tenant(f"-t 192.0.2.2 -u {IDS['node1']} -c add", check=False)
    assert 'Run "delete" or "update" first' in again


def _payloads_arrive_and_let_machines_talk(site: Site) -> None:
    for node in site.nodes:
        node.await_journal("keylime_agent", "payload script autorun.sh: exit status 0")
        unzipped = set(node.run(f"ls {SECURE}/unzipped").stdout.split())
        assert {f"{IDS[node.name]}-cert.crt", "RevocationNotifier-cert.crt", "autorun.sh"} <= unzipped
        assert node.run("cd /root/.ssh; stat -c %a *").stdout.split() == ["600"] * 3
    ssh = "ssh -o BatchMode=yes -o ConnectTimeout=5"
    assert site.control.run(f"{ssh} -i payload/id_rsa 192.0.2.2 hostname").stdout == "node1\n"
    assert site.node2.run(f"{ssh} 192.0.2.2 hostname").stdout == "node1\n"


def _services_come_back_after_being_killed(site: Site) -> None:
    for machine, service in ((site.node2, "keylime_agent"), (site.control, "keylime_verifier")):
        before = machine.run(f"systemctl show -P MainPID {service}").stdout
        machine.run(f"systemctl kill -s KILL --kill-who=all {service}")

        def is_back(machine: BootedMachine = machine, service: str = service, before: str = before) -> bool:
            now = machine.run(f"systemctl show -P MainPID {service}").stdout
            return (
                machine.run(f"systemctl is-active {service}", check=False).returncode == 0 and now != before
            )

        await_value(is_back, f"{service} is back")
    for node in site.nodes:
        site.await_passes(node)


def _machines_come_back_after_a_reboot(site: Site) -> None:
    for machine in (site.control, site.node2):
        machine.reboot(BOOT_LOG)
    for service in ("keylime_verifier", "keylime_registrar"):
        site.control.run(f"systemctl is-active {service}")
    site.node2.await_journal("keylime_agent", "is registered and active")
    assert "unzipped" not in site.node2.run(f"ls {SECURE}").stdout
    for node in site.nodes:
        site.await_passes(node)


def _lost_certificates_are_made_again_or_asked_for(site: Site) -> None:
    control, node = site.control, site.node2
    directory = "/var/lib/keylime/cv_ca"
    control.run(f"rm {directory}/server-cert.crt; systemctl restart keylime_verifier keylime_registrar")
    control.run(f"cd {directory} && openssl verify -CAfile cacert.crt server-cert.crt")
    site.await_passes(node)
    since = len(node.journal("keylime_agent"))
    node.run(f"mv {directory}/cacert.crt .; systemctl restart keylime_agent", check=False)
    await_value(
        lambda: "cv_ca/cacert.crt" in node.journal("keylime_agent")[since:], "it says what is missing"
    )
    # By itself, once it is there again.
    node.run(f"mv cacert.crt {directory}/")
    await_value(
        lambda: node.run("systemctl is-active keylime_agent", check=False).returncode == 0, "it is back"
    )
    site.await_passes(node)


def _a_hacked_machine_is_fenced_off(site: Site) -> None:
    site.node1.measure("/root/greets.sh")
    assert site.node1.run("/root/greets.sh").stdout == "Hello!\n"
    site.await_passes(site.node1)
    # What was decrypted went with the reboot: a machine that is to act on revocations is added again.
    site.tenant(f"-u {IDS['node2']} -c delete")
    site.add(site.node2)
    site.node2.await_journal("keylime_agent", "payload script autorun.sh: exit status 0")
    site.await_passes(site.node2)
    site.node1.run("echo 'echo \"Hacked!\"' >> greets.sh")
    site.node1.measure("/root/greets.sh")
    site.control.await_journal("keylime_verifier", "keylime.ima - ERROR - IMA ERRORS")
    rule = "-A INPUT -s 192.0.2.2/32 -j DROP"
    await_value(lambda: rule in site.node2.run("iptables -S INPUT").stdout, "node2 drops what node1 sends")
    await_value(lambda: site.node1.run("ls -A /root/.ssh").stdout == "", "node1 has lost its keys")
    assert rule not in site.node1.run("iptables -S INPUT").stdout
    assert site.node1.run("ping -c 1 -W 1 192.0.2.3", check=False).returncode == 1
    assert f"Compromised system: {IDS['node1']} (192.0.2.2)" in site.node2.journal("keylime_agent")
    assert site.status(site.node1)["operational_state"] == "Invalid Quote"
    site.await_passes(site.node2)


def _a_machine_that_was_put_right_is_added_again(site: Site) -> None:
    site.node1.run(GREETS)
    site.tenant(f"-v 127.0.0.1 -u {IDS['node1']} -c delete")
    site.node1.reboot(BOOT_LOG)
    site.node1.await_journal("keylime_agent", "is registered and active")
    site.node1.measure("/root/greets.sh")
    site.node1.run("bash make-allowlist.sh")
    site.control.run("scp 192.0.2.2:/root/allowlist.txt .")
    site.add(site.node1, "--allowlist allowlist.txt --exclude exclude.txt")
    site.await_passes(site.node1)


def _an_agent_reaches_its_tpm_through_a_resource_manager(site: Site) -> None:
    node = site.node2
    sockets = node.run("echo $TCTI").stdout.strip()
    node.run(f"rm {RESOURCE_MANAGER}")  # in the image it is masked
    node.write(RESOURCE_MANAGER, MANAGED.format(tcti=sockets))
    node.write(
        "/etc/systemd/system/keylime_agent.service.d/zz-tpm.conf", "[Service]\nEnvironment=TCTI=tabrmd:\n"
    )
    node.run("systemctl stop keylime_agent; systemctl daemon-reload; systemctl restart tpm2-abrmd")
    node.run("systemctl start keylime_agent")
    node.await_journal("keylime_agent", "is registered and active")
    site.await_passes(node)
    # Others have the TPM at the same time.
    assert re.search("15 *: 0x", node.run("TPM2TOOLS_TCTI=tabrmd: tpm2_pcrread sha256:15").stdout)
    node.run(
        "systemctl stop keylime_agent tpm2-abrmd; rm /etc/systemd/system/keylime_agent.service.d/zz-tpm.conf"
    )
    node.run(f"ln -sf /dev/null {RESOURCE_MANAGER}; systemctl daemon-reload; systemctl start keylime_agent")
    site.await_passes(node)


def _a_pinned_register_is_watched(site: Site) -> None:
    node, agent_id = site.node2, IDS["node2"]
    site.tenant(f"-u {agent_id} -c delete")
    shown = re.search(r"15\s*: 0x([0-9A-F]{64})", node.run("tpm2_pcrread sha256:15").stdout)
    assert shown is not None
    policy = json.dumps({"15": shown[1].lower()})
    site.tenant(f"-t {node.ip} -u {agent_id} --tpm_policy '{policy}' -c add")
    site.await_passes(node)
    node.run(f"tpm2_pcrextend 15:sha256={'11' * 32}")
    await_value(lambda: site.status(node)["operational_state"] == "Invalid Quote", "node2 fails")


def _a_machine_attests_by_itself_and_is_polled_again(site: Site) -> None:
    control, node, agent_id = site.control, site.node2, IDS["node2"]
    site.tenant(f"-u {agent_id} -c delete")
    on_node, on_control = blocks_of(PUSH, "## Set up")
    policy = f"--tpm_policy '{json.dumps({'14': '00' * 32})}'"
    add, look = (
        on_control.replace("--runtime-policy policy.json", policy).replace("ID", agent_id).splitlines()
    )
    assert "configuration is good" in node.run("keylime_push_model_agent --check-config").stdout
    node.write("/etc/keylime/agent.conf.d/pace.conf", "[agent]\nattestation_interval_seconds = 5\n")
    node.run(on_node)
    states = "systemctl show -P ActiveState keylime_agent keylime_push_model_agent | xargs"
    assert node.run(states).stdout == "inactive active\n"
    # Nobody reaches it, and it needs nobody to.
    node.run("iptables -I INPUT -p tcp --syn -j DROP")
    node.await_journal("keylime_push_model_agent", "is registered and active")
    control.run(add)
    await_value(lambda: "PASS" in control.run(look, check=False).stdout, "node2 has passed")
    node.reboot(BOOT_LOG)
    assert node.run(states).stdout == "inactive active\n"
    site.await_passes(node)
    # The network, and the rule in it, outlive a reboot.
    node.run("iptables -D INPUT -p tcp --syn -j DROP")
    site.tenant(f"-u {agent_id} -c delete")
    node.run("systemctl disable keylime_push_model_agent; systemctl enable --now keylime_agent")
    assert node.run(states).stdout == "active inactive\n"
    site.tenant(f"-t {node.ip} -u {agent_id} -c add")
    site.await_passes(node)


def _an_agent_with_another_authority_than_ours_is_explained(site: Site) -> None:
    control, node, agent_id = site.control, site.node2, IDS["node2"]
    ours, question = "/var/lib/keylime/cv_ca", f"curl -skf https://{node.ip}:9002/v2.2/agent/info"
    with_certificate = f"{question} --cert {ours}/client-cert.crt --key {ours}/client-private.pem"
    assert agent_id in control.run(with_certificate).stdout
    assert control.run(question, check=False).returncode != 0
    site.tenant(f"-u {agent_id} -c delete")
    node.run(f"mv {ours}/cacert.crt .; {FOREIGN_CA.format(place=ours)}systemctl restart keylime_agent")
    assert control.run(with_certificate, check=False).returncode != 0
    # Whether TLS's alert is read before the end of the connection is chance, and then it is asked once more.
    add = f"KEYLIME_TENANT_MAX_RETRIES=1 keylime_tenant -t {node.ip} -u {agent_id} -c add"
    refused = control.run(add, check=False)
    assert refused.returncode == 1
    assert "the CA of [tenant] client_cert" in refused.stderr
    assert "trusted_client_ca" in refused.stderr
    assert agent_id not in site.tenant("--json -c cvlist")
    node.run(f"mv cacert.crt {ours}/; systemctl restart keylime_agent")
    site.tenant(f"-t {node.ip} -u {agent_id} -c add")
    site.await_passes(node)


def _who_has_another_key_than_the_registered_one_is_told_nothing(site: Site) -> None:
    node, agent_id = site.node2, IDS["node2"]
    # It has lost its key, and cannot tell the registrar.
    unheard = "OUTPUT -p tcp --dport 8890 -j REJECT"
    node.run(f"iptables -I {unheard}; cd /var/lib/keylime; rm server-private.pem server-cert.crt")
    node.run("systemctl restart --no-block keylime_agent")
    node.await_journal("keylime_agent", "registration failed, next attempt")
    said = site.tenant(f"-u {agent_id} -c update", check=False)
    assert "the agent must hold the key that it registered (restart it to register again)" in said
    site.control.await_journal(
        "keylime_verifier", f"agent {agent_id}: https://{node.ip}:9002: whoever answers holds another key"
    )
    passes = site.status(node)["attestation_count"]
    since = len(node.journal("keylime_agent"))
    node.run(f"iptables -D {unheard}; systemctl restart keylime_agent")
    _await_registration(node, since)
    assert site.status(node)["attestation_count"] == passes
    site.tenant(f"-u {agent_id} -c update")
    site.await_passes(node)


def _quotes_of_a_weak_bank_are_refused_until_they_are_allowed(site: Site) -> None:
    control, node, agent_id = site.control, site.node2, IDS["node2"]
    shown = node.run("tpm2_pcrread sha1:17,22,23+sha256:17,22,23").stdout
    for digits in (40, 64):
        values = re.findall(rf": 0x([0-9A-F]{{{digits}}})$", shown, re.MULTILINE)
        assert values == ["F" * digits, "F" * digits, "0" * digits], shown
    site.tenant(f"-u {agent_id} -c delete")
    since = len(node.journal("keylime_agent"))
    node.run("sed -i '$ a tpm_hash_alg = \"sha1\"' /etc/keylime/agent.conf.d/agent.conf")
    # Another hash wants another attestation key, and that is not the machine that the registrar knows.
    node.run("systemctl restart keylime_agent", check=False)
    await_value(
        lambda: f"`keylime_tenant -c regdelete -u {agent_id}`" in node.journal("keylime_agent")[since:],
        "node2 says what to do",
    )
    site.tenant(f"-u {agent_id} -c regdelete")
    node.run("systemctl restart keylime_agent")
    _await_registration(node, since)
    said = site.tenant(f"-t {node.ip} -u {agent_id} -c add", check=False)
    assert "uses unaccepted hash algorithm sha1: [tenant] accept_tpm_hash_algs has sha512, sha384, " in said
    assert agent_id not in site.tenant("--json -c cvlist")
    snippet = "[tenant]\naccept_tpm_hash_algs = sha256, sha1\n"
    control.write("/etc/keylime/tenant.conf.d/banks.conf", snippet)
    site.tenant(f"-t {node.ip} -u {agent_id} -c add")
    site.await_passes(node)
    assert site.status(node)["hash_alg"] == "sha1"


def _await_registration(node: BootedMachine, since: int) -> None:
    """Returns when an agent has registered after it had said so much."""
    await_value(
        lambda: "is registered and active" in node.journal("keylime_agent")[since:],
        f"{node.name} has registered",
    )


def _packages_go_and_leave_nothing(site: Site) -> None:
    for machine in (site.control, site.node2):
        machine.run("apt-get purge -y 'keylime-*'")
        left = machine.run("ls -d /var/lib/keylime /etc/keylime /usr/lib/keylime", check=False).stdout
        assert left == ""
        assert "keylime" not in machine.run("systemctl list-units --plain --no-legend").stdout


STEPS: tuple[Callable[[Site], None], ...] = (
    _what_the_firewalls_service_does_not_open_is_closed,
    _services_start_with_packaged_files_alone,
    _an_agent_without_the_authority_says_what_is_missing,
    _agents_register_with_snippets_as_they_are_printed,
    _a_stopped_agent_leaves_its_mount,
    _the_tenant_tells_where_it_looks_for_an_agent,
    _agents_are_added_with_payload_lists_and_an_empty_reference_state,
    _payloads_arrive_and_let_machines_talk,
    _services_come_back_after_being_killed,
    _machines_come_back_after_a_reboot,
    _lost_certificates_are_made_again_or_asked_for,
    _a_hacked_machine_is_fenced_off,
    _a_machine_that_was_put_right_is_added_again,
    _an_agent_reaches_its_tpm_through_a_resource_manager,
    _a_pinned_register_is_watched,
    _a_machine_attests_by_itself_and_is_polled_again,
    _an_agent_with_another_authority_than_ours_is_explained,
    _who_has_another_key_than_the_registered_one_is_told_nothing,
    _quotes_of_a_weak_bank_are_refused_until_they_are_allowed,
    _packages_go_and_leave_nothing,
)
