"""Daemons that end and come back, in good order or not, and machines that reboot: attestation goes on."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime.pki.agent_certificate import key_pin, read_agent_certificate
from keylime.pki.certificates import certificate_text, self_signed_certificate
from keylime.pki.key_files import load_private_key
from tests.lab.daemon import Daemon
from tests.lab.installation import Machine, start_agent
from tests.lab.interposer import Interposer, asked_entries, interposed
from tests.lab.site import Site, attestation_key, errors_of, script
from tests.lab.waiting import await_value

DAY = timedelta(days=1)
ORDERLY, SUDDEN = signal.SIGTERM, signal.SIGKILL


@pytest.fixture(scope="module")
def machine(site: Site) -> Machine:
    return site.attested_machine()


def end(daemon: Daemon, how: signal.Signals) -> None:
    assert daemon.stop(how) == (0 if how is ORDERLY else -SUDDEN)


@pytest.mark.parametrize("how", [ORDERLY, SUDDEN], ids=lambda how: how.name)
def test_attestation_does_not_need_the_registrar(site: Site, machine: Machine, how: signal.Signals) -> None:
    before = site.registration(machine)
    end(site.control.registrar, how)
    site.await_passes(machine)
    site.control.registrar.start().wait_for("Listening on", since=site.control.registrar.mark())
    assert site.registration(machine) == before
    site.await_passes(machine)


@pytest.mark.parametrize("how", [ORDERLY, SUDDEN], ids=lambda how: how.name)
def test_the_verifier_goes_on_where_it_was(site: Site, machine: Machine, how: signal.Signals) -> None:
    before = site.await_passes(machine)["attestation_count"]
    since = site.control.verifier.mark()
    end(site.control.verifier, how)
    site.control.verifier.start().wait_for("Listening on", since=since)
    # A crash may cost the passes of the last second, which are written together.
    lost = 0 if how is ORDERLY else 8
    assert site.record(machine)["attestation_count"] >= before - lost
    assert site.await_passes(machine)["attestation_status"] == "PASS"
    assert errors_of(site.control.verifier.text(since)) == []


@pytest.mark.parametrize("how", [ORDERLY, SUDDEN], ids=lambda how: how.name)
def test_an_agent_keeps_its_attestation_key(site: Site, machine: Machine, how: signal.Signals) -> None:
    before = site.registration(machine)
    end(machine.agent, how)
    silent = await_value(
        lambda: record if (record := site.record(machine))["attestation_status"] != "PASS" else None,
        "a silent agent is not shown as passing",
    )
    assert silent["operational_state"] == OperationalState.GET_QUOTE
    assert silent["attestation_status"] == "PENDING"
    assert silent["unreachable_since"] >= silent["last_successful_attestation"]
    start_agent(site.control, machine)
    after = site.registration(machine)
    assert attestation_key(after) == attestation_key(before)
    assert after["mtls_cert"] == before["mtls_cert"]
    assert after["regcount"] == before["regcount"] + 1
    record = site.await_passes(machine)
    assert record["attestation_status"] == "PASS"
    assert record["unreachable_since"] is None


def test_an_agent_that_renews_its_certificate_for_its_key_is_watched_on_by_itself(
    site: Site, machine: Machine
) -> None:
    certificate = machine.identity.certificate
    before, first = site.registration(machine), site.await_passes(machine)
    key = load_private_key(machine.identity.key, None)
    ends_soon = self_signed_certificate(key, AgentId(machine.agent_id), None, datetime.now(UTC) - 340 * DAY)
    certificate.write_text(certificate_text(ends_soon))
    since = machine.agent.mark()
    os.kill(machine.agent.pid, signal.SIGHUP)
    machine.agent.wait_for("another certificate for the same key is in use", since=since)
    machine.agent.wait_for("is registered and active", since=since)
    after = site.registration(machine)
    assert certificate.read_text() == after["mtls_cert"] != before["mtls_cert"]
    assert after["regcount"] == before["regcount"] + 1
    renewed = read_agent_certificate(certificate.read_bytes())
    assert renewed.key_pin == key_pin(before["mtls_cert"])
    assert not renewed.ends_soon(datetime.now(UTC))
    last = site.await_passes(machine)
    assert last["unreachable_since"] is None
    # Another worker may answer, which knows of passes when they are written.
    await_value(
        lambda: site.record(machine)["attestation_count"] > first["attestation_count"], "it goes on passing"
    )
    # As after years in a cupboard.
    end(machine.agent, ORDERLY)
    ended = self_signed_certificate(key, AgentId(machine.agent_id), None, datetime.now(UTC) - 900 * DAY)
    certificate.write_text(certificate_text(ended))
    start_agent(site.control, machine)
    assert not read_agent_certificate(certificate.read_bytes()).ends_soon(datetime.now(UTC))
    site.await_passes(machine)


def test_an_agent_with_a_new_key_is_taken_up_by_what_its_reason_says(site: Site) -> None:
    machine = site.attested_machine()
    before = site.registration(machine)
    end(machine.agent, ORDERLY)
    machine.identity.key.unlink()
    machine.identity.certificate.unlink()
    since = site.control.verifier.mark()
    start_agent(site.control, machine)
    assert key_pin(site.registration(machine)["mtls_cert"]) != key_pin(before["mtls_cert"])
    site.control.registrar.wait_for(f"{machine.agent_id} has a new key for TLS .*proven by its TPM")
    site.control.verifier.wait_for("whoever answers holds another key", since=since)
    await_value(lambda: site.record(machine)["attestation_status"] != "PASS", "it does not pass any more")
    site.control.tenant("-c", "update", "-u", machine.agent_id)
    site.await_passes(machine)
    assert site.record(machine)["last_findings"] == []


def test_a_restarted_verifier_does_not_show_a_dead_agent_as_passing(site: Site, machine: Machine) -> None:
    end(machine.agent, SUDDEN)
    end(site.control.verifier, SUDDEN)
    since = site.control.verifier.mark()
    site.control.verifier.start().wait_for("Listening on", since=since)
    await_value(
        lambda: (
            (record := site.record(machine))["unreachable_since"]
            and record["attestation_status"] == "PENDING"
        ),
        "the dead agent is pending",
    )
    start_agent(site.control, machine)
    site.await_passes(machine)


@dataclass(frozen=True)
class Watched:
    """A machine whose IMA list is attested, and all that the verifier asks of it."""

    site: Site
    machine: Machine
    interposer: Interposer

    def await_entry(self, entry: int, since: int) -> None:
        """Waits until the verifier asks for this entry."""
        await_value(
            lambda: entry in asked_entries(self.interposer.quotes[since:]),
            f"entry {entry} is asked for (so far {asked_entries(self.interposer.quotes[since:])})",
        )


@contextmanager
def watched(site: Site) -> Iterator[Watched]:
    machine = site.running_machine()
    tool = script(machine.node.disk / "root/tool.sh", "#!/bin/sh\n")
    machine.measure(tool)
    policy = site.runtime_policy(machine, tool)
    with interposed(machine, site.control, site.node("front")) as interposer:
        site.add(machine, "--cv_targethost", interposer.node.ip, "--runtime-policy", policy)
        yield Watched(site, machine, interposer)


def test_a_verifier_that_crashed_asks_only_for_new_ima_entries(site: Site) -> None:
    with watched(site) as agent:
        agent.await_entry(2, since=0)
        site.await_passes(agent.machine, more=8)  # until the position is in the database for sure
        end(site.control.verifier, SUDDEN)
        asked = len(agent.interposer.quotes)
        since = site.control.verifier.mark()
        site.control.verifier.start().wait_for("Listening on", since=since)
        site.await_passes(agent.machine)
        assert set(asked_entries(agent.interposer.quotes[asked:])) == {2}


def test_a_reboot_is_recognised_and_attested_from_the_first_entry(site: Site) -> None:
    with watched(site) as agent:
        machine = agent.machine
        agent.await_entry(2, since=0)
        assert site.record(machine)["reboots"] == 0
        end(machine.agent, SUDDEN)
        asked = len(agent.interposer.quotes)
        machine.boot(None)
        machine.measure(machine.node.disk / "root/tool.sh")
        start_agent(site.control, machine)
        agent.await_entry(0, since=asked)
        record = site.await_passes(machine)
        assert record["reboots"] == 1
        agent.await_entry(2, since=asked)
        # Of others there may be some: the machine of the test before is out of reach since its end.
        about = {message["agent_id"] for message in agent.interposer.revocations}
        assert machine.agent_id not in about
        assert "rebooted" in site.control.verifier.text()
