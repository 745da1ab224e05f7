"""A verifier process that is killed when its verdict is written and the revocation is not delivered."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from keylime.http.server import Response
from keylime.revocation.channel import RevocationSubscriber
from keylime.revocation.publication import endpoint
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.client_session import client_session
from tests.fakes.eventual import eventually
from tests.fakes.forked_programs import ForkedProcess, Order, start
from tests.fakes.running_verifier import (
    FAST,
    TOLD,
    RunningVerifier,
    install_certificates,
    query_database,
    verifier_authority,
    verifier_config,
)
from tests.fakes.tls_material import client_context, server_context
from tests.fakes.webhook_receiver import WebhookReceiver

STATES = "SELECT channel, target, state FROM deliveries ORDER BY channel, target"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def verifier_process(
    work_dir: Path, environ: Mapping[str, str]
) -> AsyncIterator[tuple[ForkedProcess, RunningVerifier]]:
    """The real program with its files in `work_dir`; killed at the end."""
    install_certificates(work_dir)
    options = {**FAST, **environ, "KEYLIME_DIR": str(work_dir), "KEYLIME_VERIFIER_PORT": str(free_port())}
    order = Order("keylime_verifier", (), {"PATH": os.environ["PATH"], **options}, is_leader=True)
    process = start(order)
    administrators = client_context(verifier_authority(), verifier_authority().issue("operator"))
    try:
        async with client_session() as session:
            port = int(options["KEYLIME_VERIFIER_PORT"])
            verifier = RunningVerifier(port, verifier_config(work_dir, environ), session, administrators)

            async def answers() -> bool:
                try:
                    return (await verifier.admin("GET", "/v2.5/agents/")).code == 200
                except aiohttp.ClientError:
                    assert process.poll() is None, "it has ended by itself"
                    return False

            await eventually(answers)
            yield process, verifier
    finally:
        await kill(process)


async def kill(process: ForkedProcess) -> None:
    """SIGKILL for the program and all its workers, as when a machine loses power."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        assert await asyncio.to_thread(process.wait, 100) == -signal.SIGKILL


def test_a_subscriber_gets_what_was_published_before_all_workers_were_killed(tmp_path: Path) -> None:
    zmq_port = free_port()

    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as failed:
            environ = {
                "KEYLIME_VERIFIER_REVOCATIONS_ENABLED_REVOCATION_NOTIFICATIONS": "['zeromq']",
                "KEYLIME_VERIFIER_REVOCATIONS_ZMQ_PORT": str(zmq_port),
                "KEYLIME_VERIFIER_NUM_WORKERS": "2",
            }
            async with verifier_process(tmp_path, environ) as (process, verifier):
                await verifier.add(failed)
                await verifier.until_passing(failed)
                failed.tamper()
                published = "SELECT state FROM deliveries"
                await eventually(lambda: query_database(tmp_path, published) == [("delivered",)])
                await kill(process)
            async with verifier_process(tmp_path, environ):
                subscriber = RevocationSubscriber([endpoint("127.0.0.1", zmq_port)])
                try:
                    async with asyncio.timeout(60):
                        assert json.loads((await anext(subscriber)).msg)["agent_id"] == "agent-1"
                finally:
                    subscriber.close()

    asyncio.run(play())


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
            assert {state for _, _, state in query_database(tmp_path, STATES)} == {"pending"}
            assert failed.revocations == other.revocations == []

            receiver.gate.set()
            receiver.received.clear()
            failed.answer_revocation = None
            other.start()
            async with verifier_process(tmp_path, environ) as (_, verifier):
                delivered = [("webhook", webhook, "delivered")]
                # Each target is told by itself, and none waits for the others.
                told = [("agent-1",), ("agent-2",)]
                await eventually(lambda: query_database(tmp_path, TOLD) == told)
                await eventually(lambda: query_database(tmp_path, STATES) == delivered)
                (signed,) = set(failed.revocations)
                assert set(other.revocations) == set(receiver.received) == {signed}
                assert json.loads(signed.msg)["agent_id"] == "agent-1"
                assert (await verifier.status(failed))["operational_state"] == 9
                await verifier.until_passing(other)

    asyncio.run(play())
