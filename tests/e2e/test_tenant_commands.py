"""Every command of the tenant against running daemons: done, and each way in which it cannot be done.

What programs rely on: the exit status, one line on stderr that a person can act on, and a document that fits
the published schema.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keylime.messages.verifier import OperationalState
from keylime_tenant.arguments import parse_arguments
from keylime_tenant.catalogue import COMMANDS
from keylime_tenant.json_documents import DOCUMENTS, FAILED
from tests import printed_documents
from tests.fakes.scripted_services import Answer, ScriptedServer
from tests.fakes.tls_material import Authority
from tests.lab.installation import Machine
from tests.lab.site import Site, script

demand_schema = functools.partial(
    printed_documents.demand_schema, "keylime_tenant", DOCUMENTS, failures=FAILED
)
NOBODY, NOTHING = ("-u", "nobody"), ("--runtime-policy-name", "nothing")
NO_BOOT = ("--mb-policy-name", "nothing")
SERVES = "dashboard"  # until it is ended, also while no service answers: it has tests of its own
# A Python object, an internal name, or what only a programmer says.
INTERNAL = re.compile(r"<[a-z_.]+ |object at|_ssl\.c|[A-Z][a-z]+Error\b|\bdict\b|\bstr\b|\bNone\b|\{'")


@dataclass(frozen=True)
class Files:
    """What policies are stored from."""

    runtime: Path
    boot: Path

    def arguments(self, command: str, *, name: Sequence[str], boot_name: Sequence[str]) -> tuple[str, ...]:
        """What `command` needs beside an agent."""
        if command.endswith(("runtimepolicy", "allowlist")) and not command.startswith("list"):
            file = ("--runtime-policy", str(self.runtime))
            return (*name, *(file if command.startswith(("add", "update")) else ()))
        if command.endswith("mbpolicy") and not command.startswith("list"):
            file = ("--mb-policy", str(self.boot))
            return (*boot_name, *(file if command.startswith(("add", "update")) else ()))
        if command in ("policyversions", "restorepolicy"):
            return (*name, *(("--policy-version", "1") if command == "restorepolicy" else ()))
        return ()


def done(site: Site, command: str, *arguments: str | Path) -> Any:
    """The document of a command that does what is asked."""
    run = site.control.tenant(command, *arguments, "--json")
    assert "error" not in run.stderr, (command, run.stderr)
    document = json.loads(run.stdout)
    demand_schema(command, document, failed=False)
    return document


def failed(
    site: Site, command: str, *arguments: str, status: int = 1, environ: Mapping[str, str] | None = None
) -> str:
    """The line of a command that cannot be done."""
    run = site.control.tenant(command, *arguments, "--json", check=False, environ=environ)
    assert run.returncode == status, (command, run)
    document = json.loads(run.stdout)
    demand_schema(command, document, failed=True)
    lines = [line for line in run.stderr.splitlines() if line.startswith("keylime_tenant: error: ")]
    assert len(lines) == 1, (command, run.stderr)
    assert run.stderr.splitlines()[-1] == lines[0]
    line = lines[0].removeprefix("keylime_tenant: error: ")
    if "error" in document:
        assert document["error"] == line
    assert "Traceback" not in run.stderr
    assert not INTERNAL.search(line), (command, line)
    assert line.count("https://") <= 1
    assert len(line) < 600
    return line


@pytest.fixture(scope="module")
def machine(site: Site) -> Machine:
    machine = site.running_machine()
    machine.measure(script(machine.node.disk / "root/tool.sh", "#!/bin/sh\n"))
    return machine


@pytest.fixture(scope="module")
def files(site: Site, machine: Machine) -> Files:
    boot = site.control.node.disk / "boot.json"
    boot.write_text("{}")
    return Files(site.runtime_policy(machine), boot)


RAN: list[str] = []
FLEET, BOOT = ("--runtime-policy-name", "fleet"), ("--mb-policy-name", "boot")
Run = Callable[..., Any]


@pytest.fixture
def run(site: Site, files: Files) -> Run:
    """Does what a command is asked, and notes that it was."""

    def run(command: str, *arguments: str | Path) -> Any:
        RAN.append(command)
        return done(site, command, *arguments, *files.arguments(command, name=FLEET, boot_name=BOOT))

    return run


def test_policies_are_stored_and_told_about(run: Run) -> None:
    assert run("addallowlist")["code"] == 201
    assert run("showallowlist")["results"]["name"] == "fleet"
    assert run("deleteallowlist")["code"] == 204
    assert run("addmbpolicy")["code"] == 201
    assert run("updatembpolicy")["code"] == 201
    assert run("showmbpolicy")["results"] == {"name": "boot", "mb_policy": "{}"}
    assert run("listmbpolicy")["results"] == {"mbpolicy names": ["boot"]}
    assert run("deletembpolicy")["code"] == 204
    assert run("addruntimepolicy")["code"] == 201
    assert run("updateruntimepolicy")["code"] == 201
    assert run("restorepolicy")["code"] == 201
    assert run("showruntimepolicy")["results"]["name"] == "fleet"
    assert run("listruntimepolicy")["results"] == {"runtimepolicy names": ["fleet"]}
    assert [one["is_current"] for one in run("policyversions")["versions"]].count(True) == 1


def test_an_agent_is_added_and_told_about(run: Run, machine: Machine) -> None:
    me = ("-u", machine.agent_id)
    assert run("trust-issuer", *me)["trusted"] is True
    assert list(run("add", *me, *FLEET, "--wait")) == [machine.agent_id]
    assert run("regstatus", *me)["results"][machine.agent_id]["operational_state"] == "Registered"
    assert run("status", *me)["verifier"][machine.agent_id]["runtime_policy_name"] == "fleet"
    assert run("cvlist")["uuids"] == [[machine.agent_id]]
    assert run("reglist")["uuids"] == [machine.agent_id]
    for command in ("cvstatus", "bulkinfo", "top"):
        assert run(command, *me)[machine.agent_id]["attestation_status"] == "PASS"
    assert run("doctor")["ok"] is True


def test_an_agent_that_fell_is_explained_and_approved(
    run: Run, site: Site, machine: Machine, files: Files
) -> None:
    me = ("-u", machine.agent_id)
    machine.measure(script(machine.node.disk / "root/unknown.sh", "#!/bin/sh\nexit\n"))
    site.await_state(machine, OperationalState.INVALID_QUOTE)
    (finding,) = run("why", *me)["findings"]
    (difference,) = run("diff", *me)["differences"]
    assert difference["observed"] == finding["observed"]
    assert "state" in {one["kind"] for one in run("history", *me)["events"]}
    told = [(one["service"], one["kind"], one["agent_id"]) for one in run("audit", "--since", "1d")["events"]]
    at = [("registrar", "registered"), ("verifier", "enrolled"), ("verifier", "state")]
    assert [told.index((*what, machine.agent_id)) for what in at] == sorted(
        told.index((*what, machine.agent_id)) for what in at
    ), "in the order of their times"
    approved = run("approve", *me, "--yes")["approved"]
    assert approved == [{"policy": "fleet", "added": {"digests": {finding["path"]: [finding["observed"]]}}}]
    run("revocations")
    pinned = json.dumps({"23": "0" * 64})
    assert list(run("update", *me, *FLEET, "--tpm_policy", pinned)) == [machine.agent_id]
    several = ("--runtime-policy-name", "fleet@+1h", "--runtime-policy-name", "next")
    done(site, "addruntimepolicy", "--runtime-policy-name", "next", "--runtime-policy", files.runtime)
    united = site.control.tenant("update", *me, *several)
    until = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    assert re.search(rf'runtime_policies was null, is \["fleet until {until}", "next"\]', united.stdout)
    assert [one["name"] for one in run("status", *me)["verifier"][machine.agent_id]["runtime_policies"]] == [
        "fleet",
        "next",
    ]
    assert list(run("update", *me, *FLEET)) == [machine.agent_id]
    assert run("reactivate", *me)["code"] == 200
    assert run("reactivate", "--state", "failed") == {"reactivated": [], "errors": {}}


def test_a_registrar_and_a_verifier_are_not_taken_for_each_other(site: Site, machine: Machine) -> None:
    swapped = {"KEYLIME_TENANT_VERIFIER_PORT": "8891", "KEYLIME_TENANT_REGISTRAR_PORT": "8881"}
    words = {
        "verifier": ("cvlist", "cvstatus", "bulkinfo", "delete"),
        "registrar": ("reglist", "regstatus", "regdelete"),
    }
    for service, commands in words.items():
        for command in commands:
            line = failed(site, command, "-u", machine.agent_id, environ=swapped)
            assert f"does not answer as a {service} does" in line, (command, line)
            assert f"{service}_port" in line
    assert "do not work" in failed(site, "doctor", environ=swapped)
    for command in ("cvstatus", "regstatus"):
        site.control.tenant(command, "-u", machine.agent_id)  # both have it still


def test_an_agent_that_is_taken_away_is_not_found_any_more(run: Run, site: Site, machine: Machine) -> None:
    me = ("-u", machine.agent_id)
    assert run("delete", *me)["code"] == 200
    assert run("delete", *me)["code"] == 404, "who is not there is deleted"
    assert run("deleteruntimepolicy")["code"] == 204
    assert "does not exist on Verifier" in failed(site, "status", *me)
    assert run("regdelete", *me)["code"] == 200
    assert run("regdelete", *me)["code"] == 404
    assert {*RAN, SERVES} == set(COMMANDS), "every command has done something"


NOT_FOUND = {
    "add": "Agent $nobody data not found in the Registrar",
    "update": "Agent $nobody data not found in the Registrar",
    "reactivate": "does not have agent nobody",
    "approve": "does not have agent nobody",
    "trust-issuer": "Agent nobody is not registered",
    "status": "Agent nobody does not exist on Registrar",
    "cvstatus": "Agent nobody does not exist on Verifier",
    "regstatus": "Agent nobody does not exist on Registrar",
    "why": "does not have agent nobody",
    "diff": "does not have agent nobody",
    "history": "knows nothing of agent nobody",
    "updateruntimepolicy": "Runtime policy with name nothing does not already exist",
    "showruntimepolicy": "Runtime policy nothing not found",
    "deleteruntimepolicy": "Runtime policy nothing not found",
    "showallowlist": "Runtime policy nothing not found",
    "deleteallowlist": "Runtime policy nothing not found",
    "policyversions": "nothing",
    "restorepolicy": "nothing",
    "updatembpolicy": "nothing",
    "showmbpolicy": "nothing",
    "deletembpolicy": "nothing",
}


def test_what_is_not_there(site: Site, files: Files) -> None:
    for command, words in NOT_FOUND.items():
        more = files.arguments(command, name=NOTHING, boot_name=NO_BOOT)
        assert words in failed(site, command, *NOBODY, *more), command


@dataclass(frozen=True)
class Obstacle:
    """What keeps every command from being carried out: in the environment of the tenant; and what is told."""

    environ: Mapping[str, str]
    told: tuple[str, ...]  # of which one is in the line


@pytest.fixture(scope="module")
def plain() -> Iterator[ScriptedServer]:
    """A server that does not speak TLS, and does not mind how often it is asked to."""
    with ScriptedServer(lambda _: Answer(404), None) as server:
        yield server


@pytest.fixture(scope="module")
def obstacles(site: Site, plain: ScriptedServer) -> dict[str, Obstacle]:
    directory = site.control.node.disk / "strangers"
    directory.mkdir()
    stranger = Authority("Somebody else")
    stranger.write(directory / "cacert.crt")
    issued = stranger.issue("client")
    (directory / "cert.crt").write_text(issued.pem)
    key = directory / "private.pem"
    key.touch(mode=0o600)
    key.write_bytes(issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return {
        "unreachable": Obstacle(
            {"KEYLIME_TENANT_VERIFIER_PORT": "1", "KEYLIME_TENANT_REGISTRAR_PORT": "1"},
            ("Connection refused",),
        ),
        "plain HTTP": Obstacle(
            {
                "KEYLIME_TENANT_VERIFIER_IP": "127.0.0.1",
                "KEYLIME_TENANT_VERIFIER_PORT": str(plain.port),
                "KEYLIME_TENANT_REGISTRAR_IP": "127.0.0.1",
                "KEYLIME_TENANT_REGISTRAR_PORT": str(plain.port),
            },
            ("does not speak TLS",),
        ),
        "another authority": Obstacle(
            {"KEYLIME_TENANT_TRUSTED_SERVER_CA": f"['{directory}/cacert.crt']"}, ("trusted_server_ca",)
        ),
        "refused": Obstacle(
            {
                "KEYLIME_TENANT_CLIENT_CERT": f"{directory}/cert.crt",
                "KEYLIME_TENANT_CLIENT_KEY": f"{directory}/private.pem",
            },
            ("client_cert",),
        ),
    }


# One word for each thing that is done: older names of commands are no commands of their own.
NEEDING_SERVICES = [
    word
    for word, command in COMMANDS.items()
    if command.replacement is None and word not in ("doctor", SERVES)
]
# Of each module one: the connection, which is to blame, is the same for all of its commands.
ONE_OF_EACH_KIND = list({COMMANDS[word].place.partition(".")[0]: word for word in NEEDING_SERVICES}.values())


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("unreachable", NEEDING_SERVICES),
        ("refused", NEEDING_SERVICES),
        ("plain HTTP", ONE_OF_EACH_KIND),
        ("another authority", ONE_OF_EACH_KIND),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_services_that_do_not_take_orders(
    site: Site, files: Files, obstacles: Mapping[str, Obstacle], name: str, commands: Sequence[str]
) -> None:
    obstacle = obstacles[name]
    for command in commands:
        more = files.arguments(command, name=NOTHING, boot_name=NO_BOOT)
        line = failed(site, command, *NOBODY, *more, environ=obstacle.environ)
        assert any(words in line for words in obstacle.told), (command, line)
    # The doctor goes on, and tells all that it finds.
    assert "do not work" in failed(site, "doctor", environ=obstacle.environ)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("why",), "which agent? give -u ID"),
        (
            ("cvlist", "-v", "127.0.0.1:8881"),
            "-v: '127.0.0.1:8881' is more than an address: give the port",
        ),
        (("reglist", "-r", "https://[::1]"), "-r: 'https://[::1]' is more than an address"),
        (
            ("cvlist", "-v", "name.invalid"),
            "cannot connect: Name or service not known (check",
        ),
        (("addmbpolicy", "--mb-policy-name", "x", "--mb-policy", "/dev/null"), "is empty"),
        (
            ("add", "-u", "nobody", "--runtime-policy", "/dev/null"),
            "--runtime-policy /dev/null: the runtime policy is",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_was_typed_wrongly_is_named(site: Site, arguments: tuple[str, ...], words: str) -> None:
    assert words in failed(site, *arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_usage(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments([command, "--uid", "x", "--json"])
    assert ended.value.code == 2
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    demand_schema(command, document, failed=True)
    assert "--uid" in document["error"]
    assert "--uuid" in document["error"]
    assert shown.err == f"keylime_tenant: error: {document['error']}\n"
