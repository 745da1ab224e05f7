"""`PUT /agents/{id}` changes an agent in one step or not at all, and the agent is watched all the time."""

import asyncio
import base64
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from keylime.revocation.channel import RevocationSubscriber
from keylime.revocation.publication import endpoint
from tests.fakes.attesting_agent import AttestingAgent, policy_of
from tests.fakes.eventual import eventually
from tests.fakes.running_verifier import RunningVerifier, enrolment, running_verifier, verifier_authority

AGENT = "/v2.6/agents/agent-1"
ENROLLED = (
    "SELECT ip, tpm_policy, runtime_policy, measured_boot_policy, v, revocation_key, meta_data from agents"
)
POLICIES = "SELECT kind, name, content_hash from policies order by kind, name"


def scene(
    directory: Path, act: Callable[[RunningVerifier, AttestingAgent], Awaitable[None]], **environ: str
) -> None:
    """A verifier with an agent that passes."""

    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as agent,
            running_verifier(directory, environ) as verifier,
        ):
            await verifier.add(agent, metadata='{"cert_serial": 7}')
            await verifier.until_passing(agent)
            await act(verifier, agent)

    asyncio.run(play())


async def told_types(verifier: RunningVerifier, count: int) -> list[str]:
    """The types of the messages about the agent, when there are so many."""

    def look() -> list[str]:
        rows = verifier.rows("SELECT message from revocations order by number")
        return [json.loads(text)["type"] for (text,) in rows] if len(rows) >= count else []

    types: list[str] = await eventually(look)
    return types


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def named(verifier: RunningVerifier, name: str, text: str) -> None:
    answer = await verifier.admin("POST", f"/v2.6/allowlists/{name}", {"runtime_policy": b64(text)})
    assert answer.code == 201, answer


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"runtime_policy_name": "mispelt"}, 404, "Could not find IMA policy with name mispelt!"),
        ({"mb_policy_name": "mispelt"}, 404, "Could not find mb_policy with name mispelt!"),
        ({"runtime_policy": b64("{")}, 400, "Runtime policy is malformatted"),
        ({"tpm_policy": '{"99": ["00"]}'}, 400, "tpm_policy"),
        ({"cloudagent_port": 0, "runtime_policy": None}, 400, "cloudagent_port"),
        ({"mtls_cert": None}, 400, "mTLS certificate"),
        ({"payload": {"v": "***"}}, 400, "v is not base64"),
        ({"tpm_policy": '{"0": ["00"]}', "mb_policy": "{}"}, 400, "PCR 0"),
    ],
)
def test_a_change_that_is_refused_changes_nothing(
    tmp_path: Path, change: dict[str, Any], code: int, reason: str
) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        before = verifier.rows(ENROLLED), verifier.rows(POLICIES)
        answer = await verifier.admin("PUT", AGENT, change)
        assert (answer.code, reason in answer.status) == (code, True), answer
        assert (verifier.rows(ENROLLED), verifier.rows(POLICIES)) == before
        await verifier.until_passing(agent)

    scene(tmp_path, act)


def test_an_agent_that_is_not_there_is_not_changed(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, _agent: AttestingAgent) -> None:
        assert (await verifier.admin("PUT", "/v2.6/agents/nobody", {"mb_policy": None})).code == 404
        assert (await verifier.admin("PUT", AGENT)).code == 400

    scene(tmp_path, act)


def test_what_is_not_named_is_kept(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        (before,) = verifier.rows(ENROLLED)
        own = verifier.rows(POLICIES)
        answer = await verifier.admin("PUT", AGENT, {"tpm_policy": '{"mask": "0x80"}'})
        assert answer.code == 200, answer
        (after,) = verifier.rows(ENROLLED)
        assert after == (before[0], '{"mask": "0x480"}', *before[2:])
        assert verifier.rows(POLICIES) == own
        told = answer.results
        assert (told["before"]["tpm_policy"], told["after"]["tpm_policy"]) == (before[1], after[1])
        changed = {name for name in told["before"] if told["before"][name] != told["after"][name]}
        assert changed == {"tpm_policy"}
        assert "v" not in told["after"]
        await verifier.until_passing(agent, rounds=2)

    scene(tmp_path, act)


def test_an_own_policy_gives_way_to_a_named_one_and_back(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await named(verifier, "fleet", policy_of(agent.files))
        assert (await verifier.admin("PUT", AGENT, {"runtime_policy_name": "fleet"})).code == 200
        assert [name for _, name, _ in verifier.rows(POLICIES)] == ["fleet"]
        await verifier.until_passing(agent)
        answer = await verifier.admin("PUT", AGENT, {"runtime_policy": b64(policy_of(agent.files))})
        assert answer.results["after"]["runtime_policy"] == "agent-1"
        assert [name for _, name, _ in verifier.rows(POLICIES)] == ["agent-1", "fleet"]
        await verifier.until_passing(agent)
        answer = await verifier.admin("PUT", AGENT, {"runtime_policy": None, "mb_policy_name": ""})
        assert (answer.code, answer.results["after"]["runtime_policy"]) == (200, None)
        assert answer.results["after"]["tpm_policy"] == '{"mask": "0x0"}', "IMA's PCR went with the policy"
        assert "nothing judged" in answer.status
        assert [name for _, name, _ in verifier.rows(POLICIES)] == ["agent-1", "fleet"]

    scene(tmp_path, act)


def test_a_foreign_policy_of_the_agents_name_is_not_replaced(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await named(verifier, "fleet", policy_of(agent.files))
        assert (await verifier.admin("PUT", AGENT, {"runtime_policy_name": "fleet"})).code == 200
        await named(verifier, "agent-1", policy_of({}))
        before = verifier.rows(POLICIES)
        answer = await verifier.admin("PUT", AGENT, {"runtime_policy": b64(policy_of(agent.files))})
        assert (answer.code, "A policy with name agent-1 already exists" in answer.status) == (409, True)
        assert verifier.rows(POLICIES) == before
        assert verifier.rows("SELECT runtime_policy from agents") == [("fleet",)]

    scene(tmp_path, act)


def test_a_rejected_agent_is_attested_anew_under_its_new_policy(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        answer = await verifier.admin("PUT", AGENT, {"runtime_policy": b64(policy_of({"/bin/x": b"x"}))})
        assert answer.code == 200, answer
        await verifier.until_state(agent, 9)
        answer = await verifier.admin("PUT", AGENT, {"runtime_policy": b64(policy_of(agent.files))})
        assert answer.code == 200, answer
        assert (await verifier.status(agent))["last_findings"] == []
        await verifier.until_passing(agent)
        status = await verifier.status(agent)
        assert status["meta_data"] == '{"cert_serial": 7}'
        assert await told_types(verifier, 2) == ["revocation", "cleared"]
        assert (await verifier.admin("PUT", f"{AGENT}/reactivate")).code == 200
        await verifier.until_passing(agent)
        assert await told_types(verifier, 2) == ["revocation", "cleared"], "nobody has to be told again"

    scene(tmp_path, act)


def test_others_are_told_that_a_rejected_agent_is_trusted_in_its_next_enrolment(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        answer = await verifier.admin("PUT", AGENT, {"runtime_policy": b64(policy_of({"/bin/x": b"x"}))})
        assert answer.code == 200, answer
        await verifier.until_state(agent, 9)
        assert await told_types(verifier, 1) == ["revocation"]
        assert (await verifier.admin("DELETE", AGENT)).code == 200
        await verifier.add(agent)
        await verifier.until_passing(agent)
        assert await told_types(verifier, 2) == ["revocation", "cleared"]

    scene(tmp_path, act)


def test_who_subscribes_later_hears_no_warning_of_an_agent_that_is_well_or_gone(tmp_path: Path) -> None:
    def port() -> int:
        with socket.create_server(("127.0.0.1", 0)) as free:
            return int(free.getsockname()[1])

    zmq_port = port()

    async def heard(count: int) -> list[str]:
        subscriber = RevocationSubscriber([endpoint("127.0.0.1", zmq_port)])
        try:
            return [json.loads((await anext(subscriber)).msg)["type"] for _ in range(count)]
        finally:
            subscriber.close()

    async def first_is(kind: str) -> bool:
        return await heard(1) == [kind]

    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        for files in ({"/bin/x": b"x"}, agent.files, {"/bin/y": b"y"}):
            body = {"runtime_policy": b64(policy_of(files))}
            assert (await verifier.admin("PUT", AGENT, body)).code == 200
            if files is not agent.files:
                await verifier.until_state(agent, 9)
                assert (await heard(1 if "/bin/x" in files else 2))[-1] == "revocation"
            else:
                await eventually(lambda: first_is("cleared"), limit_s=90)

    scene(
        tmp_path,
        act,
        KEYLIME_VERIFIER_REVOCATIONS_ENABLED_REVOCATION_NOTIFICATIONS="['zeromq']",
        KEYLIME_VERIFIER_REVOCATIONS_ZMQ_IP="127.0.0.1",
        KEYLIME_VERIFIER_REVOCATIONS_ZMQ_PORT=str(zmq_port),
    )


def test_a_new_payload_replaces_all_of_the_old_one(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        whole = enrolment(agent)
        share = base64.b64encode(bytes(range(100, 132))).decode()
        answer = await verifier.admin(
            "PUT", AGENT, {"payload": {"v": share, "metadata": '{"cert_serial": 8}'}}
        )
        assert answer.code == 200, answer
        (row,) = verifier.rows("SELECT v, revocation_key, meta_data, ak_tpm from agents")
        assert row == (share, "", '{"cert_serial": 8}', whole["ak_tpm"])
        await verifier.until_passing(agent)

    scene(tmp_path, act)
