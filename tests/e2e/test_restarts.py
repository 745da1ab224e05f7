"""Daemons that end and come back, in good order or not, and machines that reboot: attestation goes on."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from keylime.messages.verifier import OperationalState
from tests.lab.daemon import Daemon
from tests.lab.installation import Machine, start_agent
from tests.lab.interposer import Interposer, asked_entries, interposed
from tests.lab.site import Site, attestation_key, errors_of, script
from tests.lab.waiting import await_value

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
        assert agent.interposer.revocations == []
        assert "rebooted" in site.control.verifier.text()
