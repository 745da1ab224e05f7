"""Tokens where there are none to guess, and sessions at a verifier that only polls: nothing to be proven.

What those do that attest by themselves is in `test_push_attacks.py`.

Ids are those of the attack catalogue (Network).
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.running_verifier import RunningVerifier, running_verifier, verifier_authority
from tests.fakes.tls_material import client_context

GUESSES = (
    "Bearer " + "A" * 40,
    "Bearer " + secrets.token_urlsafe(32),
    "Bearer agent-1",
    "Bearer 00000000-0000-0000-0000-000000000000." + "0" * 64,
    "Bearer " + "A" * 8000,
)
NO_TOKENS = ("Bearer", "Bearer ", "bearer agent-1", "Basic QTpC", "x")
SESSIONS = (
    ("POST", "/v3.0/sessions"),
    ("POST", "/v3/sessions"),
    ("POST", "/v2.6/sessions"),
    ("PATCH", "/v3.0/sessions/1"),
    ("PATCH", "/v2.6/sessions/1"),
    ("POST", "/v3.0/agents/agent-1/attestations"),
    ("PATCH", "/v3.0/agents/agent-1/attestations/0"),
    ("GET", "/v3.0/agents/agent-1/attestations/latest"),
)
PROOF = {
    "data": {
        "type": "session",
        "attributes": {"agent_id": "agent-1", "auth_supported": [{"auth_type": "tpm_pop"}]},
    }
}


def scene(
    directory: Path,
    act: Callable[[RunningVerifier, AttestingAgent], Awaitable[None]],
    mode: str = "both",
) -> None:
    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as agent,
            running_verifier(
                directory, {"KEYLIME_VERIFIER_QUOTE_INTERVAL": "60", "KEYLIME_VERIFIER_MODE": mode}
            ) as verifier,
        ):
            await verifier.add(agent)
            await act(verifier, agent)

    asyncio.run(play())


@pytest.mark.parametrize("mode", ["both", "pull"])
def test_n14_every_token_is_refused_alike_whoever_brings_it_and_whatever_it_asks_for(
    tmp_path: Path, mode: str
) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        stranger = client_context(verifier_authority())
        paths = ("/v2.6/agents/agent-1", "/v2.6/agents/none", "/v2.6/agents", "/v2.6/allowlists")
        for tokens in (GUESSES, NO_TOKENS):
            answers = [
                await verifier.call("GET", path, context, headers={"Authorization": token})
                for path in paths
                for context in (stranger, verifier.administrators)
                for token in tokens
            ]
            assert {answer.code for answer in answers} == {401}
            assert all(answer.body == answers[0].body for answer in answers)

    scene(tmp_path, act, mode)


def test_n14_a_token_changes_nothing(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.until_passing(agent, rounds=0)
        for method, path in (
            ("PUT", "/v2.6/agents/agent-1/stop"),
            ("PUT", "/v2.6/agents/agent-1/reactivate"),
            ("DELETE", "/v2.6/agents/agent-1"),
        ):
            for token in (*GUESSES, *NO_TOKENS):
                headers = {"Authorization": token}
                answer = await verifier.call(method, path, verifier.administrators, headers=headers)
                assert answer.code == 401, (path, token)
        assert (await verifier.status(agent))["attestation_status"] == "PASS"

    scene(tmp_path, act)


def test_n16_there_is_no_session_to_prove_possession_for(tmp_path: Path) -> None:
    """Paths of sessions lead nowhere, for administrators as for strangers, with any proof or none.

    Where agents in push mode begin, all get the same sentence.
    """

    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        answers: dict[tuple[str, str], list[Any]] = {}
        before = verifier.rows("SELECT agent_id, incarnation FROM progress")
        for method, path in SESSIONS:
            for context in (client_context(verifier_authority()), verifier.administrators):
                for body in (None, PROOF):
                    answer = await verifier.call(method, path, context, body)
                    assert answer.code == 404, (method, path)
                    answers.setdefault((method, path), []).append(answer.body)
        for (method, path), bodies in answers.items():
            hints = path.startswith(("/v3.0/sessions", "/v3/sessions"))
            assert all(body == bodies[0] for body in bodies), (method, path)
            assert bodies[0]["results"] == {} if hints else bodies[0] is None, (method, path)
        after = verifier.rows("SELECT agent_id, incarnation FROM progress")
        assert after == before != []
        assert verifier.rows("SELECT session_id FROM push_sessions") == []

    scene(tmp_path, act, mode="pull")
