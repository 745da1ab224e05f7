"""Agents that show other certificates, or another key, while they are polled over TLS."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.running_verifier import RunningVerifier, enrolment, running_verifier, verifier_authority
from tests.fakes.tls_material import Issued, WithSerial0, self_signed

FAILED = 7
AGENT = "/v2.6/agents/agent-1"


def scene(directory: Path, act: Callable[[RunningVerifier, AttestingAgent], Awaitable[None]]) -> None:
    """A verifier with an agent that passes."""

    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as agent,
            running_verifier(directory, {"KEYLIME_VERIFIER_SILENCE_INTERVAL": "1"}) as verifier,
        ):
            await verifier.add(agent)
            await verifier.until_passing(agent)
            await act(verifier, agent)

    asyncio.run(play())


@pytest.mark.filterwarnings("error")
def test_an_agent_is_known_by_its_key_whatever_certificate_it_shows(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        key = agent.identity.key
        before = verifier.rows("SELECT mtls_cert FROM agents")
        renewed = self_signed("agent-1", key)
        certificates = [
            renewed,
            self_signed("agent-1", key, days=(-400, -35)),  # ended
            self_signed("agent-1", key, days=(5, 370)),  # of a machine whose clock is ahead
            self_signed("another name", key),
            WithSerial0(renewed.certificate, key),
        ]
        for certificate in certificates:
            agent.show(certificate)
            status = await verifier.until_passing(agent, rounds=3)
            assert status["unreachable_since"] is None
        assert verifier.rows("SELECT mtls_cert FROM agents") == before, "nobody had to do anything"
        assert verifier.rows("SELECT * FROM revocations") == []

    scene(tmp_path, act)


@pytest.mark.parametrize("is_ended", [False, True])
def test_agents_are_added_by_any_certificate_for_their_key(tmp_path: Path, is_ended: bool) -> None:
    """As tenants send it who have an older one from the registrar."""

    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        other = self_signed("agent-1", agent.identity.key, days=(-400, -35) if is_ended else (-1, 30))
        registered = other if is_ended else WithSerial0(other.certificate, other.key)
        assert (await verifier.admin("DELETE", AGENT)).code == 200
        await verifier.add(agent, mtls_cert=registered.pem)
        await verifier.until_passing(agent)

    scene(tmp_path, act)


def test_a_new_key_is_no_pass_until_it_is_taken_up_and_then_one_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        before = agent.identity
        agent.show(self_signed("agent-1"))
        asked = len(agent.questions)
        status = await verifier.until_state(agent, FAILED)
        (finding,) = status["last_findings"]
        assert finding["event_id"] == "internal.verifier.wrong_key"
        assert agent.identity.key_pin.hex()[:16] in finding["explanation"]
        assert "`keylime_tenant -c update -u agent-1`" in finding["hint"]
        assert status["attestation_status"] != "PASS"
        assert len(agent.questions) <= asked + 1, "who shows another key is asked nothing"
        answer = await verifier.admin("PUT", AGENT, {"mtls_cert": agent.identity.pem})
        assert answer.code == 200, answer
        pins = [one.key_pin.hex()[:12] for one in (before, agent.identity)]
        assert f"mtls_key_hash {pins[0]} -> {pins[1]}" in caplog.text
        for when, identity in (("before", before), ("after", agent.identity)):
            told = answer.results[when]
            assert told["mtls_key_hash"] == identity.key_pin.hex()
            assert told["mtls_cert_hash"] == hashlib.sha256(identity.pem.encode()).hexdigest()
        await verifier.until_passing(agent, rounds=2)
        assert (await verifier.status(agent))["last_findings"] == []

    scene(tmp_path, act)


def test_a_machine_that_was_repaired_while_the_verifier_was_down_shows_why_it_is_not_attested(
    tmp_path: Path,
) -> None:
    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            async with running_verifier(tmp_path) as verifier:
                await verifier.add(agent)
                await verifier.until_passing(agent)
            agent.show(self_signed("agent-1"))
            async with running_verifier(tmp_path) as verifier:
                status = await verifier.until_state(agent, FAILED)
                assert status["last_event_id"] == "internal.verifier.wrong_key"
            # Ended meanwhile, but of the right key again.
            repaired = enrolment(agent)["mtls_cert"]
            agent.show(self_signed("agent-1", agent.identity.key, days=(-400, -35)))
            async with running_verifier(tmp_path) as verifier:
                assert (await verifier.admin("PUT", AGENT, {"mtls_cert": repaired})).code == 200
                await verifier.until_passing(agent)

    asyncio.run(play())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [Issued, WithSerial0])
def test_what_is_no_certificate_is_refused_in_words_and_any_certificate_is_taken(
    tmp_path: Path, kind: type[Issued]
) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        made = self_signed("agent-2")
        answer = await verifier.admin(
            "POST", "/v2.5/agents/agent-2", enrolment(agent, mtls_cert=kind(made.certificate, made.key).pem)
        )
        assert answer.code == 200, answer
        answer = await verifier.admin("POST", "/v2.5/agents/agent-3", enrolment(agent, mtls_cert="PEM"))
        assert (answer.code, answer.status[:10]) == (400, "mtls_cert:")

    scene(tmp_path, act)
