"""Attacks on policy documents, at every door that takes one. Ids are those of the attack catalogue."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from keylime.documents.dsse import sign_policy
from keylime.ima.digest_maps import MAX_DIGESTS_PER_NAME
from tests.fakes.attesting_agent import AttestingAgent, policy_of
from tests.fakes.running_verifier import RunningVerifier, enrolment, running_verifier, verifier_authority
from tests.unit.documents.test_dsse import KEY
from tests.unit.verifier.test_evidence_check import genuine

Act = Callable[[RunningVerifier, AttestingAgent], Awaitable[None]]

GOOD = policy_of({"/bin/a": b"a"})


def twice(text: str) -> str:
    """The same with its first member once more."""
    (name, value), *_ = json.loads(text).items()
    return f"{{{json.dumps(name)}: {json.dumps(value)}, {text[1:]}"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def envelope(text: str) -> str:
    return sign_policy(text.encode(), KEY, "")


RUNTIME = {
    "a key twice": (twice(GOOD), "the key 'meta' is given twice"),
    "a key twice in what is signed": (envelope(twice(GOOD)), "the key 'meta' is given twice"),
    "a key twice around it": (twice(envelope(GOOD)), "the key 'payload' is given twice"),
    "an envelope that is a policy": (
        json.dumps({**json.loads(GOOD), **json.loads(envelope(GOOD))}),
        "'payload'",
    ),
    "both formats": (json.dumps({**json.loads(GOOD), "hashes": {}}), "'hashes'"),
    "both spellings": (json.dumps({**json.loads(GOOD), "exclude": [".*"]}), "'exclude'"),
}


@pytest.mark.parametrize(("text", "named"), RUNTIME.values(), ids=RUNTIME)
def test_l5_an_ambiguous_runtime_policy_is_refused_at_every_door(
    tmp_path: Path, text: str, named: str
) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        body = {"runtime_policy": b64(text)}
        assert (
            await verifier.admin("POST", "/v2.5/allowlists/old", {"runtime_policy": b64(GOOD)})
        ).code == 201
        evidence = msgspec.to_builtins(msgspec.structs.replace(genuine(), runtime_policy=text))
        for method, path, request in (
            ("POST", "/v2.5/allowlists/new", body),
            ("PUT", "/v2.5/allowlists/old", body),
            ("POST", "/v2.5/agents/agent-1", enrolment(agent, **body)),
            ("POST", "/v2.5/verify/evidence", {"type": "tpm", "data": evidence}),
        ):
            answer = await verifier.admin(method, path, request)
            assert answer.code == 400, path
            assert named in str(answer.body), path

    asyncio.run(scene(tmp_path, act))


def test_l5_an_ambiguous_reference_state_is_refused_at_every_door(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        body = {"mb_policy": '{"pk": [], "pk": []}'}
        assert (await verifier.admin("POST", "/v2.5/mbpolicies/old", {"mb_policy": "{}"})).code == 201
        evidence = {**msgspec.to_builtins(genuine()), **body}
        for method, path, request in (
            ("POST", "/v2.5/mbpolicies/new", body),
            ("PUT", "/v2.5/mbpolicies/old", body),
            ("POST", "/v2.5/agents/agent-1", enrolment(agent, **body)),
            ("POST", "/v2.5/verify/evidence", {"type": "tpm", "data": evidence}),
        ):
            answer = await verifier.admin(method, path, request)
            assert answer.code == 400, path
            assert "the key 'pk' is given twice" in str(answer.body), path

    asyncio.run(scene(tmp_path, act))


def test_l5_an_ambiguous_tpm_policy_or_keyring_is_refused_at_every_door(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        policy = {"tpm_policy": '{"5": "00", "5": "11"}'}
        keys = {"ima_sign_verification_keys": '{"pubkeys": [], "keyids": [], "keyids": [1]}'}
        evidence = {**msgspec.to_builtins(genuine()), **policy}
        for path, request in (
            ("/v2.5/allowlists/new", {"runtime_policy": b64(GOOD), **policy}),
            ("/v2.5/agents/agent-1", enrolment(agent, **policy)),
            ("/v2.5/agents/agent-1", enrolment(agent, **keys)),
            ("/v2.5/verify/evidence", {"type": "tpm", "data": evidence}),
        ):
            answer = await verifier.admin("POST", path, request)
            assert answer.code == 400, path
            assert "is given twice" in str(answer.body), path

    asyncio.run(scene(tmp_path, act))


def test_l6_a_policy_with_too_much_of_one_thing_is_refused_and_it_is_named(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        document = json.loads(GOOD)
        document["digests"]["/bin/a"] = [f"{number:064x}" for number in range(MAX_DIGESTS_PER_NAME + 1)]
        body = {"runtime_policy": b64(json.dumps(document))}
        for path, request in (
            ("/v2.5/allowlists/new", body),
            ("/v2.5/agents/agent-1", enrolment(agent, **body)),
        ):
            answer = await verifier.admin("POST", path, request)
            assert answer.code == 400, path
            assert "digests['/bin/a']: 10001 digests, at most 10000" in answer.status, path

    asyncio.run(scene(tmp_path, act))


async def scene(directory: Path, act: Act, **environ: str) -> None:
    async with (
        AttestingAgent("agent-1", verifier_authority()) as agent,
        running_verifier(directory, environ) as verifier,
    ):
        await act(verifier, agent)
