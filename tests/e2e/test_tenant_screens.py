"""What a person sees on a terminal, and a program in a document: every command against running services."""

import fcntl
import hashlib
import json
import os
import pty
import re
import struct
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from keylime.messages.deliveries import Deliveries
from keylime.messages.verifier import AgentStatus, OperationalState
from keylime_agent.json_documents import DOCUMENTS
from tests.fakes import forked_programs
from tests.fakes.forked_programs import Order
from tests.lab.installation import Machine
from tests.lab.site import Site, script
from tests.printed_documents import demand_schema

_LIMIT_S = 100.0
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][A-Z0-9]?|\r")
LONG_NAME = "a-file-whose-name-is-longer-than-a-line-of-an-ordinary-terminal-" + "x" * 60


@dataclass(frozen=True)
class Seen:
    """What was on the screen, and how the program ended."""

    code: int
    raw: str

    @property
    def text(self) -> str:
        """Without what moves the cursor and changes colours."""
        return _CONTROL.sub("", self.raw)


def on_terminal(
    site: Site, columns: int, *arguments: str, talk: Sequence[tuple[str, bytes]] = (), **environ: str
) -> Seen:
    """`keylime_tenant` on a terminal of so many columns; each text of `talk` is waited for, then answered."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    control, seen, waiting = site.control, b"", list(talk)
    variables = {**control.node.variables(), **control.environment, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        variables.pop(name, None)
    order = Order(
        "keylime_tenant", arguments, {**variables, **environ}, str(control.node.disk), is_leader=True
    )
    process = forked_programs.start(order, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    deadline = time.monotonic() + _LIMIT_S
    while True:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # the program has closed its side
            break
        if waiting and waiting[0][0] in _CONTROL.sub("", seen.decode("utf-8", "replace")):
            os.write(ours, waiting.pop(0)[1])
        assert time.monotonic() < deadline, seen
    code = process.wait(_LIMIT_S)
    os.close(ours)
    assert not waiting, f"never shown: {waiting}\n{seen!r}"
    found = Seen(code, seen.decode())
    assert "Traceback" not in found.text
    return found


@pytest.fixture(scope="module")
def passing(site: Site) -> Machine:
    return site.attested_machine()


@pytest.fixture(scope="module")
def failing(site: Site) -> tuple[Machine, Path]:
    """A machine that ran a file with a long name, which no policy knows."""
    machine = site.running_machine()
    machine.measure(script(machine.node.disk / "root/tool.sh", "#!/bin/sh\n"))
    site.control.tenant(
        *("addruntimepolicy", "--runtime-policy-name", "fleet-of-screens"),
        *("--runtime-policy", site.runtime_policy(machine)),
    )
    site.add(machine, "--runtime-policy-name", "fleet-of-screens")
    site.await_passes(machine)
    unknown = script(machine.node.disk / "root" / LONG_NAME, "#!/bin/sh\n")
    machine.measure(unknown)
    site.await_state(machine, OperationalState.INVALID_QUOTE)
    return machine, unknown


@pytest.mark.parametrize("columns", [80, 140])
def test_no_screen_cuts_an_id_a_path_or_a_digest(
    site: Site, passing: Machine, failing: tuple[Machine, Path], columns: int
) -> None:
    machine, unknown = failing
    (finding,) = site.record(machine)["last_findings"]
    evidence = (machine.agent_id, str(unknown), finding["observed"])
    for command in ("cvstatus", "status", "bulkinfo"):
        seen = on_terminal(site, columns, command, "-u", machine.agent_id)
        assert seen.code == 0
        assert all(value in seen.text for value in evidence), seen.text
        assert "1. ima.validation.ima-ng.not_in_allowlist" in seen.text
        assert "keylime.tenant - INFO" not in seen.text
        assert "\x1b[31;1mfailed\x1b[0m" in seen.raw
    status = on_terminal(site, columns, "status", "-u", machine.agent_id, NO_COLOR="1")
    assert "\x1b[" not in status.raw
    assert "in force  runtime policy fleet-of-screens" in status.text
    registered = on_terminal(site, columns, "regstatus", "-u", passing.agent_id)
    assert re.search(r"attestation key  +SHA-256 [0-9a-f]{64}\n", registered.text)
    for command in ("cvlist", "reglist"):
        listed = on_terminal(site, columns, command).text.splitlines()
        assert {passing.agent_id, machine.agent_id} <= set(listed)
    assert on_terminal(site, columns, "listruntimepolicy").text.splitlines()[-1] == "fleet-of-screens"
    assert on_terminal(site, columns, "revocations").code == 0
    failed = on_terminal(site, columns, "cvstatus", "-u", "x" * 79)
    assert failed.code == 1
    assert failed.text.count("x" * 79) == 1
    assert len(failed.text.splitlines()) == 1


@pytest.mark.parametrize("columns", [80, 140])
def test_no_screen_on_the_way_to_a_repair_cuts_them_either(
    site: Site, failing: tuple[Machine, Path], columns: int
) -> None:
    machine, unknown = failing
    (finding,) = site.record(machine)["last_findings"]
    me, path, digest = machine.agent_id, str(unknown), finding["observed"]
    policy = site.control.node.disk / f"policy-{machine.node.name}.json"
    version = hashlib.sha256(policy.read_bytes()).hexdigest()
    fleet = ("--runtime-policy-name", "fleet-of-screens")
    refusal = (("Is all of this right (yes/no)? ", b"no\n"),)
    talk: Sequence[tuple[str, bytes]]
    for arguments, code, values, talk in (
        (("why", "-u", me), 0, (me, path, digest, f"keylime_tenant approve -u {me}"), ()),
        (("diff", "-u", me), 0, (path, digest), ()),
        (("history", "-u", me), 0, (path, digest, version), ()),
        (("policyversions", *fleet), 0, (me, version), ()),
        (("showruntimepolicy", *fleet), 0, (str(machine.node.disk / "root/tool.sh"),), ()),
        (("approve", "-u", me), 1, (path, digest, "nothing is changed: the answer was not yes"), refusal),
        (("doctor",), 0, (str(site.control.node.work_dir / "cv_ca" / "client-cert.crt"),), ()),
        (("trust-issuer", "-u", me), 0, (me,), ()),
    ):
        seen = on_terminal(site, columns, *arguments, talk=talk)
        assert seen.code == code, seen.text
        assert not [value for value in values if value not in seen.text], seen.text
        assert "keylime.tenant - INFO" not in seen.text
    # On the live screen lines are folded, and nothing of them is lost.
    keys = (("1 failed", b"\n"), ("not_in_allowlist", b"q"))
    seen = on_terminal(site, columns, "top", talk=keys)
    assert seen.code == 0
    shown = re.sub(r"\s", "", seen.text)
    assert not [value for value in (me, path, digest) if value not in shown], seen.text


def test_programs_get_documents_of_known_shape(site: Site, failing: tuple[Machine, Path]) -> None:
    machine, unknown = failing

    def run(*arguments: str) -> str:
        return site.control.tenant(*arguments).stdout

    def decoded(*arguments: str) -> Any:
        return json.loads(run(*arguments, "--json"))

    status = decoded("cvstatus", "-u", machine.agent_id)[machine.agent_id]
    known = msgspec.convert(status, AgentStatus)
    assert [one.path for one in known.last_findings] == [str(unknown)]
    both = decoded("status", "-u", machine.agent_id)
    assert both["registrar"][machine.agent_id]["operational_state"] == "Registered"
    assert (
        msgspec.convert(both["verifier"][machine.agent_id], AgentStatus).runtime_policy_name
        == "fleet-of-screens"
    )
    for one in decoded("bulkinfo").values():
        msgspec.convert(one, AgentStatus)
    msgspec.convert(decoded("revocations"), Deliveries)
    assert [machine.agent_id] in decoded("cvlist")["uuids"]
    assert machine.agent_id in decoded("reglist")["uuids"]
    policy = decoded("showruntimepolicy", "--runtime-policy-name", "fleet-of-screens")
    assert policy["code"] == 200
    assert policy["results"]["name"] == "fleet-of-screens"
    assert machine.agent_id in run("cvlist", "-o", "name").splitlines()
    rows = [json.loads(line) for line in run("bulkinfo", "-o", "jsonl").splitlines()]
    assert machine.agent_id in {row["agent_id"] for row in rows}
    assert str(unknown) in run("bulkinfo", "-o", "table")


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("cvstatus", "-u", "nobody"), 1, "nobody does not exist on Verifier"),
        (("--uuid", "no/id", "cvstatus"), 1, "--uuid: agent id 'no/id' is not valid"),
        (("reglist", "-rp", "8890"), 1, "does not speak TLS; its TLS port is 8891"),
        (("cvlist", "-vp", "1"), 1, "Connection refused (check that it is running, and -vp)"),
        (("add", "-u", "nobody", "--runtime-policy", "/nowhere"), 1, "--runtime-policy: No such file"),
        (("showruntimepolicy",), 1, "runtime_policy_name is required to show a runtime policy"),
        (("cvlist", "--uid", "x"), 2, "did you mean --uuid?"),
        (("add", "--exclude", "x"), 2, "--exclude cannot be used without an --allowlist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_error_is_one_line_and_a_document(
    site: Site, arguments: tuple[str, ...], status: int, told: str
) -> None:
    done = site.control.tenant(*arguments, "--json", check=False)
    assert done.returncode == status
    error = json.loads(done.stdout)["error"]
    assert told in error
    assert "\n" not in error
    assert done.stderr.splitlines()[-1] == f"keylime_tenant: error: {error}"
    assert error.count("https://") <= 1
    assert not re.search(r"<[a-z_.]+ |object at|_ssl\.c|Error\(|\bdict\b|\bstr\b", error)


def test_the_doctor_finds_nothing_and_then_what_is_wrong(site: Site, passing: Machine) -> None:
    well = site.control.tenant("doctor", "-o", "table")
    lines = well.stdout.splitlines()
    assert not [line for line in lines if line.startswith("BAD")]
    for subject in (
        "configuration of verifier",
        "directory ",
        "disk of",
        "clock",
        "certificate ",
        "database of",
    ):
        assert any(subject in line for line in lines), (subject, lines)
    assert any("administration: takes our certificate" in line for line in lines)
    assert any(line.startswith("ok       clock of verifier") for line in lines), lines
    assert any("EK store" in line and "certificates of makers" in line for line in lines), lines
    ill = site.control.tenant("doctor", "--json", "-rp", "8890", check=False)
    assert ill.returncode == 1
    document = json.loads(ill.stdout)
    assert document["ok"] is False
    (bad,) = [one for one in document["checks"] if one["grade"] == "bad"]
    assert "does not speak TLS" in bad["text"]
    assert set(bad) == {"subject", "grade", "text", "remedy"}


def test_the_agent_examines_its_machine(site: Site, passing: Machine) -> None:
    environment = {**passing.node.variables(), **passing.agent.environment, "TCTI": passing.tpm.tcti}
    passing.agent.stop()  # a software TPM has one user at a time
    try:
        order = Order("keylime_agent", ("--check", "--json"), environment, str(passing.node.disk))
        done = forked_programs.run(order, limit_s=_LIMIT_S)
    finally:
        passing.agent.start()
    document = json.loads(done.stdout)
    demand_schema("keylime_agent", DOCUMENTS, "check", document)
    found = {one["subject"]: one for one in document["checks"]}
    assert found["TPM"]["grade"] == "ok"
    assert found["PCR banks"]["grade"] == "ok"
    assert found["EK certificate"]["text"].startswith("issued by ")
    assert found[f"registrar {site.control.node.ip}:8890"]["grade"] == "ok"
    assert found["IMA"]["grade"] in ("bad", "warning", "ok")
    assert done.returncode == (1 if any(one["grade"] == "bad" for one in found.values()) else 0)


def test_top_shows_the_fleet_and_acts_on_it(
    site: Site, passing: Machine, failing: tuple[Machine, Path]
) -> None:
    machine, _ = failing
    talk = (
        ("1 failed", b"\n"),  # the findings of the first, which is the worst
        ("not_in_allowlist", b"/" + passing.agent_id.encode() + b"\n"),
        ("1 shown", b"t"),
        (f"stop agent {passing.agent_id}?", b"y"),
        ("stop: 1 of 1 agents", b"r"),
        (f"reactivate agent {passing.agent_id}?", b"y"),
        ("reactivate: 1 of 1 agents", b"q"),
    )
    seen = on_terminal(site, 140, "top", talk=talk)
    assert seen.code == 0
    assert machine.agent_id in seen.text
    site.await_passes(passing)
    once = site.control.tenant("top", "-o", "name")
    assert {machine.agent_id, passing.agent_id} <= set(once.stdout.splitlines())


def test_who_types_no_command_is_asked_and_scripts_are_not(site: Site, passing: Machine) -> None:
    talk = ((f"Add agent {passing.agent_id} to the verifier (yes/no)? ", b"no\n"),)
    seen = on_terminal(site, 80, "-u", passing.agent_id, talk=talk)
    assert seen.code == 1
    assert "nothing was done: name a command" in seen.text
    talk = ((talk[0][0], b"yes\n"),)
    assert "already exists at the verifier" in on_terminal(site, 80, "-u", passing.agent_id, talk=talk).text
    assert "usage: keylime_tenant COMMAND" in on_terminal(site, 80).text
    done = site.control.tenant("-u", passing.agent_id, check=False)
    assert "already exists at the verifier" in done.stderr


def test_orders_are_answered_in_a_line_for_people(site: Site) -> None:
    machine = site.running_machine()
    added = on_terminal(site, 80, "add", "-u", machine.agent_id, "--wait")
    assert added.code == 0
    assert "quote" not in added.text
    assert f"Agent {machine.agent_id} passed its attestation" in added.text
    assert "nothing judged" in added.text
    changed = on_terminal(
        site, 80, "update", "-u", machine.agent_id, "--tpm_policy", '{"23": "' + "0" * 64 + '"}'
    )
    assert changed.code == 0
    assert "tpm_policy was" in changed.text
    reactivated = on_terminal(site, 80, "reactivate", "-u", machine.agent_id)
    assert f"Agent {machine.agent_id} re-activated" in reactivated.text
    deleted = on_terminal(site, 80, "delete", "-u", machine.agent_id)
    assert deleted.text.splitlines()[-1] == f"Agent {machine.agent_id} deleted from the CV"
    gone = on_terminal(site, 80, "regdelete", "-u", machine.agent_id)
    assert gone.text.splitlines()[-1] == f"agent {machine.agent_id} is not registered any more"
