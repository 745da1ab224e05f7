"""The verifier at its work: genuine agents over mutual TLS, SQLite, every state and what leads there."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from keylime.http.server import Response
from keylime.revocation.message import is_cleared
from tests.fakes.attesting_agent import AttestingAgent, file_digest, payload_key, policy_of
from tests.fakes.eventual import eventually
from tests.fakes.running_verifier import (
    V_SHARE,
    RunningVerifier,
    enrolment,
    query_database,
    running_verifier,
    verifier_authority,
)

START, GET_QUOTE, PROVIDE_V, FAILED, INVALID_QUOTE, TENANT_FAILED = 1, 3, 5, 7, 9, 10
IMA_IS_MILD = json.dumps([{"event_id": r"ima\..*", "severity_label": "warning"}])


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


def test_a_genuine_agent_passes_again_and_again(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        first = await verifier.until_passing(agent)
        later = await verifier.until_passing(agent, rounds=3)
        assert first["operational_state"] in (GET_QUOTE, PROVIDE_V)
        assert later["attestation_count"] >= first["attestation_count"] + 3
        assert (later["hash_alg"], later["enc_alg"], later["sign_alg"]) == ("sha256", "ecc256", "ecdsa")
        assert later["last_successful_attestation"] == later["last_received_quote"] > 0
        assert (later["has_runtime_policy"], later["has_mb_refstate"], later["v"]) == (1, 0, None)

    scene(tmp_path, act)


def test_v_arrives_once_and_only_after_the_first_pass(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent, rounds=4)
        assert agent.shares == [V_SHARE]
        assert agent.paths[:3] == [
            "GET /v2.5/quotes/integrity",
            "POST /v2.5/keys/vkey",
            "GET /v2.5/quotes/integrity",
        ]

    scene(tmp_path, act)


def test_v_goes_to_a_new_payload_key_after_it_was_proven(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await eventually(lambda: agent.shares)
        await agent.stop()  # the agent restarts, with another key
        agent.payload_key = payload_key(1)
        await verifier.until(agent, lambda status: status["unreachable_since"] is not None)
        agent.start()
        await eventually(lambda: len(agent.shares) == 2)
        assert agent.shares == [V_SHARE, V_SHARE]
        await verifier.until_passing(agent)

    scene(tmp_path, act, KEYLIME_VERIFIER_MAX_RETRIES="1000")


def test_an_agent_without_v_gets_none(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent, v=None)
        await verifier.until_passing(agent, rounds=2)
        assert agent.shares == []

    scene(tmp_path, act)


def test_the_first_round_asks_for_the_key_and_the_whole_list_and_later_ones_for_what_is_new(
    tmp_path: Path,
) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        agent.files["/usr/bin/tool"] = b"a tool"
        await verifier.add(agent)
        await verifier.until_passing(agent, rounds=2)
        agent.machine.measure("/usr/bin/tool", b"a tool")
        await eventually(lambda: agent.questions[-1].entry == 2)
        asked = [(question.partial, question.entry) for question in agent.questions]
        assert asked[0] == ("0", 0)
        assert set(asked[1:]) == {("1", 1), ("1", 2)}
        assert {question.mask for question in agent.questions} == {1 << 10}

    scene(tmp_path, act)


def test_a_file_that_the_policy_does_not_list_ends_the_trust_and_is_explained(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent)
        agent.tamper("/usr/bin/backdoor")
        status = await verifier.until_failed(agent)
        assert status["attestation_status"] == "FAIL"
        assert status["last_event_id"] == "ima.validation.ima-ng.not_in_allowlist"
        assert status["severity_level"] == 6
        (finding,) = status["last_findings"]
        assert finding["path"] == "/usr/bin/backdoor"
        assert finding["observed"] == file_digest(b"evil").hex()
        assert finding["severity"] == "emergency"
        asked = len(agent.questions)
        answer = await verifier.admin("PUT", "/v2.5/agents/agent-1/reactivate")
        assert answer.code == 200
        await eventually(lambda: len(agent.questions) > asked)
        assert len(agent.questions) == asked + 1, "nothing was asked before the operator acted"
        await verifier.until_state(agent, INVALID_QUOTE)

    scene(tmp_path, act)


def test_a_mild_failure_heals_when_the_policy_is_met_again(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent)
        agent.tamper()
        status = await verifier.until_failed(agent)
        assert (status["attestation_status"], status["severity_level"]) == ("FAIL", 2)
        asked = len(agent.questions)
        await eventually(lambda: len(agent.questions) > asked + 2)
        assert (await verifier.status(agent))["attestation_status"] == "FAIL"
        agent.reboot()
        status = await verifier.until_passing(agent)
        assert (status["severity_level"], status["last_findings"]) == (None, [])
        await eventually(lambda: agent.revocations)
        warnings = [one for one in agent.revocations if not is_cleared(one.msg)]
        assert len(warnings) == 1, "the same failure is told once"

    scene(tmp_path, act, KEYLIME_VERIFIER_SEVERITY_POLICY=IMA_IS_MILD)


def test_a_reboot_is_recognised_and_the_whole_list_is_asked_for(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        agent.files["/usr/bin/tool"] = b"a tool"
        agent.machine.measure("/usr/bin/tool", b"a tool")
        await verifier.add(agent)
        await verifier.until_passing(agent, rounds=2)
        asked = len(agent.questions)
        agent.reboot()
        status = await verifier.until(agent, lambda status: status["reboots"] == 1)
        assert status["attestation_status"] == "PASS"
        await verifier.until_passing(agent, rounds=2)
        assert 0 in [question.entry for question in agent.questions[asked:]]
        assert agent.questions[-1].entry == 2, "from there it goes on incrementally"
        assert agent.revocations == []

    scene(tmp_path, act)


def test_after_a_reboot_into_something_else_the_agent_fails(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent)
        agent.reboot()
        agent.tamper()
        await verifier.until_state(agent, INVALID_QUOTE)

    scene(tmp_path, act)


def test_a_restarted_verifier_goes_on_from_the_stored_offset(tmp_path: Path) -> None:
    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            async with running_verifier(tmp_path) as verifier:
                await verifier.add(agent)
                before = await verifier.until_passing(agent, rounds=3)
            asked = len(agent.questions)
            async with running_verifier(tmp_path) as verifier:
                status = await verifier.status(agent)
                assert status["attestation_count"] >= before["attestation_count"], (
                    "the last batch was flushed"
                )
                await verifier.until_passing(agent)
            first = agent.questions[asked]
            assert (first.entry, first.partial) == (1, "0")
            assert agent.shares == [V_SHARE], "V is not sent twice to one key"

    asyncio.run(play())


def test_a_failed_agent_is_not_polled_by_a_restarted_verifier(tmp_path: Path) -> None:
    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            async with running_verifier(tmp_path) as verifier:
                await verifier.add(agent)
                agent.tamper()
                await verifier.until_state(agent, INVALID_QUOTE)
            asked = len(agent.questions)
            async with (
                running_verifier(tmp_path) as verifier,
                AttestingAgent("agent-2", verifier_authority()) as other,
            ):
                await verifier.add(other)
                await verifier.until_passing(other, rounds=3)
                assert (await verifier.status(agent))["attestation_status"] == "FAIL"
                assert len(agent.questions) == asked

    asyncio.run(play())


def test_an_agent_of_another_verifier_is_left_to_it(tmp_path: Path) -> None:
    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            async with running_verifier(tmp_path) as verifier:
                await verifier.add(agent)
                await verifier.until_passing(agent)
            asked = len(agent.questions)
            async with (
                running_verifier(tmp_path, {"KEYLIME_VERIFIER_UUID": "second"}) as verifier,
                AttestingAgent("agent-2", verifier_authority()) as own,
            ):
                await verifier.add(own)
                await verifier.until_passing(own, rounds=3)
                assert len(agent.questions) == asked

    asyncio.run(play())


def test_an_agent_with_an_empty_policy_is_attested_without_a_list(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent, runtime_policy="")
        agent.tamper()
        status = await verifier.until_passing(agent, rounds=2)
        assert status["has_runtime_policy"] == 0
        assert agent.questions[0].mask == 0

    scene(tmp_path, act)


def test_a_pcr_of_the_tpm_policy_is_compared(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent, tpm_policy=json.dumps({"15": ["00" * 32], "mask": "0x8000"}))
        await verifier.until_passing(agent)
        await verifier.admin("DELETE", "/v2.5/agents/agent-1")
        await verifier.add(agent, tpm_policy=json.dumps({"15": ["11" * 32], "mask": "0x8000"}))
        status = await verifier.until_state(agent, INVALID_QUOTE)
        assert status["last_event_id"] == "pcr_validation.invalid_pcr_15"

    scene(tmp_path, act)


def test_a_version_is_negotiated_with_an_agent_that_speaks_another(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent, supported_version="2.6")
        await verifier.until_passing(agent, rounds=2)
        assert agent.paths[:3] == [
            "GET /v2.6/quotes/integrity",
            "GET /version",
            "GET /v2.5/quotes/integrity",
        ]
        assert agent.paths.count("GET /version") == 1, "the version found is kept"
        (row,) = verifier.rows("SELECT supported_version FROM agents")
        assert row == ("2.5",)

    scene(tmp_path, act)


def test_an_agent_without_a_common_version_fails(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        agent.answer_version = Response(
            results={"supported_version": "1.0", "supported_versions": ["1.0", "3.0", "\n9.9"]}
        )
        await verifier.add(agent, supported_version="2.6")
        status = await verifier.until_state(agent, FAILED)
        assert status["last_event_id"] == "internal.verifier.version_not_supported"

    scene(tmp_path, act)


def test_many_agents_share_a_named_policy_that_survives_them(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        async with AttestingAgent("agent-2", verifier_authority()) as second:
            await verifier.add(agent, runtime_policy_name="fleet")
            await verifier.add(second, runtime_policy="", runtime_policy_name="fleet")
            await verifier.until_passing(agent)
            await verifier.until_passing(second)
            assert len(verifier.rows("SELECT * FROM policy_texts")) == 1
            for name in ("agent-1", "agent-2"):
                assert (await verifier.admin("DELETE", f"/v2.5/agents/{name}")).code == 200
            assert verifier.rows("SELECT name FROM policies") == [("fleet",)]

    scene(tmp_path, act)


def test_a_policy_that_came_with_one_agent_goes_with_it_unless_others_use_it(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        async with AttestingAgent("agent-2", verifier_authority()) as second:
            await verifier.add(agent)
            await verifier.add(second, runtime_policy="", runtime_policy_name="agent-1")
            await verifier.admin("DELETE", "/v2.5/agents/agent-1")
            await verifier.until_passing(second, rounds=2)
            assert verifier.rows("SELECT name FROM policies") == [("agent-1",)]
            await verifier.admin("DELETE", "/v2.5/agents/agent-2")
            await verifier.add(second)
            await verifier.admin("DELETE", "/v2.5/agents/agent-2")
            assert verifier.rows("SELECT name FROM policies") == [("agent-1",)]

    scene(tmp_path, act)


def test_stop_ends_the_polling_and_reactivate_begins_it_again(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent, rounds=2)
        before = await verifier.status(agent)
        answer = await verifier.admin("PUT", "/v2.5/agents/agent-1/stop")
        assert answer.code == 200
        status = await verifier.status(agent)
        assert (status["operational_state"], status["attestation_status"]) == (TENANT_FAILED, "FAIL")
        assert status["attestation_count"] >= before["attestation_count"]
        asked = len(agent.questions)
        agent.gate = asyncio.Event()
        assert (await verifier.admin("PUT", "/v2.5/agents/agent-1/reactivate")).code == 200
        await eventually(lambda: agent.held)
        status = await verifier.status(agent)
        assert status["attestation_status"] == "PENDING", "not before the next pass (S10)"
        assert (agent.questions[asked].entry, agent.questions[asked].partial) == (0, "0")
        agent.gate.set()
        await verifier.until_passing(agent, rounds=2)

    scene(tmp_path, act)


def test_an_agent_that_was_deleted_can_be_added_again(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        for _ in range(3):
            await verifier.add(agent)
            await verifier.until_passing(agent)
            assert (await verifier.admin("DELETE", "/v2.5/agents/agent-1")).code == 200
            assert (await verifier.admin("GET", "/v2.5/agents/agent-1")).code == 404
        assert len(agent.shares) == 3
        assert verifier.rows("SELECT * FROM agents") == []
        assert verifier.rows("SELECT * FROM policies") == []

    scene(tmp_path, act)


@pytest.mark.parametrize("act_name", ["stop", "delete"])
def test_an_operators_act_wins_over_a_request_in_flight(tmp_path: Path, act_name: str) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent)
        agent.gate, agent.held = asyncio.Event(), 0
        await eventually(lambda: agent.held)
        if act_name == "delete":
            assert (await verifier.admin("DELETE", "/v2.5/agents/agent-1")).code == 200
        else:
            assert (await verifier.admin("PUT", "/v2.5/agents/agent-1/stop")).code == 200
        agent.gate.set()
        async with AttestingAgent("agent-2", verifier_authority()) as witness:
            await verifier.add(witness)
            await verifier.until_passing(witness, rounds=3)
        rows = verifier.rows("SELECT operational_state FROM agents WHERE agent_id = 'agent-1'")
        assert rows == ([] if act_name == "delete" else [(TENANT_FAILED,)])

    scene(tmp_path, act)


def test_reactivating_twice_leaves_one_poller(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent)
        for _ in range(5):
            await verifier.admin("PUT", "/v2.5/agents/agent-1/reactivate")
        await verifier.until_passing(agent, rounds=2)
        agent.gate, agent.held = asyncio.Event(), 0
        await eventually(lambda: agent.held)
        async with AttestingAgent("agent-2", verifier_authority()) as witness:
            await verifier.add(witness)
            await verifier.until_passing(witness, rounds=5)
        assert agent.held == 1
        agent.gate.set()

    scene(tmp_path, act)


def test_a_list_that_is_longer_than_the_quote_is_caught_up_with(tmp_path: Path) -> None:
    """The agent reads its list a moment after the quote; the new lines wait for the next round."""

    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        agent.files["/usr/bin/tool"] = b"a tool"
        await verifier.add(agent, runtime_policy=_encoded(agent))

        def answer(results: dict[str, object]) -> Response:
            agent.answer_quote = None
            agent.machine.measure("/usr/bin/tool", b"a tool")
            line = agent.machine.lines[-1].decode()
            results["ima_measurement_list"] = f"{results['ima_measurement_list']}{line}\n"
            return Response(results=results)

        await verifier.until_passing(agent)
        agent.answer_quote = answer
        await eventually(lambda: agent.questions[-1].entry == 2)
        assert (await verifier.status(agent))["attestation_status"] == "PASS"

    scene(tmp_path, act)


def _encoded(agent: AttestingAgent) -> str:
    return base64.b64encode(policy_of(agent.files).encode()).decode()


def test_a_checkpoint_that_cannot_be_read_costs_a_full_appraisal_and_no_trust(tmp_path: Path) -> None:
    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            async with running_verifier(tmp_path) as verifier:
                await verifier.add(agent)
                await verifier.until_passing(agent, rounds=2)
            query_database(tmp_path, "UPDATE agents SET checkpoint = '{\"boot\": 7}'")
            asked = len(agent.questions)
            agent.gate = asyncio.Event()
            async with running_verifier(tmp_path) as verifier:
                assert (await verifier.status(agent))["attestation_status"] == "PENDING"
                agent.gate.set()
                await verifier.until_passing(agent)
            assert agent.questions[asked].entry == 0

    asyncio.run(play())


def test_the_body_that_adds_an_agent_is_stored_as_it_came(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        body = enrolment(agent, metadata='{"cert_serial": 7}', verifier_ip="192.0.2.7", verifier_port="8882")
        assert (await verifier.admin("POST", "/v2.5/agents/agent-1", body)).code == 200
        status = await verifier.status(agent)
        assert status["meta_data"] == '{"cert_serial": 7}'
        assert (status["verifier_ip"], status["verifier_port"]) == ("192.0.2.7", 8882)
        assert status["accept_tpm_signing_algs"] == ["ecdsa", "rsassa"]

    scene(tmp_path, act)
