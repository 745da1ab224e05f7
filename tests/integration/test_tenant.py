"""The tenant as a program, against scripted peers on loopback HTTPS."""

import base64
import io
import json
import os
import ssl
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509

from keylime.payload.bundle import decrypt_payload
from tests.captures import CA_DIRECTORY, capture
from tests.fakes.scripted_agent import ScriptedAgent
from tests.fakes.scripted_services import Call, ScriptedRegistrar, ScriptedVerifier

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
        command = [
            sys.executable,
            "-m",
            "keylime_tenant.main",
            *(p for port in ports for p in port.split("=")),
        ]
        return subprocess.run(  # noqa: S603 - our own program
            [*command, *arguments],
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

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


def test_an_agent_is_added_with_its_payload_and_proves_its_key(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("for the agent only")
    lab.verifier.on_add = lambda _agent, body: lab.agent.receive_v(base64.b64decode(body["v"]))
    done = succeeded(lab.run("-u", AGENT, "-f", str(tmp_path / "secret.txt"), "--verify"))
    assert f"Agent {AGENT} (127.0.0.1:{lab.agent.server.port}) added to Verifier" in done.stdout
    assert [call.path for call in lab.calls][:3] == ["/version", "/v2.5/quotes/identity", "/v2.5/keys/ukey"]
    assert lab.agent.key is not None
    assert lab.agent.payload is not None
    assert decrypt_payload(lab.agent.key, lab.agent.payload) == b"for the agent only"
    body = lab.added()
    assert base64.b64decode(body["ak_tpm"]) == lab.agent.ak.tpm2b_public
    assert body["supported_version"] == "2.5"
    assert body["mtls_cert"] == lab.registrar.records[AGENT]["mtls_cert"]
    assert lab.verifier.server.paths("POST") == [f"/v2.5/agents/{AGENT}"]


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
    line = failed(lab.run("-u", AGENT))
    assert "trusted_client_ca" in line
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
        ({"KEYLIME_CA_PASSWORD": "default"}, "no terminal to ask on"),
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
    lines = succeeded(lab.run("-c", "status", "-u", AGENT)).stdout.splitlines()
    heading = f"Agent Info from Verifier (127.0.0.1:{lab.verifier.server.port}):"
    assert lines[-2].endswith(heading)
    assert json.loads(lines[-1])[AGENT]["operational_state"] == "Get Quote"
    (registered,) = (line for line in lines if "Status from Registrar" in line)
    document = json.loads(registered[registered.index("{") :])
    assert document["results"][AGENT]["operational_state"] == "Registered"


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
        assert "enable_agent_mtls" in failed(lab.run("-u", AGENT))
        assert open_agent.server.calls == []
        done = succeeded(lab.run("-u", AGENT, KEYLIME_TENANT_ENABLE_AGENT_MTLS="False"))
    assert "mutual TLS disabled" in done.stdout
    assert lab.added()["mtls_cert"] == "disabled"


def test_what_is_not_there_ends_with_one_line(lab: Lab) -> None:
    assert "nobody does not exist on Verifier (" in failed(lab.run("-c", "cvstatus", "-u", "nobody"))
    assert "nobody does not exist on Registrar (" in failed(lab.run("-c", "regstatus", "-u", "nobody"))
    assert "does not have agent nobody" in failed(lab.run("-c", "reactivate", "-u", "nobody"))
    assert "Invalid command specified: cvlst" in failed(lab.run("-c", "cvlst"))
    assert "agent id '../x' is not valid" in failed(lab.run("-c", "cvstatus", "-u", "../x"))


def test_regdelete_of_an_unknown_id_is_only_a_warning(lab: Lab) -> None:
    assert "WARNING" in succeeded(lab.run("-c", "regdelete", "-u", "nobody")).stdout
    succeeded(lab.run("-c", "regdelete", "-u", AGENT))
    assert lab.registrar.records == {}


def test_an_agent_is_reactivated(lab: Lab) -> None:
    succeeded(lab.run("-u", AGENT))
    assert f"Agent {AGENT} re-activated" in succeeded(lab.run("-c", "reactivate", "-u", AGENT)).stdout
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
    assert "--runtime-policy-name" in failed(lab.run("-c", "showruntimepolicy"))


def test_a_broken_exclude_expression_is_refused_here(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "allow").write_text("a" * 64 + "  /usr/bin/true\n")
    (tmp_path / "exclude").write_text("/ok\n[\n")
    flags = ("--allowlist", str(tmp_path / "allow"), "--exclude", str(tmp_path / "exclude"))
    assert "excludes" in failed(lab.run("-u", AGENT, *flags))
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
    assert "https://127.0.0.1:1" in line
    assert "-v/-vp" in line


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
