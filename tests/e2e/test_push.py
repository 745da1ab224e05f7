"""Machines that attest by themselves, end to end: real daemons, software TPMs, AKs of both kinds.

One site for all questions, which are asked in the order in which they happen to a machine.
"""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.captures import capture
from tests.lab.installation import Machine, start_agent
from tests.lab.site import QUICK, Site, errors_of, open_site, script
from tests.lab.waiting import await_value

KEYS = {"rsa": "rsassa", "ecc": "ecdsa"}
# A machine is silent after five intervals: long enough for one that has much else to do.
PUSHED = replace(QUICK, verifier={**QUICK.verifier, "quote_interval": "2"})


@pytest.fixture(scope="module")
def site(new_directory: Path, subnets: Iterator[str], forks: bool) -> Iterator[Site]:
    with open_site(new_directory, next(subnets), PUSHED, forks=forks) as opened:
        yield opened


@pytest.fixture(scope="module", params=sorted(KEYS))
def machine(site: Site, request: pytest.FixtureRequest) -> Machine:
    """A machine that booted, ran a program, and was added with policies for both."""
    kind = str(request.param)
    made = site.machine(
        program="keylime_push_model_agent",
        tpm_signing_alg=f'"{KEYS[kind]}"',
        attestation_interval_seconds="1",
    )
    boot(made)
    start_agent(site.control, made)
    made.agent.wait_for("keylime_tenant -c add --push-model")
    refstate = site.control.node.disk / "mb-refstate.json"
    refstate.write_text("{}")
    policies = ("--runtime-policy", site.runtime_policy(made), "--mb_refstate", refstate)
    site.add(made, "--push-model", *policies)
    return made


def tool(machine: Machine) -> Path:
    return machine.node.disk / "root/tool.sh"


def boot(machine: Machine) -> None:
    machine.boot(capture("direct-efistub").boot_log)
    machine.measure(script(tool(machine), "#!/bin/sh\necho fine\n"))


def await_status(site: Site, machine: Machine, status: str, passes: int = 0) -> dict[str, Any]:
    """The record once the agent is shown as `status`, with so many passes more."""
    goal = int(site.record(machine).get("attestation_count") or 0) + passes

    def reached() -> dict[str, Any] | None:
        record = site.record(machine)
        is_so = record.get("attestation_status") == status and record["attestation_count"] >= goal
        return record if is_so else None

    return await_value(reached, f"{status} of {machine.node.name} after {passes} more passes")


def test_what_happens_to_a_machine(site: Site, machine: Machine, request: pytest.FixtureRequest) -> None:
    await_status(site, machine, "PASS", passes=2)
    _grows(site, machine)
    if "ecc" in request.node.name:  # what follows does not depend on the kind of key
        _verifier_ends(site, machine)
        _agent_ends(site, machine)
        _reboots(site, machine)
        _is_silent(site, machine)
    _is_tampered_with(site, machine)
    assert errors_of(machine.agent.text()) == []
    assert "Bearer" not in machine.agent.text()


def _grows(site: Site, machine: Machine) -> None:
    """What it runs is judged as it comes; what it ran before is not sent again."""
    machine.measure(tool(machine))
    await_status(site, machine, "PASS", passes=2)


def _verifier_ends(site: Site, machine: Machine) -> None:
    """Wherever in an attestation that is: the agent begins another one, with the token it has."""
    for how in (signal.SIGKILL, signal.SIGTERM):
        since = site.control.verifier.mark()
        site.control.verifier.stop(how)
        site.control.verifier.start().wait_for("Listening on", since=since)
        await_status(site, machine, "PASS", passes=1)
        assert errors_of(site.control.verifier.text(since)) == []


def _agent_ends(site: Site, machine: Machine) -> None:
    """It comes back with the key that it was added with, and as the same machine in the same boot."""
    machine.agent.stop(signal.SIGKILL)
    start_agent(site.control, machine)
    record = await_status(site, machine, "PASS", passes=2)
    assert record["reboots"] == 0


def _reboots(site: Site, machine: Machine) -> None:
    """Its list begins anew, and so does what is asked for."""
    assert machine.agent.stop() == 0
    boot(machine)
    data = machine.node.work_dir / "agent_data.json"
    data.write_text(
        data.read_text().replace('"boot_id":"', '"boot_id":"0')
    )  # the kernel's is another one now
    start_agent(site.control, machine)
    await_status(site, machine, "PASS", passes=2)


def _is_silent(site: Site, machine: Machine) -> None:
    assert machine.agent.stop() == 0
    await_status(site, machine, "TIMEOUT")
    start_agent(site.control, machine)
    await_status(site, machine, "PASS", passes=1)


def _is_tampered_with(site: Site, machine: Machine) -> None:
    """The file is named; neither silence nor a restart nor what comes later is a way back."""
    with tool(machine).open("a") as file:
        file.write("echo tampered\n")
    machine.measure(tool(machine))
    record = await_status(site, machine, "FAIL")
    assert record["last_event_id"] == "ima.validation.ima-ng.runtime_policy_hash"
    assert [finding["path"] for finding in record["last_findings"]] == [str(tool(machine))]
    since = machine.agent.mark()
    assert machine.agent.stop() == 0
    boot(machine)
    start_agent(site.control, machine)
    machine.agent.wait_for("attesting to", since=since)
    assert site.record(machine)["attestation_status"] == "FAIL"
    site.reactivate(machine)
    await_status(site, machine, "PASS", passes=1)


def test_what_does_not_exist_in_this_model_is_refused_in_a_line(site: Site, machine: Machine) -> None:
    done = site.add(machine, "--push-model", "--include", site.control.node.disk, check=False)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert "--include" in line
    assert "--push-model" in line
