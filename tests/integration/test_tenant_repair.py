"""From a fall to its repair by the tenant: why, diff, approve; against a running verifier."""

import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from keylime.documents.dsse import key_id_of, open_envelope, sign_policy
from tests.fakes.attesting_agent import AttestingAgent, file_digest, policy_of
from tests.fakes.running_verifier import RunningVerifier, enrolment
from tests.fakes.tenant_program import tenant
from tests.integration.test_administration_log import encoded
from tests.integration.test_verifier_policies import scene

FLEET, AGENT = "/v2.6/allowlists/fleet", "/v2.6/agents/agent-1"
NAMED = {"runtime_policy": "", "runtime_policy_name": "fleet"}


def test_one_command_leads_from_a_false_alarm_to_a_good_machine(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        more = agent.files | {"/opt/tool": b"old"}
        await verifier.admin(
            "POST", FLEET, encoded(policy_of(agent.files)) | {"tpm_policy": '{"mask": "0x0"}'}
        )
        assert (await verifier.admin("POST", AGENT, enrolment(agent, **NAMED))).code == 200
        await verifier.until_passing(agent)
        assert (await verifier.admin("PUT", FLEET, encoded(policy_of(more)))).code == 201
        agent.machine.measure("/opt/tool", b"new")
        agent.machine.measure("/usr/bin/added", b"added")
        await verifier.until_failed(agent)

        told = json.loads((await tenant(verifier, "--json", "why", "-u", "agent-1")).stdout)
        assert [one["path"] for one in told["findings"]] == ["/opt/tool", "/usr/bin/added"]
        assert told["findings_left_off"] == 0
        (change,) = (one for one in told["before"] if one["kind"] == "policy_replaced")
        assert change["actor"].startswith("'CN=operator'")
        assert told["next"] == ["keylime_tenant diff -u agent-1", "keylime_tenant approve -u agent-1"]
        shown = (await tenant(verifier, "-o", "table", "why", "-u", "agent-1")).stdout.splitlines()
        assert shown[0] == "agent-1  failed"
        assert shown[-1] == "   keylime_tenant approve -u agent-1"
        old, new = file_digest(b"old").hex(), file_digest(b"new").hex()
        shown = (await tenant(verifier, "-o", "table", "diff", "-u", "agent-1")).stdout.splitlines()
        assert shown[:3] == ["/opt/tool  entry 1  digests", f"   - {old}", f"   + {new}"]

        approve = ("-o", "table", "approve", "-u", "agent-1")
        for flags, words in (
            ((), "there is no terminal to ask on: --yes agrees"),
            (("--yes", "--only", "/none"), "--only /none: no finding is about that path"),
            (("--yes", "--policy", "other"), "--policy other: agent agent-1 uses fleet"),
        ):
            assert words in (await tenant(verifier, *approve, *flags, code=1)).stderr
        found = (await verifier.admin("GET", f"{FLEET}/versions")).results
        assert found["versions"][0]["version"] == 2, "nothing was changed so far"
        # One of two leaves the agent where it was.
        part = await tenant(verifier, *approve, "--yes", "--only", "/opt/tool", code=1)
        assert "/usr/bin/added" in part.stderr
        done = await tenant(verifier, *approve, "--yes")
        assert f"   + {file_digest(b'added').hex()}" in done.stdout.splitlines()
        status = await verifier.until_passing(agent)
        assert (status["runtime_policy_version"], status["last_findings"]) == (4, [])
        document = json.loads((await verifier.admin("GET", FLEET)).results["runtime_policy"])
        assert document["digests"]["/opt/tool"] == sorted([old, new])
        assert "no findings" in (await tenant(verifier, *approve, "--yes", code=1)).stderr
        done = await tenant(verifier, "-o", "table", "why", "-u", "agent-1")
        assert done.stdout.splitlines() == ["agent-1  attested", "   no finding speaks against it"]

    scene(tmp_path, act)


def test_a_signed_policy_is_signed_again_and_what_must_not_be_approved_is_refused(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    private = tmp_path / "key.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        signed = sign_policy(policy_of(agent.files).encode(), key, key_id_of(key.public_key()))
        body = encoded(signed) | {"runtime_policy_key": encoded(public.decode())["runtime_policy"]}
        assert (await verifier.admin("POST", FLEET, body)).code == 201
        assert (await verifier.admin("POST", AGENT, enrolment(agent, **NAMED))).code == 200
        await verifier.until_passing(agent)
        agent.machine.measure("/opt/tool", b"new")
        await verifier.until_failed(agent)
        approve = ("-o", "table", "approve", "-u", "agent-1", "--yes")
        assert "give the key for its next version" in (await tenant(verifier, *approve, code=1)).stderr
        await tenant(verifier, *approve, "--sign-key", str(private))
        stored = (await verifier.admin("GET", FLEET)).results["runtime_policy"]
        document = json.loads(open_envelope(stored, [public], required=True))
        assert (document["release"], "/opt/tool" in document["digests"]) == (1, True)
        # A boot is not approved by its boot_aggregate.
        agent.files = {"boot_aggregate": b"another"}
        agent.reboot()
        await verifier.until_failed(agent)
        refused = await tenant(verifier, *approve, "--sign-key", str(private), code=1)
        assert "not approved: boot_aggregate: it stands for a whole boot" in refused.stderr
        told = json.loads((await tenant(verifier, "--json", "why", "-u", "agent-1")).stdout)
        assert told["next"] == []

    scene(tmp_path / "verifier", act, KEYLIME_VERIFIER_REQUIRE_ALLOW_LIST_SIGNATURES="True")
