"""Agents of the push model as those in the field are, before our verifier: they read its answers strictly."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from keylime.tpm.keys import SignatureScheme
from tests.fakes.attesting_agent import AttestingAgent, Machine
from tests.fakes.eventual import eventually
from tests.fakes.field_answers import LogParameters
from tests.fakes.field_push_agent import FieldPushAgent, Refused
from tests.fakes.running_verifier import RunningVerifier, running_verifier, verifier_authority
from tests.fakes.software_ak import SoftwareAk
from tests.fakes.tls_material import client_context

KINDS = {"rsa2048": SignatureScheme.RSASSA, "ecc256": SignatureScheme.ECDSA}
FILES = {"boot_aggregate": b"all zero", "/usr/bin/true": b"true"}


@functools.cache
def key(kind: str) -> SoftwareAk:
    """RSA keys take their time."""
    return SoftwareAk.generate(kind, KINDS[kind])


class Stage:
    """A verifier with pushing agents."""

    def __init__(self, verifier: RunningVerifier) -> None:
        self.verifier = verifier

    def agent(self, agent_id: str, kind: str) -> FieldPushAgent:
        machine = Machine(key(kind))
        for name, content in FILES.items():
            machine.measure(name, content)
        url = f"https://127.0.0.1:{self.verifier.port}"
        return FieldPushAgent(agent_id, url, client_context(verifier_authority()), machine, limit_s=60)

    async def add(self, agent: FieldPushAgent, **changes: object) -> None:
        """As `keylime_tenant -c add --push-model` does."""
        polled = AttestingAgent(agent.agent_id, verifier_authority(), ak=agent.ak, files=FILES)
        fields = {"v": ..., "cloudagent_ip": ..., "cloudagent_port": ..., "mtls_cert": ...}
        await self.verifier.add(polled, **{**fields, "attestation_mode": "push", **changes})

    async def status(self, agent: FieldPushAgent) -> dict[str, object]:
        answer = await self.verifier.admin("GET", f"/v2.6/agents/{agent.agent_id}")
        assert answer.code == 200, answer
        found: dict[str, object] = answer.results
        return found

    async def judged(self, agent: FieldPushAgent, status: str, count: int) -> dict[str, object]:
        """How the agent stands after `count` passes, as soon as it stands so."""

        async def look() -> dict[str, object] | None:
            found = await self.status(agent)
            is_so = (found["attestation_status"], found["attestation_count"]) == (status, count)
            return found if is_so else None

        found: dict[str, object] = await eventually(look)
        return found


def scene(directory: Path, act: Callable[[Stage], Awaitable[None]], **options: str) -> None:
    async def play() -> None:
        named = {f"KEYLIME_VERIFIER_{name.upper()}": value for name, value in options.items()}
        async with running_verifier(directory, named) as verifier:
            await act(Stage(verifier))

    asyncio.run(play())


def test_agents_of_the_field_attest_to_this_verifier(tmp_path: Path) -> None:
    async def act(stage: Stage) -> None:
        for kind in KINDS:
            async with stage.agent(f"agent-{kind}", kind) as agent:
                await _lives(stage, agent)

    scene(tmp_path, act)


async def _lives(stage: Stage, agent: FieldPushAgent) -> None:
    with pytest.raises(Refused, match="200") as refused:
        await agent.log_in()
    assert b'"fail"' in refused.value.answer.body
    await stage.add(agent)
    assert (await stage.status(agent))["attestation_status"] == "PENDING"
    assert await agent.attest() == 0
    await stage.judged(agent, "PASS", 1)

    agent.machine.measure("/usr/bin/true", b"true")
    token = agent.token
    negotiation = await agent.negotiate()
    assert _offset(negotiation.asked) == len(FILES), "only what is new is asked for"
    await agent.deliver(negotiation)
    await stage.judged(agent, "PASS", 2)
    assert agent.token == token

    agent.machine.boot()
    for name, content in FILES.items():
        agent.machine.measure(name, content)
    agent.token = None  # the agent is another process
    await agent.attest()
    await stage.judged(agent, "PASS", 3)

    agent.machine.measure("/usr/bin/backdoor", b"evil")
    await agent.attest()
    failed = await stage.judged(agent, "FAIL", 3)
    assert [finding["path"] for finding in failed["last_findings"]] == ["/usr/bin/backdoor"]  # type: ignore[attr-defined]
    await agent.attest()  # it may go on, and the same is asked for again
    negotiation = await agent.negotiate()
    assert _offset(negotiation.asked) <= len(FILES)
    with pytest.raises(Refused, match="400"):
        await agent.deliver(negotiation, [])
    await agent.deliver(negotiation)


def _offset(asked: Sequence[tuple[str, object]]) -> int:
    (parameters,) = (found for kind, found in asked if kind == "ima_log")
    assert isinstance(parameters, LogParameters)
    return parameters.starting_offset or 0


def test_a_token_that_is_over_is_followed_by_another(tmp_path: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.agent("agent", "ecc256") as agent:
            await stage.add(agent)
            await agent.attest()
            token = agent.token

            async def refusal() -> Refused | None:
                try:
                    await agent.negotiate()
                except Refused as refused:
                    return refused
                return None

            refused = await eventually(refusal)
            assert str(refused) == "401 Authentication token expired"
            await agent.attest()
            assert agent.token != token

    scene(tmp_path, act, session_lifetime="1")


def test_who_comes_too_early_is_told_when_to_come(tmp_path: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.agent("agent", "ecc256") as agent:
            await stage.add(agent)
            assert 1 <= await agent.attest() <= 30
            with pytest.raises(Refused, match="429") as refused:
                await agent.negotiate()
            assert 1 <= int(refused.value.answer.headers["Retry-After"]) <= 30
            assert b"premature_attestation" in refused.value.answer.body

    scene(tmp_path, act, quote_interval="30")


def test_the_halves_of_an_attestation_may_meet_different_verifiers(tmp_path: Path) -> None:
    """And a proof that was begun at one: nothing of both is in a process."""

    async def play() -> None:
        async with running_verifier(tmp_path) as first:
            agent = Stage(first).agent("agent", "ecc256")
            await Stage(first).add(agent)
            async with agent:
                await agent.log_in()
                negotiation = await agent.negotiate()
                session = await agent.open_session()
        async with running_verifier(tmp_path) as second, agent:
            agent.url = f"https://127.0.0.1:{second.port}"
            await agent.deliver(negotiation)
            await Stage(second).judged(agent, "PASS", 1)
            await agent.prove(*session)
            await agent.attest()
            await Stage(second).judged(agent, "PASS", 2)

    asyncio.run(play())
