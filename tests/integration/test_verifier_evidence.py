"""One-shot verification over HTTP: shapes by version, codes, limits, and a verifier that goes on polling."""

import asyncio
import io
import urllib.parse
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from keylime.errors import ConfigError
from keylime.messages.verification import TpmEvidence
from tests.fakes.attesting_agent import AttestingAgent, payload_key, public_pem
from tests.fakes.own_time import OwnTime
from tests.fakes.running_verifier import (
    Answer,
    RunningVerifier,
    running_verifier,
    verifier_authority,
    verifier_config,
)
from tests.fakes.tls_material import client_context
from tests.unit.verifier.test_evidence_check import genuine, judgement_on

EVIDENCE, IDENTITY = "/verify/evidence", "/v2.5/verify/identity"


def scene(
    directory: Path, act: Callable[[RunningVerifier, AttestingAgent], Awaitable[None]], **environ: str
) -> None:
    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as agent,
            running_verifier(directory, environ) as verifier,
        ):
            await act(verifier, agent)

    asyncio.run(play())


def fields(**changes: object) -> dict[str, Any]:
    return {**msgspec.to_builtins(genuine()), **changes}


async def anyone(verifier: RunningVerifier, method: str, path: str, body: object = None) -> Answer:
    return await verifier.call(method, path, client_context(verifier_authority()), body)


def test_l9_good_evidence_is_valid_and_its_claims_are_what_was_proven(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        claims = msgspec.to_builtins(judgement_on(genuine()).claims)
        for version in ("v2.5", "v2.6", "v2"):
            body = {"type": "tpm", "data": fields(not_looked_at=True)}
            answer = await anyone(verifier, "POST", f"/{version}{EVIDENCE}", body)
            assert (answer.code, answer.status) == (200, "Success")
            assert answer.results == {"valid": True, "claims": claims, "failures": []}
            assert "tpm_ek" not in claims
        answer = await anyone(verifier, "POST", f"/v2.4{EVIDENCE}", fields())
        assert (answer.code, answer.results) == (200, {"valid": 1, "failures": []})
        assert answer.results["valid"] is not True

    scene(tmp_path, act)


def test_bad_evidence_is_a_verdict_and_says_why(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        bad = fields(nonce="another")
        answer = await anyone(verifier, "POST", f"/v2.5{EVIDENCE}", {"type": "tpm", "data": bad})
        assert answer.code == 200
        assert (answer.results["valid"], answer.results["claims"]) == (False, {})
        (failure,) = answer.results["failures"]
        assert failure["type"] == "qoute_validation.quote_validation"
        assert "nonce" in failure["context"]["error"]
        answer = await anyone(verifier, "POST", f"/v2.4{EVIDENCE}", bad)
        assert (answer.code, list(answer.results), answer.results["valid"]) == (200, ["valid", "failures"], 0)

    scene(tmp_path, act)


def test_what_is_missing_is_answered_as_clients_of_the_field_expect(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        answer = await anyone(verifier, "POST", f"/v2.5{EVIDENCE}", {"type": "tpm", "data": {}})
        message = {"message": 'missing parameter "quote"'}
        assert answer.body == {
            "code": 400,
            "status": "Bad Request",
            "results": {
                "valid": False,
                "claims": {},
                "failures": [{"type": "default.missing_param", "context": message}],
            },
        }
        for body, status in (
            ({"data": {}}, "missing parameter 'type'"),
            ({"type": "tpm"}, "missing parameter 'data'"),
            ({"type": "tee", "data": {"tee-evidence": {}, "nonce": ""}}, "'tee'"),
            ({"type": "other", "data": {}}, "invalid evidence type"),
            ({"type": "tpm", "data": []}, "$.data"),
            ({"type": "tpm", "data": fields(quote=7)}, "$.data.quote"),
            ([], "object"),
        ):
            answer = await anyone(verifier, "POST", f"/v2.5{EVIDENCE}", body)
            assert answer.code == 400, body
            assert status in answer.status

    scene(tmp_path, act)


@pytest.mark.parametrize("name", TpmEvidence.__struct_fields__)
def test_every_field_of_a_wrong_type_is_named(tmp_path: Path, name: str) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        values: tuple[object, ...] = (7, [], {}, True)
        for wrong in values:
            answer = await anyone(verifier, "POST", f"/v2.4{EVIDENCE}", fields(**{name: wrong}))
            assert answer.code == 400
            assert f"$.{name}" in answer.status

    scene(tmp_path, act)


def test_evidence_over_the_limit_is_refused(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        body = {"type": "tpm", "data": fields(ima_measurement_list="x" * 400_000)}
        assert (await anyone(verifier, "POST", f"/v2.5{EVIDENCE}", body)).code == 413

    scene(tmp_path, act, KEYLIME_VERIFIER_MAX_UPLOAD_SIZE="300000")


def test_n8_evidence_over_its_own_limit_is_refused_without_being_read(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        for size, code in ((4 << 20, 413), (3 << 20, 400)):
            body = io.BytesIO(b"x" * size + b"x")
            assert (await anyone(verifier, "POST", f"/v2.5{EVIDENCE}", body)).code == code

    scene(tmp_path, act)


def test_n8_evidence_that_could_never_be_admitted_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    sizes = {
        "KEYLIME_VERIFIER_MAX_EVIDENCE_SIZE": "3000000",
        "KEYLIME_VERIFIER_MAX_STRANGER_BODIES": "2000000",
    }
    with pytest.raises(ConfigError, match=r"max_evidence_size = 3000000 .* max_stranger_bodies"):
        verifier_config(tmp_path, sizes)


def test_agents_are_polled_and_a_stop_is_quick_while_much_evidence_is_judged(tmp_path: Path) -> None:
    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            async with running_verifier(tmp_path) as verifier:
                await verifier.add(agent)
                await verifier.until_passing(agent)
                log = fields()["ima_measurement_list"] * 400
                body = {"type": "tpm", "data": fields(ima_measurement_list=log)}
                calls = [
                    asyncio.create_task(anyone(verifier, "POST", f"/v2.5{EVIDENCE}", body)) for _ in range(20)
                ]
                await verifier.until_passing(agent, rounds=3)
                own = OwnTime()
            assert own.passed_s() < 5
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(play())


def identity(agent: AttestingAgent, **changes: str) -> str:
    query = {
        "agent_uuid": agent.agent_id,
        "quote": agent.machine.quote("a nonce", 0, public_pem(payload_key())),
        "nonce": "a nonce",
        "hash_alg": "sha256",
        **changes,
    }
    return f"{IDENTITY}?{urllib.parse.urlencode({name: value for name, value in query.items() if value})}"


def test_an_agents_quote_proves_its_identity(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        answer = await anyone(verifier, "GET", identity(agent))
        assert (answer.code, answer.results) == (200, {"valid": 1})
        for changes in ({"nonce": "another"}, {"hash_alg": "sha1"}, {"hash_alg": "none"}, {"quote": "r"}):
            answer = await anyone(verifier, "GET", identity(agent, **changes))
            assert (answer.code, answer.results["valid"]) == (200, 0), changes
            assert answer.results["reason"]
        for name in ("agent_uuid", "quote", "nonce", "hash_alg"):
            answer = await anyone(verifier, "GET", identity(agent, **{name: ""}))
            assert (answer.code, answer.status) == (400, f"missing query parameter '{name}'")
        assert (await anyone(verifier, "GET", identity(agent, agent_uuid="../x"))).code == 400

    scene(tmp_path, act)


def test_n18_strangers_do_not_learn_which_agents_there_are(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        wrong = {"nonce": "another"}
        known = await anyone(verifier, "GET", identity(agent, **wrong))
        unknown = await anyone(verifier, "GET", identity(agent, agent_uuid="none", **wrong))
        assert known.body == unknown.body
        answer = await verifier.admin("GET", identity(agent, agent_uuid="none"))
        assert (answer.code, answer.status) == (404, "agent id not found")

    scene(tmp_path, act)
