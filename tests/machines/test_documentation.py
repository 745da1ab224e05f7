"""What the documentation says to type is typed, word for word, on machines that have just been installed."""

import json

from tests.lab.waiting import await_value
from tests.machines.booted import BootedMachine, copy_file
from tests.machines.commands import README, THREE_MACHINES, TWO_MACHINES, TYPED, blocks_of
from tests.machines.conftest import BOOT_LOG, Boot

ID = "d111ec46-34d8-41af-ad56-d560bc97b2e8"
OTHER_ID = "2c6fb1b0-5c0e-4f4e-9d0a-3c1c54a9f1d7"


def trust_maker(control: BootedMachine, of: BootedMachine) -> None:
    """The certificates of the TPM's maker, where the documentation says that they belong."""
    for certificate in of.tpm.ca_certificates:
        control.write(f"/var/lib/keylime/tpm_cert_store/{certificate.name}", certificate.read_text())
    control.run("chown -R keylime: /var/lib/keylime/tpm_cert_store")


def status(control: BootedMachine) -> "dict[str, object]":
    """What the verifier tells."""
    answer = json.loads(control.run(f"keylime_tenant --json -c cvstatus -u {ID}").stdout)
    return dict(answer.get(ID, answer))


def test_the_readme_leads_to_an_attested_machine(boot: Boot) -> None:
    control, node = boot("control", "node1")
    blocks = blocks_of(README, TWO_MACHINES)
    install_control, install_node, set_up_control, set_up_node, make_policy, add = blocks
    control.run(install_control)
    node.run(install_node)
    printed = control.run(set_up_control).stdout
    fingerprint = next(line.strip() for line in printed.splitlines() if line.count(":") == 31)

    shown = node.type_at(set_up_node, ("(yes/no)", "yes"))
    assert fingerprint in shown
    # What is to be looked at is told: nobody has said yet whose TPMs are trusted.
    assert "keylime_tenant doctor: " in printed
    assert "BAD      EK store /var/lib/keylime/tpm_cert_store" in printed
    assert "keylime_agent --check: " in shown
    assert "BAD      TPM" not in shown
    assert "which others reach at 192.0.2.2" in shown
    node.measure("/usr/bin/systemctl", "/usr/bin/bash")
    node.run(make_policy)

    copy_file(node, "/root/policy.json", control, "/root/policy.json")
    trust_maker(control, node)
    control.run(add)
    told = status(control)
    assert told["attestation_status"] == "PASS", told
    assert told["ip"] == "192.0.2.2"

    # And it is watched from now on.
    node.run("printf '#!/bin/sh\\n' >/usr/bin/unknown; chmod +x /usr/bin/unknown")
    node.measure("/usr/bin/unknown")
    control.await_journal("keylime_verifier", "/usr/bin/unknown")
    assert status(control)["attestation_status"] == "FAIL"


def test_three_machines_as_the_manual_has_them(boot: Boot) -> None:
    control, node1, node2 = boot("control", "node1", "node2")

    pages = iter(blocks_of(THREE_MACHINES, heading) for heading in TYPED[THREE_MACHINES])
    on_control, on_nodes = next(pages)
    control.run(on_control)
    (look,) = next(pages)
    for node in (node1, node2):
        node.run(on_nodes)
        node.reboot(BOOT_LOG)
        node.measure("/usr/bin/systemctl", "/usr/bin/bash")
        assert "boot_aggregate" in node.run(look).stdout.splitlines()[0]

    start, is_ready = next(pages)
    control.run(start)
    await_value(lambda: control.run(is_ready, check=False).stdout.count('"ready"') == 2, "both are ready")

    (agent,) = next(pages)
    for node, its in ((node1, agent), (node2, agent.replace(ID, OTHER_ID).replace(node1.ip, node2.ip))):
        assert "is registered and active" in node.run(its).stdout
    known = control.run("keylime_tenant -c reglist").stdout
    assert all(each in known for each in (ID, OTHER_ID))

    (make_policy,) = next(pages)
    for node in (node1, node2):
        node.run(make_policy, limit_s=1800)
    (trial,) = next(pages)
    control.run(trial)
    add, look = next(pages)
    control.run(add)
    control.run(look)
    assert status(control)["attestation_status"] == "PASS"
    for node in (node1, node2):
        node.await_journal("keylime_agent", "trusted, and here is my secret: swordfish")

    surprise, update, reactivate = next(pages)
    assert node1.run(surprise).stdout == "hello\n"
    node1.measure("/usr/local/bin/surprise")
    await_value(lambda: status(control)["attestation_status"] == "FAIL", "node1 has fallen")
    assert "/usr/local/bin/surprise" in control.run(look).stdout
    for node in (node1, node2):
        node.await_journal("keylime_agent", "revoked: ")
    control.run(update)
    assert status(control)["attestation_status"] == "PASS"

    node1.run("cp /bin/echo /usr/local/bin/another")
    node1.measure("/usr/local/bin/another")
    await_value(lambda: status(control)["attestation_status"] == "FAIL", "node1 has fallen again")
    node1.run("rm /usr/local/bin/another")
    node1.reboot(BOOT_LOG)
    node1.measure("/usr/bin/systemctl")
    control.run(reactivate)
    control.run(look)
    assert status(control)["attestation_status"] == "PASS"
