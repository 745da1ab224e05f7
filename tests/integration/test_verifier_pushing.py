"""The verifier and machines that attest by themselves, as agents of the field do and as strictly."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from keylime.tpm.keys import SignatureScheme
from tests.fakes.attesting_agent import Machine, attestation_key
from tests.fakes.eventual import eventually
from tests.fakes.field_answers import LogParameters
from tests.fakes.field_push_agent import FieldPushAgent, Refused
from tests.fakes.pushing_machine import PushingMachine
from tests.fakes.running_verifier import RunningVerifier, running_verifier, verifier_authority
from tests.fakes.software_ak import SoftwareAk
from tests.fakes.tls_material import client_context

# Nobody is overdue while a busy machine runs the test; whoever comes again is let in by `hurry`.
PATIENT = {"KEYLIME_VERIFIER_QUOTE_INTERVAL": "3600"}


@asynccontextmanager
async def field_agent(verifier: RunningVerifier, machine: PushingMachine) -> AsyncIterator[FieldPushAgent]:
    """An agent of the field on the same machine."""
    url, tls = f"https://127.0.0.1:{verifier.port}", client_context(verifier_authority())
    async with FieldPushAgent(machine.agent_id, url, tls, machine.machine, limit_s=90.0) as agent:
        yield agent


def scene(
    directory: Path,
    act: Callable[[RunningVerifier, PushingMachine, FieldPushAgent], Awaitable[None]],
    environ: dict[str, str] = PATIENT,
    ak: SoftwareAk | None = None,
) -> None:
    """A verifier, and a machine that it does not know yet."""

    async def play() -> None:
        async with running_verifier(directory, environ) as verifier:
            machine = PushingMachine(verifier, machine=Machine(ak or attestation_key()))
            async with field_agent(verifier, machine) as agent:
                await act(verifier, machine, agent)

    asyncio.run(play())


async def attestations(verifier: RunningVerifier, machine: PushingMachine) -> list[dict[str, Any]]:
    answer = await verifier.admin("GET", f"/v3.0/agents/{machine.agent_id}/attestations")
    assert answer.code == 200
    return [one["attributes"] for one in answer.body["data"]]


@pytest.mark.parametrize(
    "ak",
    [
        SoftwareAk.generate("rsa2048", SignatureScheme.RSASSA),
        SoftwareAk.generate("rsa2048", SignatureScheme.RSAPSS),
        SoftwareAk.generate("ecc256", SignatureScheme.ECDSA),
    ],
    ids=["rsassa", "rsapss", "ecdsa"],
)
def test_a_machine_passes_grows_reboots_and_fails(tmp_path: Path, ak: SoftwareAk) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine, agent: FieldPushAgent) -> None:
        machine.files["/usr/bin/tool"] = b"a tool"
        await machine.add()
        assert (await machine.status())["attestation_status"] == "PENDING"
        assert await agent.attest() >= 0
        status = await machine.until_judged("PASS", 1)
        assert (status["operational_state"], status["ip"], status["port"]) == (3, None, None)
        assert (status["attestation_mode"], status["has_runtime_policy"]) == ("push", 1)
        machine.machine.measure("/usr/bin/tool", b"a tool")
        await machine.hurry()
        negotiation = await agent.negotiate()
        (ima,) = (parameters for kind, parameters in negotiation.asked if kind == "ima_log")
        assert isinstance(ima, LogParameters)
        assert ima.starting_offset == 1, "what is proven is not asked for again"
        await agent.deliver(negotiation)
        await machine.until_judged("PASS", 2)
        machine.boot()
        await machine.hurry()
        await agent.attest()
        status = await machine.until_judged("PASS", 3)
        assert status["reboots"] == 1
        machine.machine.measure("/usr/bin/evil", b"evil")
        await machine.hurry()
        await agent.attest()
        status = await machine.until_judged("FAIL")
        assert status["last_findings"][0]["path"] == "/usr/bin/evil"
        found = await attestations(verifier, machine)
        assert [one["evaluation"] for one in found] == ["pass", "pass", "fail"], (
            "of each boot the first, and failures"
        )
        assert found[-1]["failure_reason"] == "policy_violation"
        assert found[-1]["stage"] == "verification_complete"
        history = (await verifier.admin("GET", f"/v2.6/agents/{machine.agent_id}/history")).results
        kinds = [event["kind"] for event in history["events"]]
        assert {"enrolled", "state", "rebooted"} <= set(kinds)

    scene(tmp_path, act, ak=ak)


def test_a_machine_without_a_policy_is_told_that_nothing_was_asked_for(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine, agent: FieldPushAgent) -> None:
        machine.files = {}
        await machine.add()
        await machine.log_in()
        negotiated = await machine.negotiate()
        assert negotiated.attributes["evidence_requested"] == []
        refused = await machine.submit(negotiated)
        assert (refused.code, refused.error["code"]) == (403, "challenges_expired")
        assert "no policy makes a demand" in refused.error["detail"]
        assert (await machine.status())["attestation_status"] == "PENDING"

    scene(tmp_path, act)


def test_a_reboot_that_the_machine_does_not_tell_of_costs_a_round_and_no_trust(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine, agent: FieldPushAgent) -> None:
        await machine.add()
        await agent.attest()
        await machine.until_judged("PASS", 1)
        before = machine.machine.boottime
        machine.boot()
        machine.machine.boottime = before + 2  # as far as a clock may be set
        await machine.hurry()
        await agent.attest()
        await eventually(lambda: _complete(verifier, 2))
        await machine.hurry()
        await agent.attest()
        status = await machine.until_judged("PASS", 2)
        assert status["reboots"] == 1

    scene(tmp_path, act)


async def _evaluation(verifier: RunningVerifier, machine: PushingMachine) -> str:
    """That of the latest attestation, when it is over."""

    async def look() -> str | None:
        latest = (await attestations(verifier, machine))[-1]
        return latest["evaluation"] if "verification_completed_at" in latest else None

    return str(await eventually(look))


def test_evidence_that_cannot_be_judged_ends_without_a_verdict_and_the_next_is_judged(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine, agent: FieldPushAgent) -> None:
        await machine.add()
        await agent.attest()
        await machine.until_judged("PASS", 1)
        await machine.hurry()
        negotiation = await agent.negotiate()
        await verifier.change("UPDATE policies SET content_hash = 'x' || content_hash")
        await agent.deliver(negotiation)
        assert await _evaluation(verifier, machine) == "pending"
        assert (await machine.status())["attestation_status"] == "PASS"
        await verifier.change("UPDATE policies SET content_hash = substr(content_hash, 2)")
        await machine.hurry()
        await agent.attest()
        await machine.until_judged("PASS", 2)

    scene(tmp_path, act)


def test_what_was_asked_before_a_reactivation_is_answered_and_proves_nothing(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine, agent: FieldPushAgent) -> None:
        await machine.add()
        await agent.log_in()
        negotiation = await agent.negotiate()
        answer = await verifier.admin("PUT", f"/v2.6/agents/{machine.agent_id}/reactivate")
        assert answer.code == 200
        await agent.deliver(negotiation)
        assert await _evaluation(verifier, machine) == "pending"
        assert (await machine.status())["attestation_status"] == "PENDING"
        await machine.hurry()
        await agent.attest()
        await machine.until_judged("PASS", 1)

    scene(tmp_path, act)


async def _complete(verifier: RunningVerifier, count: int) -> bool:
    query = "SELECT count(*) FROM push_attestations WHERE stage = 'verification_complete'"
    ((found,),) = verifier.rows(query)
    return bool(found >= count)


def test_two_verifiers_share_sessions_challenges_and_verdicts(tmp_path: Path) -> None:
    async def play() -> None:
        async with (
            running_verifier(tmp_path, PATIENT) as one,
            running_verifier(tmp_path, PATIENT) as other,
        ):
            machine = PushingMachine(one)
            await machine.add()
            begun = await machine.begin()
            machine.verifier = other
            proven = await machine.prove(begun)
            machine.token = proven.attributes["token"]
            machine.verifier = one
            negotiated = await machine.negotiate()
            machine.verifier = other
            assert (await machine.submit(negotiated)).code == 202
            machine.verifier = one
            await machine.until_judged("PASS", 1)
        async with running_verifier(tmp_path, PATIENT) as later:
            machine.verifier = later
            await machine.hurry()
            assert (await machine.negotiate()).code == 201, "the token outlasts a restart"

    asyncio.run(play())


def test_who_comes_too_early_is_told_when_to_come(tmp_path: Path) -> None:
    async def act(_verifier: RunningVerifier, machine: PushingMachine, agent: FieldPushAgent) -> None:
        await machine.add()
        assert 3500 < await agent.attest() <= 3600
        await machine.until_judged("PASS", 1)
        with pytest.raises(Refused) as refused:
            await agent.negotiate()
        assert refused.value.answer.code == 429
        assert 3500 < int(refused.value.answer.headers["Retry-After"]) <= 3600

    scene(tmp_path, act)


def test_what_an_agent_lacks_is_told_with_a_pointer(tmp_path: Path) -> None:
    async def act(_verifier: RunningVerifier, machine: PushingMachine, agent: FieldPushAgent) -> None:
        await machine.add()
        await agent.log_in()
        offered = agent.supported()
        for changes, wanted in (
            ({"evidence_supported": []}, "Attribute 'evidence' is required."),
            ({"evidence_supported": offered[1:]}, "must contain a certification item of type 'tpm_quote'"),
            ({"evidence_supported": offered[:1]}, "must contain a log item of type 'ima_log'"),
            ({"system_info": {"boot_time": "yesterday"}}, "must be a valid ISO8601 datetime"),
            ({"system_info": {"other": 1}}, "Attribute 'system_info' is required."),
        ):
            with pytest.raises(Refused) as refused:
                await agent.negotiate(**changes)
            assert refused.value.answer.code == 422
            assert wanted in refused.value.answer.details

    scene(tmp_path, act)


def test_a_verifier_that_polls_nobody_says_so_and_takes_what_tenants_of_the_field_add(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine, agent: FieldPushAgent) -> None:
        gone = await verifier.admin("GET", "/version")
        assert (gone.code, gone.body) == (410, {"code": 410, "status": "Gone", "results": {}})
        assert (await verifier.admin("GET", "/v3.0/")).code == 200
        await machine.add(attestation_mode=..., cloudagent_ip=..., cloudagent_port=..., mtls_cert=...)
        await agent.attest()
        await machine.until_judged("PASS", 1)
        assert (await verifier.admin("PUT", f"/v2.6/agents/{machine.agent_id}/stop")).code == 200
        await machine.hurry()
        with pytest.raises(Refused) as refused:
            await agent.negotiate()
        assert refused.value.answer.code == 403

    scene(tmp_path, act, {**PATIENT, "KEYLIME_VERIFIER_MODE": "push"})


def test_a_verifier_that_only_polls_refuses_machines_that_attest_by_themselves(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine, _agent: FieldPushAgent) -> None:
        answer = await verifier.admin("POST", f"/v2.6/agents/{machine.agent_id}", machine.enrolment())
        assert answer.code == 400
        assert "mode = both" in answer.status

    scene(tmp_path, act, {**PATIENT, "KEYLIME_VERIFIER_MODE": "pull"})
