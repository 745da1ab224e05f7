"""Our programs with those of Keylime 7.14.3, in every mix that an upgrade of a site goes through.

The peer lives in a virtual environment of its own, made like this and named by an environment variable:

    python3 -m venv DIR && DIR/bin/pip install keylime==7.14.3
    DIR/bin/pip install alembic cryptography gpg jinja2 jsonschema lark packaging psutil pyasn1 \\
        pyasn1-modules pymysql pyyaml pyzmq requests 'sqlalchemy<2.1' tornado typing-extensions
    KEYLIME_REFERENCE_PEER=DIR pytest tests/e2e/test_reference_peer.py

The package itself names no requirements. `gpg` is built against GPGME (Debian: libgpgme-dev and swig), or is
Debian's python3-gpg. The peer is configured with the files in `config/`, which have the options of that
release.
"""

import ast
import configparser
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from keylime.messages.verifier import OperationalState
from tests.fakes.mariadb import running_mariadb
from tests.lab.daemon import PROGRAMS, Daemon
from tests.lab.installation import CA_PASSWORD, Control, Machine
from tests.lab.network import Node, loopback_nodes
from tests.lab.site import QUICK, Site, script
from tests.lab.waiting import await_value

_VENV = os.environ.get("KEYLIME_REFERENCE_PEER")
_CONFIG = Path(__file__).parents[2] / "config"

pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(_VENV is None, reason="KEYLIME_REFERENCE_PEER does not name a virtual environment"),
]


def whole_config(name: str, directory: Path, changes: Mapping[str, Mapping[str, str]]) -> Path:
    """Our default file with some options changed: the peer does not know defaults of its own."""
    parser = configparser.RawConfigParser()
    parser.read(_CONFIG / f"{name}.conf")
    parser.read_dict(changes)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.conf"
    path.touch(mode=0o600)
    with path.open("w") as file:
        parser.write(file)
    return path


def environment(node: Node, databases: Mapping[str, str]) -> dict[str, str]:
    """Where each program of the control node, ours or the peer's, finds its configuration."""
    quick = {"quote_interval": "0.3", "retry_interval": "0.5", "max_retries": "20"}
    changes: dict[str, Mapping[str, Mapping[str, str]]] = {
        "verifier": {
            "verifier": {"ip": node.ip, "database_url": databases.get("verifier", "sqlite"), **quick},
            "revocations": {"enabled_revocation_notifications": "['agent']", "zmq_ip": node.ip},
        },
        "registrar": {"registrar": {"ip": node.ip, "database_url": databases.get("registrar", "sqlite")}},
        "tenant": {
            "tenant": {
                "verifier_ip": node.ip,
                "registrar_ip": node.ip,
                "tpm_cert_store": str(node.work_dir / "tpm_cert_store"),
                "retry_interval": "0.5",
            }
        },
        "ca": {"ca": {"password": CA_PASSWORD}},
        "logging": {},
    }
    etc = node.disk / "etc/keylime"
    return {
        f"KEYLIME_{name.upper()}_CONFIG": str(whole_config(name, etc, sections))
        for name, sections in changes.items()
    }


@contextmanager
def mixed_site(
    directory: Path,
    subnet: str,
    *,
    verifier: Path,
    registrar: Path,
    tenant: Path,
    databases: Mapping[str, str] = {},
) -> Iterator[Site]:
    """A site whose control node runs programs of these directories; agents are ours."""
    (node,) = loopback_nodes(directory, ("control",), subnet)
    # Not in test mode, which means something else to the peer.
    node = replace(node, environment={})
    node.work_dir.mkdir(parents=True, mode=0o700)
    variables = environment(node, databases)
    with ExitStack() as stack:
        control = Control(
            node,
            Daemon(node, "keylime_verifier", variables, programs=verifier),
            Daemon(node, "keylime_registrar", variables, programs=registrar),
            variables,
            tenant,
        )
        stack.callback(control.verifier.stop_all)
        control.verifier.start()
        await_value(lambda: answers(control, 8881), "the verifier listens", 30)
        stack.callback(control.registrar.stop_all)
        control.registrar.start()
        await_value(lambda: answers(control, 8891), "the registrar listens", 30)
        machines = stack.enter_context(ExitStack())
        yield Site(directory, subnet, control, QUICK, machines)


def answers(control: Control, port: int) -> bool:
    """Whether the server on `port` tells its versions."""
    try:
        api = control.verifier_api(control.administrator)
        return replace(api, port=port).request("GET", "/version").code == 200
    except OSError:
        return False


def peer() -> Path:
    return Path(_VENV or "") / "bin"


@pytest.fixture(scope="module")
def all_theirs(tmp_path_factory: pytest.TempPathFactory, subnets: Iterator[str]) -> Iterator[Site]:
    """Registrar, verifier and tenant of the peer."""
    directory = tmp_path_factory.mktemp("theirs")
    with mixed_site(directory, next(subnets), verifier=peer(), registrar=peer(), tenant=peer()) as opened:
        yield opened


@pytest.fixture(scope="module")
def tenant_theirs(tmp_path_factory: pytest.TempPathFactory, subnets: Iterator[str]) -> Iterator[Site]:
    """Our registrar and verifier, the peer's tenant."""
    directory = tmp_path_factory.mktemp("ours")
    with mixed_site(directory, next(subnets), verifier=PROGRAMS, registrar=PROGRAMS, tenant=peer()) as opened:
        yield opened


def payload(site: Site) -> tuple[str | Path, ...]:
    """Flags for a certificate package with a revocation action."""
    directory = site.control.node.disk / "payload"
    script(directory / "local_action_note.sh", '#!/bin/sh\ncp "$1" revocation-seen.json\n')
    script(directory / "autorun.sh", '#!/bin/sh\necho "autorun of $AGENT_UUID"\n')
    (directory / "action_list").write_text("local_action_note.sh\n")
    return ("--cert", "default", "--include", directory)


def enrol(site: Site, control: Control) -> Machine:
    """A machine with an IMA policy and a payload, added by the tenant of `control`, attested."""
    machine = site.running_machine()
    tool = script(machine.node.disk / "root/tool.sh", "#!/bin/sh\n")
    machine.measure(tool)
    policy = site.runtime_policy(machine)
    words = ("-c", "add", "-u", machine.agent_id, "-t", machine.node.ip, "-v", site.control.node.ip)
    control.tenant(*words, "--runtime-policy", policy, *payload(site))
    site.await_passes(machine, more=3)
    machine.agent.wait_for("payload installed")
    machine.agent.wait_for(f"autorun of {machine.agent_id}")
    return machine


def fall_from_grace(site: Site, machine: Machine) -> None:
    """The machine runs a tampered file; it must be noticed, told, and acted on."""
    tool = machine.node.disk / "root/tool.sh"
    with tool.open("a") as file:
        file.write("echo tampered\n")
    machine.measure(tool)
    record = site.await_state(machine, OperationalState.INVALID_QUOTE)
    assert record["last_event_id"] == "ima.validation.ima-ng.runtime_policy_hash"
    machine.agent.wait_for("Executing revocation action local_action_note.sh")
    seen = machine.node.work_dir / "revocation-seen.json"
    await_value(seen.exists, "the action ran")
    message = json.loads(seen.read_text())
    assert message["agent_id"] == machine.agent_id
    assert message["type"] == "revocation"
    assert json.loads(message["meta_data"])["subject"].count(machine.agent_id) == 1


def test_our_agent_among_their_services(all_theirs: Site) -> None:
    machine = enrol(all_theirs, all_theirs.control)
    fall_from_grace(all_theirs, machine)


def test_our_tenant_with_their_services(all_theirs: Site) -> None:
    ours = replace(all_theirs.control, programs=PROGRAMS)
    machine = enrol(all_theirs, ours)
    status = ours.status(machine.agent_id)
    assert status["operational_state"] == "Get Quote"
    for command in (
        "cvlist",
        "bulkinfo",
        "reglist",
        "regstatus",
        "status",
        "listruntimepolicy",
        "listmbpolicy",
    ):
        document = json.loads(ours.tenant("--json", "-c", command, "-u", machine.agent_id).stdout)
        assert machine.agent_id in json.dumps(document) or command == "listmbpolicy"
    fall_from_grace(all_theirs, machine)
    ours.tenant("-c", "reactivate", "-u", machine.agent_id)
    assert "deleted" in ours.tenant("-c", "delete", "-u", machine.agent_id).stdout
    assert machine.agent_id not in ours.tenant("-c", "cvlist").stdout
    ours.tenant("-c", "regdelete", "-u", machine.agent_id)
    assert machine.agent_id not in ours.tenant("-c", "reglist").stdout


def say(site: Site, *words: str) -> str:
    """What the peer's tenant writes; where its log goes depends on its configuration."""
    done = site.control.tenant(*words)
    return done.stderr + done.stdout


def printed_json(output: str) -> dict[str, object]:
    """The last JSON object in what a tenant wrote."""
    lines = [line[line.index("{") :] for line in output.splitlines() if "{" in line]
    return dict(json.loads(lines[-1]))


def test_their_tenant_with_our_services(tenant_theirs: Site) -> None:
    machine = enrol(tenant_theirs, tenant_theirs.control)
    agent_id = machine.agent_id
    assert printed_json(say(tenant_theirs, "-c", "cvlist")) == {"uuids": [[agent_id]]}
    assert printed_json(say(tenant_theirs, "-c", "reglist")) == {"uuids": [agent_id]}
    assert agent_id in printed_json(say(tenant_theirs, "-c", "cvstatus", "-u", agent_id))
    assert agent_id in say(tenant_theirs, "-c", "bulkinfo")
    assert f"Agent {agent_id} exists on registrar" in say(tenant_theirs, "-c", "regstatus", "-u", agent_id)
    fall_from_grace(tenant_theirs, machine)
    assert "Invalid Quote" in say(tenant_theirs, "-c", "cvstatus", "-u", agent_id)
    say(tenant_theirs, "-c", "reactivate", "-u", agent_id)
    say(tenant_theirs, "-c", "delete", "-u", agent_id)
    assert printed_json(say(tenant_theirs, "-c", "cvlist")) == {"uuids": []}
    say(tenant_theirs, "-c", "regdelete", "-u", agent_id)
    assert printed_json(say(tenant_theirs, "-c", "reglist")) == {"uuids": []}


def test_their_tenant_and_named_policies_at_our_verifier(tenant_theirs: Site) -> None:
    tenant, node = tenant_theirs.control.tenant, tenant_theirs.control.node
    machine = tenant_theirs.running_machine()
    machine.measure(script(machine.node.disk / "root/tool.sh", "#!/bin/sh\n"))
    policy = tenant_theirs.runtime_policy(machine)
    boot = node.disk / "boot.json"
    boot.write_text("{}")
    tenant("-c", "addruntimepolicy", "--runtime-policy-name", "web", "--runtime-policy", policy)
    tenant("-c", "addmbpolicy", "--mb-policy-name", "boot", "--mb-policy", boot)
    shown = tenant("-c", "showruntimepolicy", "--runtime-policy-name", "web").stdout
    answer = next(line for line in shown.splitlines() if line.startswith("{"))
    assert ast.literal_eval(answer)["results"]["name"] == "web"
    assert "web" in say(tenant_theirs, "-c", "listruntimepolicy")
    assert "boot" in say(tenant_theirs, "-c", "listmbpolicy")
    words = ("-c", "add", "-u", machine.agent_id, "-t", machine.node.ip, "-v", node.ip)
    tenant(*words, "--runtime-policy-name", "web")
    tenant_theirs.await_passes(machine)
    assert tenant("-c", "deleteruntimepolicy", "--runtime-policy-name", "web", check=False).returncode == 1
    tenant("-c", "updateruntimepolicy", "--runtime-policy-name", "web", "--runtime-policy", policy)
    tenant_theirs.await_passes(machine)
    tenant("-c", "delete", "-u", machine.agent_id)
    tenant("-c", "deleteruntimepolicy", "--runtime-policy-name", "web")
    tenant("-c", "deletembpolicy", "--mb-policy-name", "boot")


@pytest.mark.parametrize("kind", ["sqlite", "mariadb"])
def test_our_services_go_on_where_theirs_were_stopped(
    tmp_path: Path, subnets: Iterator[str], kind: str
) -> None:
    """On the same database, with the same configuration; the agent notices nothing."""
    with ExitStack() as stack:
        databases = {}
        if kind == "mariadb":
            server = stack.enter_context(running_mariadb())
            databases = {name: server.new_database() for name in ("verifier", "registrar")}
        site = stack.enter_context(
            mixed_site(
                tmp_path, next(subnets), verifier=peer(), registrar=peer(), tenant=peer(), databases=databases
            )
        )
        machine = enrol(site, site.control)
        bystander = enrol(site, site.control)
        pids = [one.agent.pid for one in (machine, bystander)]
        keys = [site.registration(one)["aik_tpm"] for one in (machine, bystander)]
        theirs = site.control
        theirs.verifier.stop_all()
        theirs.registrar.stop_all()
        ours = replace(
            theirs,
            verifier=Daemon(theirs.node, "keylime_verifier", theirs.verifier.environment),
            registrar=Daemon(theirs.node, "keylime_registrar", theirs.registrar.environment),
            programs=PROGRAMS,
        )
        site.control = ours
        for daemon in (ours.verifier, ours.registrar):
            stack.callback(daemon.stop_all)
            since = daemon.mark()
            daemon.start().wait_for("Listening on", since=since, limit_s=100)
            assert re.search(r"taken over|takes over|took over", daemon.text(since)), daemon.text(since)
        for one in (machine, bystander):
            site.await_passes(one, more=3)
        assert [site.registration(one)["aik_tpm"] for one in (machine, bystander)] == keys
        fall_from_grace(site, machine)
        assert site.await_passes(bystander)["operational_state"] == OperationalState.GET_QUOTE
        assert [one.agent.pid for one in (machine, bystander)] == pids
        assert all(one.agent.is_running for one in (machine, bystander))
