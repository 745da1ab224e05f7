"""A verifier process that is killed when its verdict is written and the revocation is not delivered."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from keylime.http.server import Response
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.running_verifier import (
    FAST,
    RunningVerifier,
    eventually,
    install_certificates,
    query_database,
    verifier_authority,
    verifier_config,
)
from tests.fakes.tls_material import client_context, server_context
from tests.fakes.webhook_receiver import WebhookReceiver

PROGRAM = Path(sys.executable).parent / "keylime_verifier"
STATES = "SELECT channel, target, state FROM deliveries ORDER BY channel, target"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def verifier_process(
    work_dir: Path, environ: Mapping[str, str]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, RunningVerifier]]:
    """The real program with its files in `work_dir`; killed at the end."""
    install_certificates(work_dir)
    options = {**FAST, **environ, "KEYLIME_DIR": str(work_dir), "KEYLIME_VERIFIER_PORT": str(free_port())}
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        env={"PATH": os.environ["PATH"], **options},
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    administrators = client_context(verifier_authority(), verifier_authority().issue("operator"))
    try:
        async with aiohttp.ClientSession() as session:
            port = int(options["KEYLIME_VERIFIER_PORT"])
            verifier = RunningVerifier(port, verifier_config(work_dir, environ), session, administrators)

            async def answers() -> bool:
                try:
                    return (await verifier.admin("GET", "/v2.5/agents/")).code == 200
                except aiohttp.ClientError:
                    assert process.returncode is None, "it has ended by itself"
                    return False

            await eventually(answers)
            yield process, verifier
    finally:
        await kill(process)


async def kill(process: asyncio.subprocess.Process) -> None:
    """SIGKILL for the program and all its workers, as when a machine loses power."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL


def test_v5_a_killed_verifier_delivers_after_its_start_what_it_had_decided(tmp_path: Path) -> None:
    """No receiver takes the message before SIGKILL: one is gone, one refuses, one never answers."""

    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as failed,
            AttestingAgent("agent-2", verifier_authority()) as other,
            WebhookReceiver(server_context(verifier_authority())) as receiver,
        ):
            environ = {
                "KEYLIME_VERIFIER_REVOCATIONS_ENABLED_REVOCATION_NOTIFICATIONS": "['agent', 'webhook']",
                "KEYLIME_VERIFIER_REVOCATIONS_WEBHOOK_URL": receiver.url,
                "KEYLIME_VERIFIER_MAX_RETRIES": "100000",  # of agent-2, which is away for a while
            }
            async with verifier_process(tmp_path, environ) as (process, verifier):
                for agent in (failed, other):
                    await verifier.add(agent)
                    await verifier.until_passing(agent)
                receiver.gate = asyncio.Event()
                failed.answer_revocation = Response(503, status="not now")
                await other.stop()
                failed.tamper()
                await eventually(lambda: query_database(tmp_path, STATES))
                await kill(process)
            webhook = f"https://127.0.0.1:{receiver.port}"
            targets = [("agent", "agent-1"), ("agent", "agent-2"), ("webhook", webhook)]
            assert {state for _, _, state in query_database(tmp_path, STATES)} == {"pending"}
            assert failed.revocations == other.revocations == []

            receiver.gate.set()
            receiver.received.clear()
            failed.answer_revocation = None
            other.start()
            async with verifier_process(tmp_path, environ) as (_, verifier):
                delivered = [(*target, "delivered") for target in targets]
                await eventually(lambda: query_database(tmp_path, STATES) == delivered)
                (signed,) = set(failed.revocations)
                assert set(other.revocations) == set(receiver.received) == {signed}
                assert json.loads(signed.msg)["agent_id"] == "agent-1"
                assert (await verifier.status(failed))["operational_state"] == 9
                await verifier.until_passing(other)

    asyncio.run(play())
