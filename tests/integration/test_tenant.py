"""The tenant as a program, against scripted peers on loopback HTTPS."""

import base64
import io
import json
import os
import pty
import signal
import socket
import ssl
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509

from keylime.payload.encryption import decrypt_payload
from tests.captures import CA_DIRECTORY, capture
from tests.fakes.attesting_agent import policy_of
from tests.fakes.forked_programs import Order, run, start
from tests.fakes.scripted_agent import ScriptedAgent
from tests.fakes.scripted_services import Answer, Call, ScriptedRegistrar, ScriptedVerifier

AGENT = "node1"
CAPTURE = capture("direct-critical-data-4banks")


@dataclass
class Lab:
    """A working directory with the verifier's CA, two services, and the registered agent."""

    work_dir: Path
    registrar: ScriptedRegistrar
    verifier: ScriptedVerifier
    agent: ScriptedAgent
    environ: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """`keylime_tenant` with these arguments, finished."""
        ports = (f"-rp={self.registrar.server.port}", f"-vp={self.verifier.server.port}")
        services = (word for port in ports for word in port.split("="))
        return run(Order("keylime_tenant", (*services, *arguments), {**self.environ, **environ}))

    @property
    def calls(self) -> list[Call]:
        """What the agent was asked."""
        return self.agent.server.calls

    def added(self) -> dict[str, Any]:
        """The body with which the agent was added."""
        (body,) = (call.body for call in self.verifier.server.calls if call.method == "POST")
        assert isinstance(body, dict)
        return body


def server_context(ca: trustme.CA, leaf: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    ca = trustme.CA()
    tls_dir = tmp_path / "cv_ca"
    tls_dir.mkdir()
    client = ca.issue_cert(common_name="client")
    ca.cert_pem.write_to_path(tls_dir / "cacert.crt")
    client.cert_chain_pems[0].write_to_path(tls_dir / "client-cert.crt")
    client.private_key_pem.write_to_path(tls_dir / "client-private.pem")
    (tls_dir / "client-private.pem").chmod(0o600)
    services = server_context(ca, ca.issue_cert("127.0.0.1"))
    leaf = trustme.CA().issue_cert("127.0.0.1")
    agent = ScriptedAgent(AGENT, server_context(ca, leaf))
    environ = {
        "PATH": os.environ["PATH"],
        "KEYLIME_DIR": str(tmp_path),
        "KEYLIME_CA_PASSWORD": "secret",
        "KEYLIME_TENANT_RETRY_INTERVAL": "0.05",
        "KEYLIME_TENANT_TPM_CERT_STORE": str(CA_DIRECTORY),
    }
    registrar, verifier = ScriptedRegistrar(services), ScriptedVerifier(services)
    with registrar.server, verifier.server, agent.server:
        registrar.records[AGENT] = {
            "agent_id": AGENT,
            "ek_tpm": base64.b64encode(CAPTURE.ek_public("rsa")).decode(),
            "ekcert": base64.b64encode(CAPTURE.ek_certificate).decode(),
            "aik_tpm": base64.b64encode(agent.ak.tpm2b_public).decode(),
            "ip": "127.0.0.1",
            "port": agent.server.port,
            "mtls_cert": leaf.cert_chain_pems[0].bytes().decode(),
            "regcount": 1,
        }
        yield Lab(tmp_path, registrar, verifier, agent, environ)


def succeeded(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


def failed(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one line on stderr."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("keylime_tenant: error: ")
    return line


def test_a_failure_is_one_line_for_people_and_one_in_each_stream_for_programs(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "KEYLIME_DIR": str(tmp_path)}
    order = Order("keylime_tenant", ("-c", "cvlist", "-u", "no/id"), environ)
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as screen:
        status = start(order, stdout=theirs, stderr=theirs).wait(100)
        os.close(theirs)
        shown = screen.read(4096).decode()
    assert status == 1
    assert shown.count("agent id 'no/id' is not valid") == 1, shown
    piped = run(order)
    assert " - ERROR - -u: agent id 'no/id' is not valid" in piped.stdout
    assert failed(piped).startswith("keylime_tenant: error: -u: agent id 'no/id' is not valid")


@pytest.mark.parametrize("check", ["off", "warn", "strict"])
def test_n4_servers_under_another_name_than_their_certificates(lab: Lab, check: str) -> None:
    """The services' certificate is for 127.0.0.1, and they are called by the name of the host."""
    environ = {
        "KEYLIME_TENANT_CHECK_SERVER_NAMES": check,
        "KEYLIME_TENANT_REGISTRAR_IP": "localhost",
        "KEYLIME_TENANT_MAX_RETRIES": "1",
    }
    done = lab.run("-c", "reglist", **environ)
    remark = "its certificate is for 127.0.0.1 and not for localhost"
    if check == "strict":
        assert remark in failed(done)
        assert lab.registrar.server.calls == []
        return
    assert succeeded(done).stdout.count(remark) == (check == "warn")
    assert AGENT in done.stdout
    environ["KEYLIME_TENANT_REGISTRAR_IP"] = "127.0.0.1"
    assert remark not in succeeded(lab.run("-c", "reglist", **environ)).stdout


def test_an_unknown_way_to_check_names_is_one_line(lab: Lab) -> None:
    done = lab.run("-c", "reglist", KEYLIME_TENANT_CHECK_SERVER_NAMES="yes")
    assert "expected one of off, warn, strict" in failed(done)


@pytest.mark.parametrize("thing", ["script", "reference"])
def test_h1_what_others_may_change_is_neither_run_nor_believed(lab: Lab, thing: str) -> None:
    path = lab.work_dir / thing
    path.write_text('#!/bin/sh\ntouch "$PWD/ran"\n')
    path.chmod(0o757)
    option = {"script": "EK_CHECK_SCRIPT", "reference": "MB_REFSTATE"}[thing]
    arguments = ("--mb-policy", "default") if thing == "reference" else ()
    line = failed(
        lab.run(
            "-c", "add", "-u", AGENT, "-t", "127.0.0.1", *arguments, **{f"KEYLIME_TENANT_{option}": str(path)}
        )
    )
    assert f"[tenant] {option.lower()}: {path} may be written by everybody (mode 0757)" in line
    assert not (lab.work_dir / "ran").exists()


def test_an_agent_is_added_with_its_payload_and_proves_its_key(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("for the agent only")
    lab.verifier.on_add = lambda _agent, body: lab.agent.receive_v(base64.b64decode(body["v"]))
    done = succeeded(lab.run("-u", AGENT, "-f", str(tmp_path / "secret.txt"), "--verify"))
    assert f"Agent {AGENT} (127.0.0.1:{lab.agent.server.port}) added to Verifier" in done.stdout
    for peer in ("registrar", "verifier", "agent"):  # as monitors of existing installations match it
        assert f" - INFO - Using API version 2.5 for {peer} communication" in done.stdout
    assert [call.path for call in lab.calls][:3] == ["/version", "/v2.5/quotes/identity", "/v2.5/keys/ukey"]
    assert lab.agent.key is not None
    assert lab.agent.payload is not None
    assert decrypt_payload(lab.agent.key, lab.agent.payload) == b"for the agent only"
    body = lab.added()
    assert base64.b64decode(body["ak_tpm"]) == lab.agent.ak.tpm2b_public
    assert body["supported_version"] == "2.5"
    assert body["mtls_cert"] == lab.registrar.records[AGENT]["mtls_cert"]
    assert lab.verifier.server.paths("POST") == [f"/v2.5/agents/{AGENT}"]


def test_until_the_new_key_arrives_an_agent_may_prove_a_former_one(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("for the agent only")
    lab.agent.key = bytes(32)
    shares: list[bytes] = []
    lab.verifier.on_add = lambda _agent, body: shares.append(base64.b64decode(body["v"]))

    def deliver(proofs: int) -> None:
        if proofs == 3:
            lab.agent.receive_v(shares[0])

    lab.agent.on_proof = deliver
    done = succeeded(lab.run("-u", AGENT, "-f", str(tmp_path / "secret.txt"), "--verify"))
    assert "Key derivation successful" in done.stdout + done.stderr
    assert lab.agent.proofs == 3


def test_an_agent_that_goes_on_proving_another_key_is_stopped(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("for the agent only")
    lab.agent.key = bytes(32)
    environ = {"KEYLIME_TENANT_MAX_RETRIES": "2"}
    line = failed(lab.run("-u", AGENT, "-f", str(tmp_path / "secret.txt"), "--verify", **environ))
    assert "has another key than the one that was sent" in line
    assert lab.agent.proofs > 1
    assert lab.verifier.server.paths("PUT") == [f"/v2.5/agents/{AGENT}/stop"]


def test_y5_nobody_but_tenant_and_agent_ever_sees_both_shares(lab: Lab, tmp_path: Path) -> None:
    """Not the verifier, not the registrar, not who reads a log, a file or a connection's other end."""
    (tmp_path / "secret.txt").write_text("for the agent only")
    before = {path for path in lab.work_dir.rglob("*") if path.is_file()}  # the secret among them
    lab.verifier.on_add = lambda _agent, body: lab.agent.receive_v(base64.b64decode(body["v"]))
    environ = {"KEYLIME_LOGGING_LOGGER_KEYLIME_LEVEL": "DEBUG"}
    done = succeeded(lab.run("-u", AGENT, "-f", str(tmp_path / "secret.txt"), "--verify", **environ))
    u, v, k = lab.agent.u, base64.b64decode(lab.added()["v"]), lab.agent.key
    assert u is not None
    assert k is not None
    assert bytes(a ^ b for a, b in zip(u, v, strict=True)) == k

    def holds(text: str, secret: bytes) -> bool:
        forms = (base64.b64encode(secret).decode(), secret.hex(), repr(secret), "for the agent only")
        return any(form in text for form in forms)

    def told(calls: Sequence[object]) -> str:
        return "".join(map(repr, calls))

    at_verifier, at_registrar = told(lab.verifier.server.calls), told(lab.registrar.server.calls)
    assert holds(at_verifier, v)
    assert not holds(at_verifier, u)
    assert not holds(at_verifier, k)
    written = [path for path in lab.work_dir.rglob("*") if path.is_file() and path not in before]
    files = "".join(path.read_bytes().decode("latin-1") for path in written)
    places = {
        "registrar": at_registrar,
        "connections to the agent": told(lab.calls),
        "output": done.stdout + done.stderr,
        "files": files,
    }
    for name, place in places.items():
        for secret in (u, v, k):
            assert not holds(place, secret), name


def test_without_a_payload_the_agent_gets_no_key_share(lab: Lab) -> None:
    succeeded(lab.run("-u", AGENT, "-v", "-c", "add", "--tpm_policy", '{"15": "AB"}'))
    assert lab.agent.u is None
    assert lab.added()["v"] is None
    assert json.loads(lab.added()["tpm_policy"]) == {"15": ["ab"], "mask": "0x8000"}


def test_a_certificate_package_is_made_and_delivered(lab: Lab, tmp_path: Path) -> None:
    include = tmp_path / "include"
    include.mkdir()
    (include / "autorun.sh").write_text("#!/bin/sh\n")
    lab.verifier.on_add = lambda _agent, body: lab.agent.receive_v(base64.b64decode(body["v"]))
    done = succeeded(lab.run("-u", AGENT, "--cert", "default", "--include", str(include)))
    assert "CA directory does not exist. Creating..." in done.stdout
    assert lab.agent.key is not None
    assert lab.agent.payload is not None
    names = zipfile.ZipFile(io.BytesIO(decrypt_payload(lab.agent.key, lab.agent.payload))).namelist()
    assert {"autorun.sh", f"{AGENT}-cert.crt", "RevocationNotifier-cert.crt"} <= set(names)
    assert "PRIVATE KEY" in lab.added()["revocation_key"]
    assert (lab.work_dir / "ca" / f"{AGENT}-cert.crt").exists()


def test_the_shipped_password_without_a_terminal_is_an_error_before_anything_is_sent(lab: Lab) -> None:
    line = failed(lab.run("-u", AGENT, "--cert", "default", KEYLIME_CA_PASSWORD="default"))  # noqa: S106
    assert "KEYLIME_CA_PASSWORD" in line
    assert lab.verifier.server.paths("POST") == []


def test_a_swapped_payload_key_stops_the_enrolment_before_u_is_sent(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "p").write_text("secret")
    lab.agent.bound_pem = ScriptedAgent(AGENT, None).pubkey
    line = failed(lab.run("-u", AGENT, "-f", str(tmp_path / "p")))
    assert "PCR 16" in line
    assert lab.agent.u is None
    assert lab.verifier.server.paths("POST") == []


def test_an_untrusted_ek_stops_the_enrolment_before_u_is_sent(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "p").write_text("secret")
    (tmp_path / "store").mkdir()
    store = str(tmp_path / "store")
    line = failed(lab.run("-u", AGENT, "-f", str(tmp_path / "p"), KEYLIME_TENANT_TPM_CERT_STORE=store))
    assert "Invalid EK certificate" in line
    assert lab.agent.u is None
    assert lab.verifier.server.paths("POST") == []


def test_another_server_under_the_agents_address_is_not_talked_to(lab: Lab) -> None:
    other = trustme.CA().issue_cert("127.0.0.1")
    lab.registrar.records[AGENT]["mtls_cert"] = other.cert_chain_pems[0].bytes().decode()
    done = lab.run("-u", AGENT)
    assert "trusted_client_ca" in failed(done)
    assert "if it is on another one, name its address with -t" in done.stdout
    assert lab.calls == []


def test_an_agent_that_does_not_trust_our_certificate_is_explained(lab: Lab) -> None:
    stranger = trustme.CA()
    leaf = stranger.issue_cert("127.0.0.1")
    stern = ScriptedAgent(AGENT, server_context(stranger, leaf), ak=lab.agent.ak)
    with stern.server:
        lab.registrar.records[AGENT]["port"] = stern.server.port
        lab.registrar.records[AGENT]["mtls_cert"] = leaf.cert_chain_pems[0].bytes().decode()
        assert "trusted_client_ca" in failed(lab.run("-u", AGENT))
    assert stern.server.calls == []


def test_a_busy_agent_is_asked_again(lab: Lab) -> None:
    lab.agent.busy_rounds = 2
    done = succeeded(lab.run("-u", AGENT))
    assert f"Waiting for agent {AGENT}: try 2 of 6" in done.stdout


def test_a_second_add_asks_to_delete_or_update_and_leaves_the_agent_alone(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "p").write_text("secret")
    succeeded(lab.run("-u", AGENT))
    line = failed(lab.run("-u", AGENT, "-f", str(tmp_path / "p")))
    assert 'Run "delete" or "update" first.' in line
    assert lab.agent.u is None


def test_update_replaces_an_agent(lab: Lab) -> None:
    succeeded(lab.run("-u", AGENT))
    succeeded(lab.run("-c", "update", "-u", AGENT, "--tpm_policy", '{"7": ["cd"]}'))
    assert json.loads(lab.verifier.agents[AGENT]["tpm_policy"])["mask"] == "0x80"


def writes(lab: Lab) -> list[str]:
    """How the verifier was asked to change something, in order."""
    return [call.method for call in lab.verifier.server.calls if call.method != "GET"]


def changed_to(lab: Lab) -> dict[str, Any]:
    (body,) = (call.body for call in lab.verifier.server.calls if call.method == "PUT")
    assert isinstance(body, dict)
    return body


IDENTITY = {
    *("ak_tpm", "mtls_cert", "supported_version"),
    *("accept_tpm_hash_algs", "accept_tpm_encryption_algs", "accept_tpm_signing_algs"),
}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ((), {}),
        (("--tpm_policy", '{"7": ["cd"]}'), {"tpm_policy": '{"7": ["cd"], "mask": "0x80"}'}),
        (("--runtime-policy-name", "fleet"), {"runtime_policy": None, "runtime_policy_name": "fleet"}),
        (
            ("--no-runtime-policy", "--no-tpm-policy", "--no-mb-policy"),
            {
                "runtime_policy": None,
                "runtime_policy_name": None,
                "ima_sign_verification_keys": None,
                "tpm_policy": None,
                "mb_policy": None,
                "mb_policy_name": None,
            },
        ),
        (("--cv_targethost", "192.0.2.7"), {"cloudagent_ip": "192.0.2.7", "cloudagent_port": ...}),
    ],
)
def test_update_tells_in_one_request_only_what_was_named(
    lab: Lab, flags: Sequence[str], named: dict[str, Any]
) -> None:
    lab.verifier.can_update = True
    lab.verifier.policies["allowlists"]["fleet"] = "{}"
    succeeded(lab.run("-u", AGENT))
    done = succeeded(lab.run("-c", "update", "-u", AGENT, *flags))
    port = lab.agent.server.port
    assert {name: value for name, value in changed_to(lab).items() if name not in IDENTITY} == {
        name: port if value is ... else value for name, value in named.items()
    }
    assert writes(lab) == ["POST", "PUT"]
    if flags[:1] == ("--tpm_policy",):
        assert f"Agent {AGENT}: tpm_policy was" in done.stdout
    if not flags:
        assert "nothing changed" in done.stdout
    assert "nothing judged" not in done.stdout


def test_update_with_a_payload_sends_all_that_comes_with_it(lab: Lab, tmp_path: Path) -> None:
    lab.verifier.can_update = True
    (tmp_path / "p").write_text("secret")
    succeeded(lab.run("-u", AGENT))
    succeeded(lab.run("-c", "update", "-u", AGENT, "-f", str(tmp_path / "p")))
    assert set(changed_to(lab)["payload"]) == {"v", "metadata", "revocation_key"}
    assert lab.agent.u is not None


def test_a_verifier_that_does_not_know_of_several_policies_holds_to_one_that_stays(lab: Lab) -> None:
    flag = "--runtime-policy-name"
    done = succeeded(lab.run("add", "-u", AGENT, flag, "new", flag, "old@2999-12-31"))
    body = lab.added()
    assert (body["runtime_policy"], body["runtime_policy_name"]) == ("", "new")
    assert body["runtime_policies"] == [{"name": "new"}, {"name": "old", "until": 32_503_593_600}]
    assert f"does not know of several runtime policies: it holds agent {AGENT} to new alone" in done.stdout
    lab.verifier.agents.clear()
    lab.verifier.server.calls.clear()
    succeeded(lab.run("add", "-u", AGENT, flag, "new"))
    assert "runtime_policies" not in lab.added(), "one is asked for as it has always been"


@pytest.mark.parametrize("can_update", [True, False])
@pytest.mark.parametrize("flag", ["--runtime-policy-name", "--mb-policy-name"])
def test_a_policy_name_that_is_misspelt_changes_nothing(
    lab: Lab, tmp_path: Path, flag: str, can_update: bool
) -> None:
    lab.verifier.can_update = can_update
    (tmp_path / "p").write_text("secret")
    succeeded(lab.run("-u", AGENT))
    before = json.dumps(lab.verifier.agents)
    line = failed(lab.run("-c", "update", "-u", AGENT, flag, "misspelt", "-f", str(tmp_path / "p")))
    assert "'misspelt'" in line
    assert writes(lab) == ["POST"]
    assert json.dumps(lab.verifier.agents) == before
    assert lab.agent.u is None, "nor does the agent get the key share of another payload"


def test_a_refused_update_leaves_the_agent_where_it_is(lab: Lab) -> None:
    lab.verifier.can_update = True
    succeeded(lab.run("-u", AGENT))
    lab.verifier.refusals = [Answer(401, "the policy has to be signed")]
    line = failed(lab.run("-c", "update", "-u", AGENT, "--tpm_policy", '{"7": ["cd"]}'))
    assert "the policy has to be signed" in line
    assert writes(lab) == ["POST", "PUT"]


POLICY = policy_of({"/bin/x": b"x"})


def test_an_old_verifier_that_refuses_the_new_enrolment_gets_the_old_one_again(
    lab: Lab, tmp_path: Path
) -> None:
    (tmp_path / "policy").write_text(POLICY)
    succeeded(lab.run("-u", AGENT, "--runtime-policy", str(tmp_path / "policy")))
    before = json.dumps(lab.verifier.agents)
    lab.verifier.refusals = [Answer(400, "no such luck")]
    line = failed(lab.run("-c", "update", "-u", AGENT, "--tpm_policy", '{"7": ["cd"]}'))
    assert "no such luck" in line
    assert "it is watched as before" in line
    assert writes(lab) == ["POST", "DELETE", "POST", "POST"]
    assert json.dumps(lab.verifier.agents) == before
    assert json.loads(lab.verifier.policies["allowlists"][AGENT]) == json.loads(POLICY)


def test_an_old_verifier_keeps_what_is_not_named(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "policy").write_text(POLICY)
    policy = ("--runtime-policy", str(tmp_path / "policy"))
    succeeded(lab.run("-u", AGENT, *policy, "--tpm_policy", '{"7": ["cd"]}'))
    succeeded(lab.run("-c", "update", "-u", AGENT, "--tpm_policy", '{"8": ["ab"]}'))
    assert json.loads(lab.verifier.policies["allowlists"][AGENT]) == json.loads(POLICY)
    assert json.loads(lab.verifier.agents[AGENT]["tpm_policy"]) == {"8": ["ab"], "mask": "0x500"}
    del lab.verifier.policies["allowlists"][AGENT]  # it has a name of its own, which is not told
    line = failed(lab.run("-c", "update", "-u", AGENT, "--tpm_policy", '{"7": ["cd"]}'))
    assert "give --runtime-policy-name or --no-runtime-policy" in line
    assert list(lab.verifier.agents) == [AGENT]


def test_an_agent_that_has_registered_often_is_no_reason_to_worry(lab: Lab) -> None:
    lab.registrar.records[AGENT]["regcount"] = 99
    assert "different keys" not in succeeded(lab.run("-u", AGENT)).stdout


PASSED = {"attestation_count": 1, "attestation_status": "PASS"}
REASON = {"event_id": "ima.x", "severity": "emergency", "explanation": "/bin/x is not in the policy"}
FAILED = {"operational_state": 9, "attestation_status": "FAIL", "last_findings": [REASON]}


def judging(lab: Lab, verdict: dict[str, Any], looks: int) -> None:
    """The verifier shows `verdict` after so many looks at an agent that was added, changed or reactivated."""
    answer, seen = lab.verifier.server._answer, [0]

    def judge(call: Call) -> Answer:
        if call.method in ("POST", "PUT"):
            seen[0] = 0
        elif call.path.endswith(f"/agents/{AGENT}") and AGENT in lab.verifier.agents:
            seen[0] += 1
            if seen[0] > looks:
                lab.verifier.agents[AGENT] |= verdict
        return answer(call)

    lab.verifier.server._answer = judge


@pytest.mark.parametrize("command", ["add", "update", "reactivate"])
@pytest.mark.parametrize("verdict", [PASSED, FAILED])
def test_waiting_ends_with_the_first_verdict(lab: Lab, command: str, verdict: dict[str, Any]) -> None:
    lab.verifier.can_update = True
    if command != "add":
        succeeded(lab.run("-u", AGENT))
    judging(lab, verdict, 3)
    done = lab.run("-c", command, "-u", AGENT, "--wait", "60")
    if verdict is PASSED:
        assert f"Agent {AGENT} passed its attestation" in succeeded(done).stdout
    else:
        assert "/bin/x is not in the policy" in failed(done)


@pytest.mark.parametrize("command", ["add", "update"])
def test_verifying_a_key_ends_with_the_findings_of_an_agent_that_fails(
    lab: Lab, tmp_path: Path, command: str
) -> None:
    (tmp_path / "secret.txt").write_text("new")
    lab.verifier.can_update = True
    if command == "update":
        succeeded(lab.run("-u", AGENT))
    judging(lab, FAILED, 3)
    lab.environ["KEYLIME_TENANT_MAX_RETRIES"] = "1000"  # the last of them is in a minute
    done = lab.run("-c", command, "-u", AGENT, "-f", str(tmp_path / "secret.txt"), "--verify")
    assert "/bin/x is not in the policy" in failed(done)
    assert not [path for path in lab.verifier.server.paths("PUT") if path.endswith("/stop")]
    assert "nothing changed" not in done.stdout
    assert (f"Agent {AGENT}: its payload and key are new" in done.stdout) == (command == "update")


def test_waiting_that_comes_to_nothing_has_an_exit_status_of_its_own(lab: Lab) -> None:
    line = failed(lab.run("-u", AGENT, "--wait", "0.5"), code=3)
    assert "neither attested nor failed within 0.5 s" in line


@pytest.mark.parametrize(("verdict", "code"), [(PASSED, 0), (FAILED, 1), ({}, 3)])
def test_the_exit_status_of_cvstatus_tells_the_verdict_if_asked(
    lab: Lab, verdict: dict[str, Any], code: int
) -> None:
    succeeded(lab.run("-u", AGENT))
    lab.verifier.agents[AGENT] |= verdict
    assert lab.run("-c", "cvstatus", "-u", AGENT, "--exit-code").returncode == code
    succeeded(lab.run("-c", "cvstatus", "-u", AGENT))


def test_all_failed_agents_are_reactivated_together(lab: Lab) -> None:
    succeeded(lab.run("-u", AGENT))
    status = lab.verifier.agents.pop(AGENT)
    for name, state in (("a", 7), ("b", 9), ("c", 3), ("d", 7)):
        lab.verifier.agents[name] = {**status, "operational_state": state}
    done = succeeded(lab.run("-c", "reactivate", "--state", "failed", "--json"))
    assert json.loads(done.stdout) == {"reactivated": ["a", "d"], "errors": {}}
    paths = [path.split("/", 2)[2] for path in lab.verifier.server.paths("PUT")]
    assert paths == ["agents/a/reactivate", "agents/d/reactivate"]


def test_an_unregistered_agent_cannot_be_added(lab: Lab) -> None:
    assert "Agent $nobody data not found in the Registrar." in failed(lab.run("-u", "nobody"))


def test_delete_waits_until_the_verifier_has_let_go(lab: Lab) -> None:
    succeeded(lab.run("-u", AGENT))
    lab.verifier.delete_rounds = 3
    done = succeeded(lab.run("-c", "delete", "-u", AGENT))
    assert f"Agent {AGENT} deleted from the CV" in done.stdout
    assert lab.verifier.agents == {}


def revoked(lab: Lab) -> set[int]:
    """The serial numbers on the list of the tenant's CA."""
    crl = x509.load_der_x509_crl((lab.work_dir / "ca" / "cacrl.der").read_bytes())
    return {entry.serial_number for entry in crl}


def serial_in_payload(lab: Lab) -> int:
    """The serial number of the certificate in the payload that the agent was sent."""
    assert lab.agent.key is not None
    assert lab.agent.payload is not None
    with zipfile.ZipFile(io.BytesIO(decrypt_payload(lab.agent.key, lab.agent.payload))) as package:
        return x509.load_pem_x509_certificate(package.read(f"{AGENT}-cert.crt")).serial_number


def receiving(lab: Lab) -> Lab:
    """The verifier gives V to the agent as soon as it is added, and shows the metadata it was given."""

    def on_add(agent: str, body: dict[str, Any]) -> None:
        lab.agent.receive_v(base64.b64decode(body["v"]))
        lab.verifier.agents[agent]["meta_data"] = body["metadata"]

    lab.verifier.on_add = on_add
    return lab


def test_delete_revokes_the_certificate_and_the_next_add_makes_a_new_one(lab: Lab) -> None:
    receiving(lab)
    succeeded(lab.run("-u", AGENT, "--cert", "default"))
    first = serial_in_payload(lab)
    assert revoked(lab) == set()
    done = succeeded(lab.run("-c", "delete", "-u", AGENT))
    assert f"Certificate {first} of agent {AGENT} is revoked" in done.stdout
    assert revoked(lab) == {first}
    succeeded(lab.run("-u", AGENT, "--cert", "default"))
    assert serial_in_payload(lab) not in (first, 0)
    assert revoked(lab) == {first}


@pytest.mark.parametrize(("state", "is_renewed"), [(3, False), (7, True), (9, True)])
def test_update_gives_a_new_certificate_to_an_agent_that_was_rejected(
    lab: Lab, state: int, is_renewed: bool
) -> None:
    receiving(lab)
    succeeded(lab.run("-u", AGENT, "--cert", "default"))
    first = serial_in_payload(lab)
    lab.verifier.agents[AGENT]["operational_state"] = state
    succeeded(lab.run("-c", "update", "-u", AGENT, "--cert", "default"))
    assert (serial_in_payload(lab) != first) is is_renewed
    assert revoked(lab) == ({first} if is_renewed else set())


def test_a_payload_that_cannot_be_read_takes_no_certificate_back(lab: Lab) -> None:
    receiving(lab)
    succeeded(lab.run("-u", AGENT, "--cert", "default"))
    lab.verifier.agents[AGENT]["operational_state"] = 9
    told = failed(lab.run("-c", "update", "-u", AGENT, "--cert", "default", "--include", "nowhere"))
    assert "--include: No such file or directory: nowhere" in told
    assert revoked(lab) == set()


def test_delete_revokes_no_certificate_but_the_agents(lab: Lab) -> None:
    """Serial numbers are an authority's own: the same one may be another machine's in another CA."""
    receiving(lab)
    succeeded(lab.run("-u", AGENT, "--cert", "default"))
    lab.verifier.agents[AGENT]["meta_data"] = '{"cert_serial": 77}'
    done = succeeded(lab.run("-c", "delete", "-u", AGENT))
    assert "Certificate 77 of agent node1 is not revoked: the CA in" in done.stdout
    assert revoked(lab) == set()


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"KEYLIME_CA_PASSWORD": "default"}, "wrong password"),
        ({"KEYLIME_CA_PASSWORD": "wrong"}, "password"),
    ],
)
def test_delete_succeeds_although_the_certificate_cannot_be_revoked(
    lab: Lab, environ: dict[str, str], reason: str
) -> None:
    receiving(lab)
    succeeded(lab.run("-u", AGENT, "--cert", "default"))
    done = succeeded(lab.run("-c", "delete", "-u", AGENT, **environ))
    assert lab.verifier.agents == {}
    (warning,) = [line for line in done.stdout.splitlines() if "is not revoked" in line]
    assert reason in warning
    assert "keylime_ca -c revoke -n node1" in warning


def test_deleting_an_absent_agent_succeeds(lab: Lab) -> None:
    port = lab.verifier.server.port
    for flags in ((), ("-nvc",)):
        done = succeeded(lab.run("-c", "delete", "-u", AGENT, *flags))
        assert f"Verifier at 127.0.0.1 with Port {port} does not have agent {AGENT}." in done.stdout
        assert f"The Agent {AGENT} is deleted from Verifier (127.0.0.1:{port})\n" in done.stdout


def test_lists_are_printed_as_scripts_expect(lab: Lab) -> None:
    succeeded(lab.run("-u", AGENT))
    verifier, registrar = lab.verifier.server.port, lab.registrar.server.port
    lines = succeeded(lab.run("-c", "cvlist")).stdout.splitlines()
    assert lines[-2].endswith(
        f"keylime.tenant - INFO - Agent list from Verifier (127.0.0.1:{verifier}) retrieved: "
    )
    assert json.loads(lines[-1]) == {"uuids": [[AGENT]]}
    lines = succeeded(lab.run("-c", "reglist", "--cert", "default")).stdout.splitlines()
    assert lines[-2].endswith(f"Agent list from Registrar (127.0.0.1:{registrar}) retrieved: ")
    assert json.loads(lines[-1]) == {"uuids": [AGENT]}


def test_status_shows_both_records(lab: Lab) -> None:
    succeeded(lab.run("-u", AGENT))
    lab.verifier.remarks = {"disk": "90 MiB are free"}
    lines = succeeded(lab.run("-c", "status", "-u", AGENT)).stdout.splitlines()
    assert any("WARNING" in line and line.endswith(": disk: 90 MiB are free") for line in lines)
    lines = [line for line in lines if "90 MiB" not in line]
    heading = f"Agent Info from Verifier (127.0.0.1:{lab.verifier.server.port}):"
    assert lines[-2].endswith(heading)
    assert json.loads(lines[-1])[AGENT]["operational_state"] == "Get Quote"
    (registered,) = (line for line in lines if "Status from Registrar" in line)
    document = json.loads(registered[registered.index("{") :])
    assert document["results"][AGENT]["operational_state"] == "Registered"


def test_l7_an_agent_that_is_not_judged_is_shown_as_such(lab: Lab) -> None:
    done = succeeded(lab.run("-u", AGENT))
    assert "WARNING - attested, nothing judged: no policy makes a demand of the agent" in done.stdout
    lab.verifier.agents[AGENT]["attestation_text"] = "attested, nothing judged"
    for command in ("cvstatus", "status"):
        lines = succeeded(lab.run("-c", command, "-u", AGENT)).stdout.splitlines()
        assert any(f"WARNING - Agent {AGENT}: attested, nothing judged" in line for line in lines)
        assert json.loads(lines[-1])[AGENT]["attestation_text"] == "attested, nothing judged"
    lab.verifier.agents[AGENT]["attestation_text"] = "attested"
    assert "nothing judged" not in succeeded(lab.run("-c", "cvstatus", "-u", AGENT)).stdout


def test_json_mode_leaves_stdout_to_one_document(lab: Lab) -> None:
    done = succeeded(lab.run("-u", AGENT, "--json"))
    assert json.loads(done.stdout)[AGENT]["operational_state"] == "Get Quote"
    assert "added to Verifier" in done.stderr
    assert json.loads(succeeded(lab.run("-c", "cvlist", "--json")).stdout) == {"uuids": [[AGENT]]}
    assert set(json.loads(succeeded(lab.run("-c", "bulkinfo", "--json")).stdout)) == {AGENT}


def test_json_mode_tells_failures_too(lab: Lab) -> None:
    done = lab.run("-c", "cvstatus", "-u", "nobody", "--json")
    assert done.returncode == 1
    assert "nobody does not exist on Verifier" in json.loads(done.stdout)["error"]


def test_an_agent_without_tls_is_added_only_when_the_option_allows_it(lab: Lab) -> None:
    open_agent = ScriptedAgent(AGENT, None, ak=lab.agent.ak)
    with open_agent.server:
        lab.registrar.records[AGENT] |= {"mtls_cert": "disabled", "port": open_agent.server.port}
        refusal = failed(lab.run("-u", AGENT))
        assert "push mode" in refusal
        assert "[tenant]" not in refusal, "nobody is advised to switch mutual TLS off"
        assert open_agent.server.calls == []
        done = succeeded(lab.run("-u", AGENT, KEYLIME_TENANT_ENABLE_AGENT_MTLS="False"))
    assert "mutual TLS disabled" in done.stdout
    assert lab.added()["mtls_cert"] == "disabled"


@pytest.mark.parametrize(
    ("boot_log", "policy", "is_warned"),
    [
        ("", ("--mb-policy-name", "golden"), True),
        ("AAAA", ("--mb-policy-name", "golden"), False),
        ("", (), False),
    ],
)
def test_a_boot_policy_for_an_agent_without_a_boot_log_is_warned_of_at_once(
    lab: Lab, boot_log: str, policy: tuple[str, ...], is_warned: bool
) -> None:
    lab.agent.boot_log = boot_log
    done = succeeded(lab.run("-u", AGENT, *policy))
    assert ("sends no boot event log" in done.stdout) is is_warned
    asked = [call for call in lab.calls if call.path.endswith("/quotes/integrity")]
    assert len(asked) == bool(policy)
    for call in asked:
        assert int(call.query["mask"], 16) & 1
        assert not int(call.query["mask"], 16) >> 10 & 1, "its IMA list is not asked for"


def test_the_maker_of_a_tpm_is_looked_for_where_its_certificate_says(lab: Lab, tmp_path: Path) -> None:
    known = succeeded(lab.run("-c", "trust-issuer", "-u", AGENT, "--json"))
    assert json.loads(known.stdout) == {"agent_id": AGENT, "trusted": True, "chain": []}
    store = tmp_path / "empty"
    unknown = failed(lab.run("-c", "trust-issuer", "-u", AGENT, KEYLIME_TENANT_TPM_CERT_STORE=str(store)))
    assert "does not say where the certificate of its issuer is published" in unknown
    assert not store.exists(), "nothing is stored"


def test_what_is_not_there_ends_with_one_line(lab: Lab) -> None:
    assert "nobody does not exist on Verifier (" in failed(lab.run("-c", "cvstatus", "-u", "nobody"))
    assert "nobody does not exist on Registrar (" in failed(lab.run("-c", "regstatus", "-u", "nobody"))
    assert "does not have agent nobody" in failed(lab.run("-c", "reactivate", "-u", "nobody"))
    assert "Invalid command specified: cvlst" in failed(lab.run("-c", "cvlst"))
    assert "agent id '../x' is not valid" in failed(lab.run("-c", "cvstatus", "-u", "../x"))


# Frameworks, and what belongs to other commands or programs: each costs a start a tenth of a second or more.
HEAVY = {
    *("aiohttp", "alembic", "jinja2", "multidict", "psycopg", "pymysql", "requests", "rich", "sqlalchemy"),
    *("tornado", "tpm2_pytss", "uvloop", "yaml", "yarl", "zmq", "importlib.metadata", "multiprocessing"),
    *("keylime.appraisal", "keylime.database", "keylime.ima", "keylime.measured_boot", "keylime_policy"),
    *("keylime_tenant.ca", "keylime_tenant.dashboard", "keylime_tenant.enrolment", "keylime_tenant.policies"),
}


def test_a_question_about_an_agent_imports_nothing_that_others_need(lab: Lab) -> None:
    succeeded(lab.run("-c", "add", "-u", AGENT))
    code = (
        "import sys\n"
        "from keylime_tenant.program import main\n"
        "main()\n"
        f"assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)"
    )
    ports = ("-rp", str(lab.registrar.server.port), "-vp", str(lab.verifier.server.port))
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", code, "-c", "cvstatus", "-u", AGENT, *ports],
        env=lab.environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert AGENT in done.stdout


def test_regdelete_of_an_unknown_id_is_only_a_warning(lab: Lab) -> None:
    assert "WARNING" in succeeded(lab.run("-c", "regdelete", "-u", "nobody")).stdout
    succeeded(lab.run("-c", "regdelete", "-u", AGENT))
    assert lab.registrar.records == {}


def test_an_agent_is_reactivated(lab: Lab) -> None:
    succeeded(lab.run("-u", AGENT))
    _, _, told = succeeded(lab.run("-c", "reactivate", "-u", AGENT)).stdout.partition("\n")
    before, told, status = told.partition(f"Agent {AGENT} re-activated\n")
    assert told
    assert "Agent Info" not in before
    assert "Agent Info from Verifier" in status
    assert AGENT in json.loads(status.splitlines()[-1])
    assert lab.verifier.server.paths("PUT") == [f"/v2.5/agents/{AGENT}/reactivate"]


def test_a_named_policy_lives_from_add_to_delete(lab: Lab, tmp_path: Path) -> None:
    allowlist, excludes = tmp_path / "allow", tmp_path / "exclude"
    allowlist.write_text("a" * 64 + "  /usr/bin/true\n" + "b" * 64 + "  /usr/bin/true\n")
    excludes.write_text("# comment\n\n/var/.*\n")
    name = ("--runtime-policy-name", "servers")
    succeeded(
        lab.run("-c", "addruntimepolicy", *name, "--allowlist", str(allowlist), "--exclude", str(excludes))
    )
    policy = json.loads(base64.b64decode(lab.verifier.policies["allowlists"]["servers"]))
    assert policy["digests"] == {"/usr/bin/true": ["a" * 64, "b" * 64]}
    assert policy["excludes"] == ["/var/.*"]
    shown = succeeded(lab.run("-c", "showruntimepolicy", *name)).stdout
    assert "Show allowlist command response: 200." in shown
    assert "'name': 'servers'" in shown
    assert "{'runtimepolicy names': ['servers']}" in succeeded(lab.run("-c", "listruntimepolicy")).stdout
    assert succeeded(lab.run("-c", "deleteallowlist", *name)).stdout.splitlines()[-1] == "{}"
    assert "404 Runtime policy servers not found" in failed(lab.run("-c", "showruntimepolicy", *name))


def test_a_broken_exclude_expression_is_refused_here(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "allow").write_text("a" * 64 + "  /usr/bin/true\n")
    (tmp_path / "exclude").write_text("/ok\n[\n")
    flags = ("--allowlist", str(tmp_path / "allow"), "--exclude", str(tmp_path / "exclude"))
    line = failed(lab.run("-u", AGENT, *flags))
    assert f"--exclude {tmp_path / 'exclude'}: line 2: '[' is not a regular expression" in line
    assert lab.calls == []


def test_measured_boot_policies_are_stored_by_name(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("{}")
    name = ("--mb-policy-name", "boot")
    succeeded(lab.run("-c", "addmbpolicy", *name, "--mb_refstate", str(tmp_path / "state")))
    assert lab.verifier.policies["mbpolicies"] == {"boot": "{}"}
    assert "listmbpolicy command response: 200." in succeeded(lab.run("-c", "listmbpolicy")).stdout
    succeeded(lab.run("-c", "deletembpolicy", *name))


def test_a_verifier_that_is_not_there_is_named_with_its_flags(lab: Lab) -> None:
    line = failed(lab.run("-c", "cvlist", "-vp", "1"))
    assert line.count("127.0.0.1:1") == 1
    assert "Connection refused (check that it is running, and -vp)" in line
    line = failed(lab.run("cvlist", KEYLIME_TENANT_VERIFIER_IP="127.0.0.2"))
    assert "check that it is running, and -vp" in line
    line = failed(lab.run("--registrarhost", "127.0.0.2", "-c", "reglist"))
    assert "--registrarhost and -rp" in line


@contextmanager
def swallowing() -> Iterator[int]:
    """A port at which nobody answers, not even to refuse: whoever connects waits."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as callers:
        while True:
            caller = callers.enter_context(socket.socket())
            caller.settimeout(0.5)
            try:
                caller.connect(full.getsockname())
            except TimeoutError:
                break
        yield full.getsockname()[1]


@pytest.mark.parametrize("service", ["verifier", "registrar"])
def test_a_service_that_swallows_what_is_sent_is_not_waited_for_long(lab: Lab, service: str) -> None:
    command, flag = {"verifier": ("cvlist", "-vp"), "registrar": ("reglist", "-rp")}[service]
    limits = {"CONNECT": "0.5", "REQUEST": "100000"}  # the test would not see the end of that
    environ = {f"KEYLIME_TENANT_{name}_TIMEOUT": seconds for name, seconds in limits.items()}
    with swallowing() as port:
        line = failed(lab.run("-c", command, flag, str(port), **environ))
    assert line.startswith(
        f"keylime_tenant: error: cannot reach the {service} at https://127.0.0.1:{port}: cannot connect: no "
        "answer within 0.5 s, which is [tenant] connect_timeout (check that it is running"
    )
    assert "no firewall drops what is sent there" in line
    assert flag in line


def test_an_agent_that_swallows_what_is_sent_is_given_up_in_one_line(lab: Lab) -> None:
    limits = {"CONNECT": "0.5", "REQUEST": "100000"}  # as above
    environ = {f"KEYLIME_TENANT_{name}_TIMEOUT": seconds for name, seconds in limits.items()}
    with swallowing() as port:
        line = failed(lab.run("-u", AGENT, "-c", "add", "-tp", str(port), **environ))
    assert line.startswith(
        f"keylime_tenant: error: cannot reach the agent at https://127.0.0.1:{port}: cannot connect: no "
        "answer within 0.5 s, which is [tenant] connect_timeout (check -t/-tp, that the agent is running, "
        "and that no firewall drops what is sent there); this was try 6, and the last"
    )
    assert line.endswith("[tenant] max_retries, retry_interval and request_timeout say how long it is tried")
    assert all(call.method == "GET" for call in lab.verifier.server.calls)


def test_an_agent_that_never_answers_is_given_up_when_all_tries_have_taken_as_long_as_one_may(
    lab: Lab,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        port = str(frozen.getsockname()[1])
        done = lab.run("-u", AGENT, "-c", "add", "-tp", port, KEYLIME_TENANT_REQUEST_TIMEOUT="3")
        services = failed(lab.run("cvlist", "-vp", port, KEYLIME_TENANT_REQUEST_TIMEOUT="1"))
    line = failed(done)
    assert "no answer within 3 s (check -t/-tp and that the agent is running); this was try 1, and" in line
    assert "no answer within 1 s (check that it is running, and -vp)" in services


def test_a_port_that_does_not_speak_tls_is_called_so(lab: Lab) -> None:
    with ScriptedVerifier(None).server as plain:
        line = failed(lab.run("cvlist", "-vp", str(plain.port)))
        assert plain.calls == []
    place = f"the verifier at https://127.0.0.1:{plain.port}"
    remedy = "its TLS port is 8881 unless it was configured otherwise: check -vp"
    assert line == f"keylime_tenant: error: {place} does not speak TLS; {remedy}"


def test_ctrl_c_ends_it_at_once_and_without_a_traceback(lab: Lab, tmp_path: Path) -> None:
    said = tmp_path / "said"
    with socket.create_server(("127.0.0.1", 0)) as silent, said.open("wb") as output:
        words = ("-vp", str(silent.getsockname()[1]), "-c", "cvlist")
        order = Order("keylime_tenant", words, lab.environ)
        process = start(order, stdout=output.fileno(), stderr=output.fileno())
        connection, _ = silent.accept()
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 130
        connection.close()
    assert "Traceback" not in said.read_text()
    assert said.read_text().endswith("keylime_tenant: interrupted\n")


def test_a_server_of_a_foreign_ca_is_not_trusted(lab: Lab) -> None:
    foreign = trustme.CA()
    foreign.cert_pem.write_to_path(lab.work_dir / "cv_ca" / "cacert.crt")
    line = failed(lab.run("-c", "cvlist"))
    assert "trusted_server_ca" in line
    assert lab.verifier.server.calls == []


def test_a_client_certificate_of_a_foreign_ca_is_explained(lab: Lab) -> None:
    client = trustme.CA().issue_cert(common_name="client")
    client.cert_chain_pems[0].write_to_path(lab.work_dir / "cv_ca" / "client-cert.crt")
    client.private_key_pem.write_to_path(lab.work_dir / "cv_ca" / "client-private.pem")
    assert "trusted_client_ca" in failed(lab.run("-c", "cvlist"))


def test_missing_tls_files_are_named(lab: Lab) -> None:
    (lab.work_dir / "cv_ca" / "client-cert.crt").unlink()
    line = failed(lab.run("-c", "cvlist"))
    assert "client_cert" in line
    assert "client-cert.crt" in line


def test_flags_that_contradict_each_other_end_with_2(lab: Lab) -> None:
    done = lab.run("--exclude", "x")
    assert done.returncode == 2
    assert done.stderr.endswith("error: --exclude cannot be used without an --allowlist\n")


def test_an_agent_that_attests_by_itself_is_added_without_asking_it(lab: Lab) -> None:
    lab.registrar.records[AGENT] |= {"mtls_cert": "disabled"}
    done = succeeded(lab.run("-u", AGENT, "--push-model"))
    assert "attests by itself" in done.stdout
    added = lab.added()
    assert (added["attestation_mode"], added["v"]) == ("push", None)
    assert lab.calls == []


@pytest.mark.parametrize("command", ["add", "update"])
@pytest.mark.parametrize(
    "flags", [("-f", "."), ("-k", "."), ("--include", "."), ("--cert", "default"), ("--verify",)]
)
def test_an_agent_that_attests_by_itself_gets_no_payload(
    lab: Lab, command: str, flags: tuple[str, ...]
) -> None:
    words = tuple(str(lab.work_dir) if word == "." else word for word in flags)
    refusal = failed(lab.run("-c", command, "-u", AGENT, "--push-model", *words))
    assert f"{flags[0]} does not go with --push-model" in refusal
    assert lab.verifier.server.calls == []


def test_update_of_an_agent_that_attests_by_itself_asks_the_verifier_alone(lab: Lab) -> None:
    lab.verifier.can_update = True
    lab.registrar.records[AGENT] |= {"mtls_cert": "disabled"}
    lab.verifier.policies["allowlists"]["fleet"] = "{}"
    succeeded(lab.run("-c", "update", "-u", AGENT, "--push-model"))
    assert lab.added()["attestation_mode"] == "push", "who is not there is added"
    done = succeeded(lab.run("-c", "update", "-u", AGENT, "--push-model", "--runtime-policy-name", "fleet"))
    changed = {name: value for name, value in changed_to(lab).items() if name not in IDENTITY}
    assert changed == {"runtime_policy": None, "runtime_policy_name": "fleet"}
    assert "mtls_cert" not in changed_to(lab)
    assert writes(lab) == ["POST", "PUT"]
    assert lab.calls == [], "nothing is asked of the agent"
    assert "Traceback" not in done.stdout
    line = failed(lab.run("-c", "update", "-u", AGENT, "--runtime-policy-name", "fleet"))
    assert "attests by itself: give --push-model" in line


def test_a_polled_agent_is_not_updated_as_one_that_attests_by_itself(lab: Lab) -> None:
    lab.verifier.can_update = True
    succeeded(lab.run("-u", AGENT))
    line = failed(lab.run("-c", "update", "-u", AGENT, "--push-model"))
    assert "leave --push-model out" in line
    assert writes(lab) == ["POST"]
