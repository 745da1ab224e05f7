"""Named policies in a running verifier: what clients see, and agents that follow new versions."""

import asyncio
import base64
import json
import logging
import urllib.parse
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keylime.documents.dsse import key_id_of, sign_policy
from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime_verifier.policies.runtime import release_of
from tests.fakes.attesting_agent import AttestingAgent, policy_of
from tests.fakes.running_verifier import RunningVerifier, enrolment, running_verifier, verifier_authority

LIST, BOOT = "/v2.5/allowlists", "/v2.5/mbpolicies"


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


def body(text: str = EMPTY_POLICY, **more: object) -> dict[str, object]:
    return {"runtime_policy": base64.b64encode(text.encode()).decode(), **more}


def test_runtime_policies_from_creation_to_deletion(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        assert (await verifier.admin("GET", f"{LIST}/")).results == {"runtimepolicy names": []}
        made = policy_of({"/bin/made": b"made"})
        created = await verifier.admin("POST", f"{LIST}/fleet", body(made, tpm_policy='{"mask": "0x0"}'))
        assert (created.code, created.body) == (201, {"code": 201, "status": "Created", "results": {}})
        again = await verifier.admin("POST", f"{LIST}/fleet", body())
        assert (again.code, again.status) == (409, "Runtime policy with name fleet already exists")
        shown = (await verifier.admin("GET", f"{LIST}/fleet")).results
        # Exactly these: typed clients take a `tpm_policy` beside `tmp_policy` for one member given twice.
        assert shown == {"name": "fleet", "tmp_policy": None, "runtime_policy": made}
        other = policy_of({"/bin/a": b"a"})
        assert (await verifier.admin("PUT", f"{LIST}/fleet", body(other))).code == 201
        shown = (await verifier.admin("GET", f"{LIST}/fleet")).results
        assert shown["runtime_policy"] == other
        assert verifier.rows("SELECT count(*) FROM policy_texts") == [(2,)], "one to roll back to"
        absent = await verifier.admin("PUT", f"{LIST}/none", body())
        text = "Runtime policy with name none does not already exist, use POST to create"
        assert (absent.code, absent.status) == (404, text)
        for method in ("GET", "DELETE"):
            absent = await verifier.admin(method, f"{LIST}/none")
            assert (absent.code, absent.status) == (404, "Runtime policy none not found")
        deleted = await verifier.admin("DELETE", f"{LIST}/fleet")
        assert (deleted.code, deleted.body) == (204, None)
        assert verifier.rows("SELECT count(*) FROM policy_texts") == [(0,)]

    scene(tmp_path, act)


def test_l7_a_policy_that_judges_nothing_is_said_to_at_upload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        for method in ("POST", "PUT"):
            answer = await verifier.admin(method, f"{LIST}/fleet", body())
            assert answer.code == 201
            assert answer.status.startswith("Created: the runtime policy judges nothing")
        none = {"runtime_policy": "", "runtime_policy_name": "fleet"}
        answer = await verifier.admin("POST", "/v2.5/agents/agent-1", enrolment(agent, **none))
        assert answer.code == 200
        assert answer.status.startswith("Success: attested, nothing judged")
        status = await verifier.until_passing(agent)
        assert (status["attestation_text"], status["has_runtime_policy"]) == ("attested, nothing judged", 0)
        assert "Runtime policy 'fleet': the runtime policy judges nothing" in caplog.text
        assert "agent agent-1: attested, nothing judged: no policy makes a demand" in caplog.text
        bulk = await verifier.admin("GET", "/v2.5/agents/?bulk=true")
        assert bulk.results["agent-1"]["attestation_text"] == "attested, nothing judged"
        made = await verifier.admin("PUT", f"{LIST}/fleet", body(policy_of(agent.files)))
        assert made.status == "Created"
        status = await verifier.until_passing(agent)
        assert (status["attestation_text"], status["has_runtime_policy"]) == ("attested", 1)

    scene(tmp_path, act)


@pytest.mark.parametrize("generator", [0, 1, 2, 3])
def test_l7_a_policy_with_digests_judges_whoever_made_it(tmp_path: Path, generator: int) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        document = json.loads(policy_of(agent.files))
        document["meta"]["generator"] = generator
        agent.tamper("/usr/bin/backdoor")
        answer = await verifier.admin(
            "POST", "/v2.5/agents/agent-1", enrolment(agent, **body(json.dumps(document)))
        )
        assert (answer.code, answer.status) == (200, "Success")
        status = await verifier.until(agent, lambda status: status["attestation_status"] == "FAIL")
        assert status["last_event_id"].startswith("ima.")
        assert (status["attestation_count"], status["has_runtime_policy"]) == (0, 1)

    scene(tmp_path, act)


def test_l8_a_named_policy_is_not_that_of_an_agent_of_the_same_name(tmp_path: Path) -> None:
    """The agent neither replaces it when it comes, nor takes it along when it goes."""

    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        path, named = "/v2.5/agents/golden", policy_of({"/bin/golden": b"golden"})
        assert (await verifier.admin("POST", f"{LIST}/golden", body(named))).code == 201
        assert (await verifier.admin("POST", f"{BOOT}/golden", {"mb_policy": '{"a": 1}'})).code == 201
        for own in ({}, {"runtime_policy": ""}, {"runtime_policy_name": "other", "mb_policy": "{}"}):
            answer = await verifier.admin("POST", path, enrolment(agent, **own))
            assert answer.code == 409, own
            assert answer.status.startswith("A policy with name golden already exists"), own
        assert (await verifier.admin("POST", path, enrolment(agent, runtime_policy_name="own"))).code == 200
        assert (await verifier.admin("DELETE", path)).code == 200
        assert (await verifier.admin("GET", f"{LIST}/golden")).results["runtime_policy"] == named
        assert (await verifier.admin("GET", f"{BOOT}/golden")).results["mb_policy"] == '{"a": 1}'

    scene(tmp_path, act)


def test_reference_states_from_creation_to_deletion(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        policy = {"mb_policy": "{}"}
        assert (await verifier.admin("GET", f"{BOOT}/")).results == {"mbpolicy names": []}
        assert (await verifier.admin("POST", f"{BOOT}/boot", policy)).code == 201
        again = await verifier.admin("POST", f"{BOOT}/boot", policy)
        assert (again.code, again.status) == (409, "Measured boot policy with name boot already exists")
        assert (await verifier.admin("GET", f"{BOOT}/boot")).results == {"name": "boot", "mb_policy": "{}"}
        assert (await verifier.admin("PUT", f"{BOOT}/boot", {"mb_policy": '{"a": 1}'})).code == 201
        assert (await verifier.admin("GET", f"{BOOT}/boot")).results["mb_policy"] == '{"a": 1}'
        absent = await verifier.admin("PUT", f"{BOOT}/none", policy)
        text = "Measured boot policy with name none does not already exist"
        assert (absent.code, absent.status) == (409, text)
        for method in ("GET", "DELETE"):
            absent = await verifier.admin(method, f"{BOOT}/none")
            assert (absent.code, absent.status) == (404, "Measured boot policy none not found")
        assert (await verifier.admin("DELETE", f"{BOOT}/boot")).code == 204

    scene(tmp_path, act)


@pytest.mark.parametrize(
    ("path", "wrong", "named"),
    [
        (LIST, {}, "runtime_policy"),
        (LIST, {"runtime_policy": None}, "runtime_policy"),
        (LIST, {"runtime_policy": "***"}, "runtime_policy"),
        (LIST, body("{"), "Runtime policy is malformatted"),
        (LIST, body(runtime_policy_key=7), "runtime_policy_key"),
        (LIST, body(runtime_policy_key="***"), "runtime_policy_key"),
        (LIST, body(tpm_policy=[]), "tpm_policy"),
        (LIST, body(tpm_policy="[]"), "tpm_policy"),
        (LIST, body(tpm_policy='{"16": "00"}'), "tpm_policy: PCR 16"),
        (BOOT, {}, "mb_policy"),
        (BOOT, {"mb_policy": {}}, "mb_policy"),
        (BOOT, {"mb_policy": "{"}, "mb_policy"),
        (BOOT, {"mb_policy": "null"}, "mb_policy"),
    ],
)
def test_every_field_is_checked_and_a_wrong_one_named(
    tmp_path: Path, path: str, wrong: dict[str, object], named: str
) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        for method in ("POST", "PUT"):
            answer = await verifier.admin(method, f"{path}/p", wrong)
            assert answer.code == 400, answer
            assert named in answer.status
        assert verifier.rows("SELECT * FROM policies") == []

    scene(tmp_path, act)


def test_n22_names_are_exact_or_refused(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        names = ["Fleet", "fleet", "it's", 'a "b"', "..a", "'; DROP TABLE policies; --", "é"]
        for name in names:
            path = f"{LIST}/{urllib.parse.quote(name)}"
            assert (await verifier.admin("POST", path, body(policy_of({name: b""})))).code == 201
            assert (await verifier.admin("GET", path)).results["name"] == name
        listed = (await verifier.admin("GET", LIST)).results["runtimepolicy names"]
        assert sorted(listed) == sorted(names)
        for name in ("a%252Fb", "a%0Ab", "%00", "a" * 256):
            answer = await verifier.admin("POST", f"{LIST}/{name}", body())
            assert answer.code == (201 if name == "a%252Fb" else 400), name

    scene(tmp_path, act)


def test_n25_extra_keys_set_nothing(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        extra = body(name="other", kind="measured_boot", content_hash="0", generator=9)
        assert (await verifier.admin("POST", f"{LIST}/mine", extra)).code == 201
        assert verifier.rows("SELECT kind, name FROM policies") == [("runtime", "mine")]

    scene(tmp_path, act)


def test_l1_unsigned_policies_are_refused_where_signatures_are_required(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        for method in ("POST", "PUT"):
            assert (await verifier.admin(method, f"{LIST}/fleet", body())).code in (400, 401)
        assert verifier.rows("SELECT * FROM policies") == []

    scene(tmp_path, act, KEYLIME_VERIFIER_REQUIRE_ALLOW_LIST_SIGNATURES="True")


def signed(key: ec.EllipticCurvePrivateKey, release: int) -> dict[str, object]:
    payload = json.dumps({**json.loads(EMPTY_POLICY), "release": release}).encode()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    envelope = sign_policy(payload, key, key_id_of(key.public_key()))
    return body(envelope, runtime_policy_key=base64.b64encode(pem).decode())


def test_l2_where_signatures_are_required_an_older_signed_version_is_refused(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        assert (await verifier.admin("POST", f"{LIST}/fleet", signed(key, 4))).code == 201
        assert (await verifier.admin("PUT", f"{LIST}/fleet", signed(key, 5))).code == 201
        refused = await verifier.admin("PUT", f"{LIST}/fleet", signed(key, 4))
        assert refused.code == 409
        assert "has release 5, which is newer than 4" in refused.status
        kept = (await verifier.admin("GET", f"{LIST}/fleet")).results["runtime_policy"]
        assert release_of(kept) == 5
        assert (await verifier.admin("PUT", f"{LIST}/fleet", signed(key, 5))).code == 201

    scene(tmp_path, act, KEYLIME_VERIFIER_REQUIRE_ALLOW_LIST_SIGNATURES="True")


def test_l2_elsewhere_an_older_version_is_accepted_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        newer = json.dumps({**json.loads(EMPTY_POLICY), "release": 2})
        assert (await verifier.admin("POST", f"{LIST}/fleet", body(newer))).code == 201
        assert (await verifier.admin("PUT", f"{LIST}/fleet", body())).code == 201
        assert "release 2, which is newer than 0; it is replaced by the older one" in caplog.text

    scene(tmp_path, act)


def test_s6_agents_follow_a_new_version_and_are_judged_again_from_the_first_entry(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        assert (await verifier.admin("POST", f"{LIST}/fleet", body(policy_of(agent.files)))).code == 201
        await verifier.add(agent, runtime_policy="", runtime_policy_name="fleet")
        await verifier.until_passing(agent, rounds=3)
        assert agent.questions[-1].entry > 0, "rounds have become incremental"
        # Nothing new is measured: only a look at what was judged already can find it.
        assert (await verifier.admin("PUT", f"{LIST}/fleet", body(policy_of({"/other": b""})))).code == 201
        status = await verifier.until(agent, lambda status: status["attestation_status"] == "FAIL")
        assert status["last_event_id"].startswith("ima.")
        assert agent.questions[-1].entry == 0

    scene(tmp_path, act)


def test_s6_a_new_version_of_the_same_content_costs_no_full_round(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        text = policy_of(agent.files)
        await verifier.add(agent)
        await verifier.until_passing(agent, rounds=2)
        asked = len(agent.questions)
        spaced = json.dumps(json.loads(text), indent=1)
        assert (await verifier.admin("PUT", f"{LIST}/agent-1", body(spaced))).code == 201
        await verifier.until_passing(agent, rounds=3)
        assert all(question.entry > 0 for question in agent.questions[asked:])

    scene(tmp_path, act)


def test_s6_a_policy_that_is_replaced_before_a_restart_judges_everything_after_it(tmp_path: Path) -> None:
    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            async with running_verifier(tmp_path) as verifier:
                await verifier.add(agent)
                await verifier.until_passing(agent, rounds=2)
                agent.gate = asyncio.Event()  # no round ends between the new version and the stop
                answer = await verifier.admin("PUT", f"{LIST}/agent-1", body(policy_of({"/other": b""})))
                assert answer.code == 201
            agent.gate.set()
            async with running_verifier(tmp_path) as verifier:
                await verifier.until(agent, lambda status: status["attestation_status"] == "FAIL")

    asyncio.run(play())


def test_a_new_reference_state_is_applied_in_the_next_round(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        policy = {"mb_policy": '{"anything": 1}'}
        assert (await verifier.admin("POST", f"{BOOT}/boot", policy)).code == 201
        await verifier.add(agent, mb_policy=None, mb_policy_name="boot")
        # This agent sends no boot log at all, so with any reference state it fails (T2).
        status = await verifier.until(agent, lambda status: status["attestation_status"] == "FAIL")
        assert status["has_mb_refstate"] == 1

    scene(tmp_path, act)


def test_l4_a_policy_in_use_stays_and_an_agent_is_named(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        assert (await verifier.admin("POST", f"{LIST}/fleet", body(policy_of(agent.files)))).code == 201
        assert (await verifier.admin("POST", f"{BOOT}/boot", {"mb_policy": "{}"})).code == 201
        names = {"runtime_policy": "", "runtime_policy_name": "fleet", "mb_policy_name": "boot"}
        for number in (2, 1):
            path = f"/v2.5/agents/agent-{number}"
            assert (await verifier.admin("POST", path, enrolment(agent, **names))).code == 200
        for path, title in ((f"{LIST}/fleet", "allowlist"), (f"{BOOT}/boot", "mb_policy")):
            answer = await verifier.admin("DELETE", path)
            text = f"Can't delete {title} as it's currently in use by agent agent-1"
            assert (answer.code, answer.status) == (409, text)
        for number in (1, 2):
            assert (await verifier.admin("DELETE", f"/v2.5/agents/agent-{number}")).code == 200
        for path in (f"{LIST}/fleet", f"{BOOT}/boot"):
            assert (await verifier.admin("DELETE", path)).code == 204

    scene(tmp_path, act, KEYLIME_VERIFIER_QUOTE_INTERVAL="60")
