"""The verifier's API: who may call what, which bodies are refused and why, and the shapes of its answers."""

import asyncio
import base64
import io
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest

from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime.pki.roles import NODE
from tests.fakes.attesting_agent import AttestingAgent, policy_of
from tests.fakes.running_verifier import (
    RunningVerifier,
    enrolment,
    running_verifier,
    verifier_authority,
)
from tests.fakes.tls_material import (
    CLIENT_AUTH,
    SERVER_AUTH,
    Authority,
    client_context,
    plain_leaf,
    self_signed,
    unmarked_node,
)

AGENT_UUID = "d432fbb3-d2f1-4a97-9ef7-75bd81c0aaaa"
AGENT = "/v2.5/agents/agent-1"
RSA_PUBLIC = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"


def scene(
    directory: Path, act: Callable[[RunningVerifier, AttestingAgent], Awaitable[None]], **environ: str
) -> None:
    """A verifier and an agent that it does not know yet."""

    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as agent,
            running_verifier(directory, environ) as verifier,
        ):
            await act(verifier, agent)

    asyncio.run(play())


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


BAD_FIELDS: list[tuple[str, object, str]] = [
    ("tpm_policy", ..., "tpm_policy"),
    ("tpm_policy", 7, "tpm_policy"),
    ("tpm_policy", "{", "tpm_policy"),
    ("tpm_policy", '{"99": ["00"]}', "tpm_policy"),
    ("tpm_policy", '{"mask": "0x1000000"}', "mask"),
    ("tpm_policy", '{"16": ["' + "00" * 32 + '"], "mask": "0x10000"}', "tpm_policy: PCR 16"),
    ("metadata", ..., "metadata"),
    ("metadata", "{", "metadata"),
    ("metadata", "[" * 101 + "]" * 101, "metadata"),
    ("metadata", None, "metadata"),
    ("ima_sign_verification_keys", ..., "ima_sign_verification_keys"),
    ("ima_sign_verification_keys", "{", "ima_sign_verification_keys"),
    ("revocation_key", ..., "revocation_key"),
    ("revocation_key", "no key", "revocation_key"),
    ("revocation_key", RSA_PUBLIC, "revocation_key"),
    ("revocation_key", "A" * 2801, "revocation_key"),
    ("accept_tpm_hash_algs", ..., "accept_tpm_hash_algs"),
    ("accept_tpm_hash_algs", "sha256", "accept_tpm_hash_algs"),
    ("accept_tpm_encryption_algs", [7], "accept_tpm_encryption_algs"),
    ("accept_tpm_signing_algs", None, "accept_tpm_signing_algs"),
    ("ak_tpm", ..., "ak_tpm"),
    ("ak_tpm", "", "ak_tpm"),
    ("ak_tpm", "****", "ak_tpm"),
    ("ak_tpm", b64("no TPM2B_PUBLIC"), "ak_tpm"),
    ("cloudagent_ip", ..., "cloudagent_ip"),
    ("cloudagent_ip", "", "cloudagent_ip"),
    ("cloudagent_ip", "127.0.0.1/../x", "cloudagent_ip"),
    ("cloudagent_ip", "user@host", "cloudagent_ip"),
    ("cloudagent_ip", "a" * 256, "cloudagent_ip"),
    ("cloudagent_ip", "host\r\nX: y", "cloudagent_ip"),
    ("cloudagent_port", ..., "cloudagent_port"),
    ("cloudagent_port", 0, "cloudagent_port"),
    ("cloudagent_port", 65536, "cloudagent_port"),
    ("cloudagent_port", "http", "cloudagent_port"),
    ("cloudagent_port", True, "cloudagent_port"),
    ("mb_policy", ..., "mb_policy"),
    ("mb_policy", "{", "mb_policy"),
    ("mb_refstate", "{}", "mb_refstate"),
    ("allowlist", "{}", "allowlist"),
    ("mb_policy_name", ..., "mb_policy_name"),
    ("mb_policy_name", "a/b", "mb_policy_name"),
    ("runtime_policy", ..., "runtime_policy"),
    ("runtime_policy", None, "runtime_policy"),
    ("runtime_policy", "***", "runtime_policy"),
    ("runtime_policy", b64("{"), "Runtime policy is malformatted"),
    ("runtime_policy", b64('{"digests": 7}'), "Runtime policy is malformatted"),
    ("runtime_policy_name", "a" * 256, "runtime_policy_name"),
    ("runtime_policy_name", "a\nb", "runtime_policy_name"),
    ("mtls_cert", "no PEM", "mtls_cert"),
    ("mtls_cert", ..., "mTLS certificate for agent is required!"),
    ("mtls_cert", "disabled", "mTLS certificate for agent is required!"),
    ("v", "***", "v is not base64"),
    ("v", b64("short"), "v has the wrong length"),
    ("v", 7, "$.v"),
    ("verifier_ip", "a b", "verifier_ip"),
    ("verifier_port", 70000, "verifier_port"),
    ("supported_version", 2.5, "supported_version"),
]


def test_every_field_of_a_new_agent_is_checked_and_a_wrong_one_named(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        wrong = []
        for field, value, named in BAD_FIELDS:
            answer = await verifier.admin("POST", AGENT, enrolment(agent, **{field: value}))
            if answer.code != 400 or named not in answer.status:
                wrong.append((field, value, answer))
        assert wrong == []
        assert verifier.rows("SELECT * FROM agents") == []
        assert verifier.rows("SELECT * FROM policies") == []
        assert agent.paths == []

    scene(tmp_path, act)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "Expected non zero content length"),
        (b"{", "truncated"),
        (b"[]", "object"),
        (b"null", "object"),
        (b"\xff\xfe", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_a_body_that_is_no_object_is_refused(tmp_path: Path, body: bytes, named: str) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        answer = await verifier.admin("POST", AGENT, body)
        assert answer.code == 400
        assert named in answer.status

    scene(tmp_path, act)


GOOD_FIELDS: list[dict[str, object]] = [
    {"cloudagent_port": "9002"},
    {"cloudagent_ip": "::1"},
    {"cloudagent_ip": "node1.example.org"},
    {"v": None},
    {"v": ...},
    {"v": base64.b64encode(bytes(16)).decode()},
    {"revocation_key": ""},
    {"runtime_policy": "", "runtime_policy_name": None},
    {"runtime_policy": b64(EMPTY_POLICY), "runtime_policy_name": "fleet"},
    {"mb_policy": "{}"},
    {"mb_policy": "null"},
    {"mb_policy": "", "mb_policy_name": None},
    {"supported_version": "9.9"},
    {"supported_version": None},
    {"supported_version": ...},
    {"verifier_ip": None, "verifier_port": None},
]


def test_what_clients_of_the_field_send_is_accepted(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        for changes in GOOD_FIELDS:
            answer = await verifier.admin("POST", AGENT, enrolment(agent, **changes))
            assert (answer.code, answer.results) == (200, {}), changes
            is_judged = changes.get("runtime_policy", "a") not in ("", b64(EMPTY_POLICY))
            assert (answer.status == "Success") == is_judged, changes
            assert answer.status.startswith("Success")
            status = await verifier.status(agent)
            assert status["has_mb_refstate"] == int(changes.get("mb_policy") == "{}"), changes
            assert (await verifier.admin("DELETE", AGENT)).code == 200

    scene(tmp_path, act, KEYLIME_VERIFIER_QUOTE_INTERVAL="60")


def test_without_agent_mtls_a_certificate_may_be_missing(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        for certificate in ("disabled", None, ..., ""):
            answer = await verifier.admin("POST", AGENT, enrolment(agent, mtls_cert=certificate))
            assert answer.code == 200, certificate
            assert (await verifier.admin("DELETE", AGENT)).code == 200

    scene(tmp_path, act, KEYLIME_VERIFIER_ENABLE_AGENT_MTLS="False")


def test_n25_extra_keys_set_nothing(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await agent.stop()
        await verifier.add(
            agent,
            operational_state=3,
            attestation_count=99,
            last_successful_attestation=4_000_000_000,
            verifier_id="other",
            incarnation="x",
            checkpoint="{}",
            agent_id="agent-2",
        )
        status = await verifier.status(agent)
        assert status["operational_state"] in (1, 7)
        assert (status["attestation_count"], status["last_successful_attestation"]) == (0, 0)
        assert (status["verifier_id"], status["attestation_status"] == "PASS") == ("default", False)
        assert verifier.rows("SELECT agent_id FROM agents") == [("agent-1",)]

    scene(tmp_path, act)


def test_an_agent_or_policy_that_is_there_already_is_a_conflict(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent, runtime_policy_name="fleet")
        answer = await verifier.admin("POST", AGENT, enrolment(agent))
        text = "Agent of uuid agent-1 already exists. Please use delete or update."
        assert (answer.code, answer.status) == (409, text)
        other = "/v2.5/agents/agent-2"
        answer = await verifier.admin("POST", other, enrolment(agent, runtime_policy_name="fleet"))
        assert (answer.code, answer.status) == (409, "IMA policy with name fleet already exists.")
        boot = {"mb_policy": "{}", "mb_policy_name": "boot"}
        assert (await verifier.admin("POST", other, enrolment(agent, **boot))).code == 200
        answer = await verifier.admin("POST", "/v2.5/agents/agent-3", enrolment(agent, **boot))
        assert (answer.code, answer.status) == (409, "mb_policy with name boot already exists.")

    scene(tmp_path, act, KEYLIME_VERIFIER_QUOTE_INTERVAL="60")


def test_a_policy_name_that_is_not_stored_is_not_found(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        body = enrolment(agent, runtime_policy="", runtime_policy_name="none")
        answer = await verifier.admin("POST", AGENT, body)
        assert (answer.code, answer.status) == (404, "Could not find IMA policy with name none!")
        answer = await verifier.admin("POST", AGENT, enrolment(agent, mb_policy_name="none"))
        assert (answer.code, answer.status) == (404, "Could not find mb_policy with name none!")
        assert verifier.rows("SELECT * FROM agents") == []

    scene(tmp_path, act)


def test_lists_have_the_shapes_that_clients_of_the_field_unpack(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        assert (await verifier.admin("GET", "/v2.5/agents/")).results == {"uuids": []}
        assert (await verifier.admin("GET", "/v2.5/agents/?bulk=True")).results == {}
        for name in ("agent-2", "agent-1"):
            answer = await verifier.admin("POST", f"/v2/agents/{name}", enrolment(agent, runtime_policy=""))
            assert answer.code == 200
        both: object = {"uuids": [["agent-1"], ["agent-2"]]}
        none: object = {"uuids": []}
        for query, expected in (
            ("", both),
            ("?verifier=", both),
            ("?verifier=default", both),
            ("?verifier=other", none),
        ):
            assert (await verifier.admin("GET", f"/v2.5/agents/{query}")).results == expected, query
        bulk = (await verifier.admin("GET", "/v2.5/agents/?bulk=True&verifier=default")).results
        assert list(bulk) == ["agent-1", "agent-2"]
        one = (await verifier.admin("GET", AGENT)).results
        assert list(bulk["agent-1"]) == list(one)
        assert list(one)[:3] == ["operational_state", "v", "ip"]
        assert "maximum_attestation_interval" in one
        assert "ima_entries" not in one, "without a runtime policy nothing of a list is judged"
        assert (await verifier.admin("GET", "/v2.5/agents/?bulk=True&verifier=other")).results == {}

    scene(tmp_path, act, KEYLIME_VERIFIER_QUOTE_INTERVAL="60")


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        for method, path in (
            ("GET", "/v2.5/agents/none"),
            ("DELETE", "/v2.5/agents/none"),
            ("PUT", "/v2.5/agents/none/stop"),
            ("PUT", "/v2.5/agents/none/reactivate"),
        ):
            answer = await verifier.admin(method, path)
            assert (answer.code, answer.status) == (404, "agent id not found")
        for method, path in (
            ("PUT", "/v2.5/agents/none/other"),
            ("GET", "/v9.9/agents"),
            ("GET", "/agents"),
            ("GET", "/v2.5/unknown"),
        ):
            answer = await verifier.admin(method, path)
            assert (answer.code, answer.body) == (404, None)
        answer = await verifier.admin("GET", "/v2.5/agents/..%2Fetc")
        assert answer.code == 400

    scene(tmp_path, act)


ADMIN, ANYONE, AGENT_ITSELF = "administrators", "anyone", "the agent itself"
RIGHTS = {
    ("GET", "/version"): ANYONE,
    ("GET", "/versions"): ANYONE,
    ("GET", "/openapi.json"): ANYONE,
    ("GET", "/healthz"): ANYONE,
    ("GET", "/readyz"): ANYONE,
    ("POST", "/v3.0/sessions"): ANYONE,
    ("PATCH", "/v3.0/sessions/{session_id}"): ANYONE,
    ("GET", "/v3.0/"): ANYONE,
    ("POST", "/v3.0/agents/{agent_id}/attestations"): AGENT_ITSELF,
    ("PATCH", "/v3.0/agents/{agent_id}/attestations/{number}"): AGENT_ITSELF,
    ("GET", "/v3.0/agents/{agent_id}/attestations"): ADMIN,
    ("GET", "/v3.0/agents/{agent_id}/attestations/{number}"): ADMIN,
    ("GET", "/v2.6/verify/identity"): ANYONE,
    ("POST", "/v2.6/verify/evidence"): ANYONE,
    ("GET", "/v2.6/agents"): ADMIN,
    ("GET", "/v2.6/agents/{agent_id}"): ADMIN,
    ("POST", "/v2.6/agents/{agent_id}"): ADMIN,
    ("PUT", "/v2.6/agents/{agent_id}/reactivate"): ADMIN,
    ("PUT", "/v2.6/agents/{agent_id}/stop"): ADMIN,
    ("PUT", "/v2.6/agents/{agent_id}"): ADMIN,
    ("DELETE", "/v2.6/agents/{agent_id}"): ADMIN,
    ("GET", "/v2.6/agents/{agent_id}/history"): ADMIN,
    ("GET", "/v2.6/allowlists"): ADMIN,
    ("GET", "/v2.6/allowlists/{name}"): ADMIN,
    ("POST", "/v2.6/allowlists/{name}"): ADMIN,
    ("PUT", "/v2.6/allowlists/{name}"): ADMIN,
    ("DELETE", "/v2.6/allowlists/{name}"): ADMIN,
    **{
        (method, f"/v2.6/{kind}/{{name}}/versions{rest}"): ADMIN
        for kind in ("allowlists", "mbpolicies")
        for method, rest in (("GET", ""), ("GET", "/{version}"), ("POST", "/{version}/restore"))
    },
    ("GET", "/v2.6/mbpolicies"): ADMIN,
    ("GET", "/v2.6/mbpolicies/{name}"): ADMIN,
    ("POST", "/v2.6/mbpolicies/{name}"): ADMIN,
    ("PUT", "/v2.6/mbpolicies/{name}"): ADMIN,
    ("DELETE", "/v2.6/mbpolicies/{name}"): ADMIN,
    ("GET", "/v2.6/revocations"): ADMIN,
    ("GET", "/v2.6/verifiers"): ADMIN,
    ("GET", "/v2.6/audit"): ADMIN,
    ("GET", "/v2.6/events"): ADMIN,
}


async def routes_of(verifier: RunningVerifier) -> set[tuple[str, str]]:
    """The routes that this verifier serves, from its own description, which is made of its table."""
    paths = (await verifier.admin("GET", "/openapi.json")).body["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def strangers(agent: AttestingAgent) -> dict[str, ssl.SSLContext]:
    """Everyone who is no administrator."""
    ours = verifier_authority()
    return {
        "nobody": client_context(ours),
        "server": client_context(ours, ours.issue("server", usages=(SERVER_AUTH,))),
        "nameless": client_context(ours, ours.issue(None)),
        "machine": client_context(ours, ours.issue("web01", usages=(SERVER_AUTH, CLIENT_AUTH, NODE))),
        "machine of before": client_context(ours, unmarked_node(ours, "web01")),
        "machine of another release": client_context(ours, plain_leaf(ours, AGENT_UUID)),
        "agent": client_context(ours, agent.identity),
        "self-signed": client_context(ours, self_signed("operator")),
        "other CA": client_context(ours, Authority("other").issue("operator")),
        "expired": client_context(ours, ours.issue("operator", days=(-9, -2))),
    }


def test_n1_p11_every_route_answers_whom_the_table_says_and_nobody_else(tmp_path: Path) -> None:
    """No certificate, an agent's own, a server's, another CA's, an expired one, each at every route."""

    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        assert await routes_of(verifier) == set(RIGHTS), "a route is new or gone: who may call it?"
        wrong = []
        for who, context in strangers(agent).items():
            for (method, path), right in RIGHTS.items():
                target = path.format(
                    agent_id="agent-1", name="agent-1", session_id="1", version="1", number="0"
                )
                body = enrolment(agent) if method in ("POST", "PUT") else None
                try:
                    answer = await verifier.call(method, target, context, body)
                except aiohttp.ClientError:  # the handshake failed
                    assert who in ("server", "agent", "self-signed", "other CA", "expired"), who
                    continue
                is_denied = answer.code == 403 and set(answer.body) == {"errors"}
                if is_denied is not (right is not ANYONE) or answer.code >= 500:
                    wrong.append((who, method, path, answer.code))
        assert wrong == []
        await verifier.until_passing(agent)

    scene(tmp_path, act)


def test_an_administrator_may_call_every_route(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        for (method, path), right in RIGHTS.items():
            target = path.format(agent_id="none", name="none", session_id="none", version="1", number="0")
            target += "?after=x" if path.endswith("/events") else ""  # an answer that has an end
            answer = await verifier.admin(method, target, {} if method in ("POST", "PUT", "PATCH") else None)
            allowed = (403,) if right is AGENT_ITSELF else (200, 400, 404)
            assert answer.code in allowed, (method, path, answer)

    scene(tmp_path, act)


def test_a_caller_with_a_token_is_judged_by_the_token_alone(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        for header in ("Bearer " + "A" * 40, "Basic QTpC", "x"):
            for path in (AGENT, "/v2.6/allowlists"):
                headers = {"Authorization": header}
                answer = await verifier.call("GET", path, verifier.administrators, headers=headers)
                assert answer.code == 401, (header, path)

    scene(tmp_path, act)


def test_a_body_over_the_limit_is_refused(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        body = enrolment(agent, metadata='"' + "a" * 200_000 + '"')
        assert (await verifier.admin("POST", AGENT, body)).code == 413

    scene(tmp_path, act, KEYLIME_VERIFIER_MAX_UPLOAD_SIZE="100000")


def test_a_large_policy_is_taken(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        files = {**agent.files, **{f"/usr/lib/file{number}": b"%d" % number for number in range(20_000)}}
        body = msgspec.json.encode(enrolment(agent, runtime_policy=b64(policy_of(files))))
        assert len(body) > 1 << 20
        assert (await verifier.admin("POST", AGENT, io.BytesIO(body))).code == 200
        await verifier.until_passing(agent, rounds=2)

    scene(tmp_path, act)


def test_an_agent_in_push_mode_is_told_why_it_gets_no_session(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        document = {"data": {"type": "session", "attributes": {"agent_id": AGENT_UUID}}}
        for method, path in (
            ("POST", "/v3.0/sessions"),
            ("POST", "/v3/sessions"),
            ("PATCH", "/v3.0/sessions/x"),
        ):
            answer = await verifier.admin(method, path, document)
            assert answer.code == 404
            assert "does not take attestations that agents push" in answer.status

    scene(tmp_path, act, KEYLIME_VERIFIER_MODE="pull")
