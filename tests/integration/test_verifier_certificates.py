"""The verifier's own certificate ends: that is its own defect, no agent's, and over when it is mended."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keylime.messages.verifier import OperationalState
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.eventual import eventually
from tests.fakes.loopback import served_by
from tests.fakes.running_verifier import RunningVerifier, running_verifier, verifier_authority
from tests.fakes.tls_material import Issued, client_context

AGENT = "d111ec46-34d8-41af-ad56-d560bc97b2e8"


def install(work_dir: Path, issued: Issued) -> None:
    """The client certificate from now on."""
    directory = work_dir / "cv_ca"
    key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "client-private.pem").write_bytes(key)
    (directory / "client-cert.crt").write_text(issued.pem)


@asynccontextmanager
async def watching(work_dir: Path) -> AsyncIterator[tuple[RunningVerifier, AttestingAgent]]:
    """A verifier that attests an agent, and tells other agents of failures."""
    environ = {"KEYLIME_VERIFIER_REVOCATIONS_ENABLED_REVOCATION_NOTIFICATIONS": '["agent"]'}
    async with (
        AttestingAgent(AGENT, verifier_authority()) as agent,
        running_verifier(work_dir, environ) as running,
    ):
        await running.add(agent)
        await running.until_passing(agent)
        yield running, agent


async def readiness(running: RunningVerifier) -> tuple[int, dict[str, str], dict[str, str]]:
    """What /readyz says: status, problems, remarks."""
    nobody = client_context(verifier_authority())
    answer = await running.call("GET", "/readyz", nobody)
    return answer.code, answer.results["problems"], answer.results.get("remarks", {})


async def problems_of(running: RunningVerifier) -> dict[str, str]:
    """Why it is not ready; empty when it is."""
    return (await readiness(running))[1]


async def is_ready(running: RunningVerifier) -> bool:
    """Whether it is; answers are kept for a second."""
    return (await readiness(running))[0] == 200


async def look(running: RunningVerifier) -> None:
    """The keeper's next look at the files, now."""
    assert running.verifier is not None
    await running.verifier.keeper.look()


@pytest.mark.parametrize("days", [(-30, -3), (3, 30)], ids=["ended", "not yet valid"])
def test_an_own_certificate_that_is_not_valid_fails_no_agent_and_alarms_nobody(
    tmp_path: Path, days: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with watching(tmp_path) as (running, agent):
            install(tmp_path, verifier_authority().issue("client", days=days))
            await look(running)
            tries = len(agent.questions)
            before = (await running.status(agent))["attestation_count"]
            # Many more rounds than max_retries: silence would long have been given up.
            await eventually(lambda: agent_was_tried(running, 20), limit_s=100)
            status = await running.status(agent)
            assert status["operational_state"] == OperationalState.GET_QUOTE
            assert len(agent.questions) <= tries + 1
            assert running.rows("SELECT count(*) FROM revocations") == [(0,)]
            problems = await eventually(lambda: problems_of(running))
            assert problems["certificates"].startswith("client certificate client-cert.crt ")
            install(tmp_path, verifier_authority().issue("client"))
            await look(running)
            healed = await running.until(agent, lambda now: now["attestation_count"] > before + 2)
            assert healed["operational_state"] == OperationalState.GET_QUOTE
            await eventually(lambda: is_ready(running))

    asyncio.run(scenario())
    loud = [record.getMessage() for record in caplog.records if "our own defect" in record.getMessage()]
    assert len(loud) == 1  # not once for each agent and round
    assert "client-cert.crt" in loud[0]


def agent_was_tried(running: RunningVerifier, rounds: int) -> bool:
    """Whether so many rounds have ended in a defect of our own."""
    assert running.verifier is not None
    return running.verifier.own_failures >= rounds


def test_a_machine_that_only_says_that_our_certificate_has_ended_is_missed(tmp_path: Path) -> None:
    """Its word against our dates: else whoever has something to hide would be silent without an alarm."""

    async def scenario() -> None:
        async with watching(tmp_path) as (running, agent):
            await agent.stop()
            async with served_by(refuse, port=agent.port):
                await running.until_state(agent, OperationalState.FAILED)

    asyncio.run(scenario())


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A TLS alert (RFC 8446, 6): fatal, certificate_expired."""
    await reader.read(1)
    writer.write(bytes([21, 3, 3, 0, 2, 2, 45]))
    await writer.drain()
    writer.close()


def test_what_ends_soon_is_in_the_details_of_a_verifier_that_is_ready(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watching(tmp_path) as (running, _agent):
            assert await readiness(running) == (200, {}, {})
            install(tmp_path, verifier_authority().issue("client", days=(-30, 5)))
            await look(running)
            code, problems, remarks = await readiness(running)
            assert (code, problems) == (200, {})  # nothing is wrong yet
            assert remarks["certificates"].startswith("client certificate client-cert.crt ends on ")

    asyncio.run(scenario())
