"""What operators type, and what they get to see: exit statuses and texts that scripts rely on."""

import json
import subprocess
import uuid

import pytest

from keylime.messages.verifier import OperationalState
from tests.lab.installation import Machine
from tests.lab.site import Site


@pytest.fixture(scope="module")
def machine(site: Site) -> Machine:
    return site.attested_machine()


def refusal(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one line of a run that failed."""
    assert done.returncode == status, done
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("keylime_tenant: error: ")]
    assert "Traceback" not in done.stdout + done.stderr
    return line


def test_an_agent_is_not_added_twice(site: Site, machine: Machine) -> None:
    line = refusal(site.add(machine, check=False))
    assert f"Agent {machine.agent_id} already exists" in line
    assert 'Run "delete" or "update" first.' in line
    site.await_passes(machine)


def test_an_agent_that_is_not_registered_is_not_added(site: Site) -> None:
    agent_id = str(uuid.uuid4())
    line = refusal(site.control.tenant("-c", "add", "-u", agent_id, check=False))
    assert "data not found in the Registrar" in line
    assert "reglist" in line


def test_delete_removes_from_the_verifier_only_and_may_be_repeated(site: Site) -> None:
    machine = site.attested_machine()
    tenant = site.control.tenant
    assert machine.agent_id in tenant("-c", "cvlist").stdout
    assert "deleted" in tenant("-c", "delete", "-u", machine.agent_id).stdout
    assert machine.agent_id not in tenant("-c", "cvlist").stdout
    assert machine.agent_id in tenant("-c", "reglist").stdout
    assert tenant("-c", "delete", "-u", machine.agent_id).returncode == 0
    line = refusal(tenant("-c", "cvstatus", "-u", machine.agent_id, check=False))
    assert "does not exist on Verifier" in line
    site.add(machine)
    site.await_passes(machine)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--no-such-option",),
        ("-c", "add", "--exclude", "exclude.txt"),
        ("-c", "add", "-tp", "many"),
        ("-c", "addruntimepolicy"),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(site: Site, arguments: tuple[str, ...]) -> None:
    done = site.control.tenant(*arguments, check=False)
    assert "usage: " not in done.stderr
    refusal(done, status=2)


def test_an_unknown_command_ends_with_1_and_the_nearest_one(site: Site) -> None:
    line = refusal(site.control.tenant("-c", "cvlst", check=False))
    assert "Invalid command specified: cvlst" in line
    assert "'cvlist'" in line


def test_a_verifier_that_is_not_there_is_one_line(site: Site) -> None:
    nobody = site.node("nobody").ip
    line = refusal(site.control.tenant("-v", nobody, "-c", "cvlist", check=False))
    assert nobody in line


def test_v_without_an_address_means_the_configured_verifier(site: Site, machine: Machine) -> None:
    done = site.control.tenant("-c", "cvstatus", "-u", machine.agent_id, "-v")
    assert "Get Quote" in done.stdout


@pytest.mark.parametrize("command", ["cvstatus", "cvlist", "bulkinfo", "reglist", "regstatus", "status"])
def test_json_is_one_document(site: Site, machine: Machine, command: str) -> None:
    done = site.control.tenant("--json", "-c", command, "-u", machine.agent_id)
    assert machine.agent_id in json.dumps(json.loads(done.stdout))


def test_json_also_when_it_fails(site: Site) -> None:
    done = site.control.tenant("--json", "-c", "cvstatus", "-u", "nobody", check=False)
    assert done.returncode == 1
    json.loads(done.stdout)


def test_a_stopped_agent_is_reactivated(site: Site, machine: Machine) -> None:
    api = site.control.verifier_api(site.control.administrator)
    # Tenants in the field read the envelope of this answer, empty as it is.
    stopped = api.request("PUT", f"/v2.5/agents/{machine.agent_id}/stop")
    assert stopped.document == {"code": 200, "status": "Success", "results": {}}
    record = site.await_state(machine, OperationalState.TENANT_FAILED)
    assert record["attestation_status"] == "FAIL"
    site.control.tenant("-c", "reactivate", "-u", machine.agent_id)
    site.await_passes(machine)


def test_a_flag_for_another_verifier_address_is_used(site: Site, machine: Machine) -> None:
    done = site.control.tenant(
        "-c", "cvlist", environ={"KEYLIME_TENANT_VERIFIER_IP": "127.255.255.1"}, check=False
    )
    assert done.returncode == 1
    done = site.control.tenant(
        *("-v", site.control.node.ip, "-c", "cvlist"),
        environ={"KEYLIME_TENANT_VERIFIER_IP": "127.255.255.1"},
    )
    assert machine.agent_id in done.stdout
