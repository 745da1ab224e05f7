"""A machine that changes is detected, and the log says what operators look for."""

import hashlib
import re

import pytest

from keylime.hashes import HashAlgorithm
from keylime.messages.verifier import OperationalState
from keylime.tpm.device import Tpm
from tests.lab.installation import Machine
from tests.lab.site import Site, errors_of, script

ZEROS = "0" * 64


@pytest.fixture(scope="module")
def forks() -> bool:
    """Here, all are the scripts that were installed."""
    return False


def test_a_tampered_file_is_detected_and_named(site: Site) -> None:
    machine = site.running_machine()
    tool = script(machine.node.disk / "root/tool.sh", "#!/bin/sh\necho fine\n")
    machine.measure(tool)
    site.add(machine, "--runtime-policy", site.runtime_policy(machine))
    machine.measure(tool)
    site.await_passes(machine)
    approved = hashlib.sha256(tool.read_bytes()).hexdigest()

    with tool.open("a") as file:
        file.write("echo tampered\n")
    since = site.control.verifier.mark()
    machine.measure(tool)
    record = site.await_state(machine, OperationalState.INVALID_QUOTE)

    (finding,) = record["last_findings"]
    assert finding["event_id"] == record["last_event_id"] == "ima.validation.ima-ng.runtime_policy_hash"
    assert finding["path"] == str(tool)
    assert finding["observed"] == hashlib.sha256(tool.read_bytes()).hexdigest()
    assert finding["expected"] == [approved]
    assert record["attestation_status"] == "FAIL"
    log = site.control.verifier.text(since)
    assert re.search(r" - keylime\.ima - ERROR - IMA ERRORS: ", log)
    assert f"Hashes for file {tool} don't match" in log
    assert errors_of(log) == []


def test_an_unknown_file_is_detected_and_an_excluded_one_is_not(site: Site) -> None:
    machine = site.running_machine()
    machine.measure(script(machine.node.disk / "root/tool.sh", "#!/bin/sh\n"))
    excluded = script(machine.node.disk / "srv/anything", "#!/bin/sh\n")
    site.add(
        machine,
        *("--runtime-policy", site.runtime_policy(machine, excludes=(f"{excluded.parent}/.*",))),
    )
    machine.measure(excluded)
    site.await_passes(machine)
    unknown = script(machine.node.disk / "root/unknown.sh", "#!/bin/sh\n")
    machine.measure(unknown)
    record = site.await_state(machine, OperationalState.INVALID_QUOTE)
    assert record["last_event_id"] == "ima.validation.ima-ng.not_in_allowlist"
    assert [finding["path"] for finding in record["last_findings"]] == [str(unknown)]


def extend_pcr_23(machine: Machine) -> None:
    with Tpm.open(machine.tpm.tcti) as tpm:
        tpm.extend_pcr(23, {HashAlgorithm.SHA256: bytes(32), HashAlgorithm.SHA1: bytes(20)})


def test_a_pcr_that_leaves_its_policy_is_detected(site: Site) -> None:
    machine = site.attested_machine("--tpm_policy", f'{{"23": "{ZEROS}"}}')
    extend_pcr_23(machine)
    record = site.await_state(machine, OperationalState.INVALID_QUOTE)
    assert record["last_event_id"] == "pcr_validation.invalid_pcr_23"
    assert record["last_findings"][0]["expected"] == [ZEROS]


def test_a_payload_waits_for_the_first_pass(site: Site) -> None:
    machine = site.running_machine()
    include = site.control.node.disk / "payload"
    script(include / "autorun.sh", '#!/bin/sh\necho "$AGENT_UUID" > "$KEYLIME_DIR/autorun-ran"\n')
    (include / "secret.txt").write_text("a secret")
    ran, unzipped = machine.node.work_dir / "autorun-ran", machine.secure / "unzipped"
    package = ("--cert", "default", "--include", include)

    site.add(machine, *package, "--tpm_policy", f'{{"23": "{"f" * 64}"}}')
    site.await_state(machine, OperationalState.INVALID_QUOTE)
    machine.agent.wait_for("U key received")
    assert "V key received" not in machine.agent.text()
    assert not unzipped.exists()
    assert not ran.exists()

    # An update keeps what it does not name: the policy that failed has to be taken away.
    update = ("-c", "update", "-u", machine.agent_id)
    site.control.tenant(*update, *package, "--no-tpm-policy", "--verify")
    site.await_passes(machine)
    machine.agent.wait_for("payload installed")
    machine.agent.wait_for(r"payload script autorun.sh: exit status 0")
    assert ran.read_text().strip() == machine.agent_id
    assert (unzipped / "secret.txt").read_text() == "a secret"
    assert (unzipped / f"{machine.agent_id}-cert.crt").exists()
    assert unzipped.stat().st_mode & 0o077 == 0

    assert machine.agent.stop() == 0
    assert not unzipped.exists(), "the secure directory is emptied when the agent stops"


def test_an_update_brings_another_payload_or_keeps_the_one_that_is_there(site: Site) -> None:
    machine = site.running_machine()
    include = site.control.node.disk / "changing"
    secret, unzipped = script(include / "secret.txt", "the first"), machine.secure / "unzipped"
    package = ("--cert", "default", "--include", include)
    site.add(machine, *package, "--verify")
    machine.agent.wait_for("payload installed")
    site.await_passes(machine)

    secret.write_text("the second")
    since = machine.agent.mark()
    done = site.control.tenant("-c", "update", "-u", machine.agent_id, *package, "--verify")
    assert "Key derivation successful" in done.stdout + done.stderr
    machine.agent.wait_for("payload installed", since=since)
    assert (unzipped / "secret.txt").read_text() == "the second"

    since = machine.agent.mark()
    site.control.tenant("-c", "update", "-u", machine.agent_id, "--tpm_policy", f'{{"23": "{ZEROS}"}}')
    site.await_passes(machine)
    assert "U key received" not in machine.agent.text(since)
    assert "payload installed" not in machine.agent.text(since)
    assert (unzipped / "secret.txt").read_text() == "the second"
