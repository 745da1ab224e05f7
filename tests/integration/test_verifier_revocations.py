"""Revocations of the verifier: written with the verdict, delivered at least once over every channel."""

import asyncio
import base64
import functools
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from keylime.http.server import Response
from keylime.messages.revocation import SignedRevocation
from keylime.revocation.channel import RevocationSubscriber
from keylime.revocation.publication import endpoint
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.eventual import eventually
from tests.fakes.running_verifier import (
    NOT_TOLD,
    TOLD,
    RunningVerifier,
    query_database,
    revocation_key,
    running_verifier,
    verifier_authority,
)
from tests.fakes.tls_material import self_signed

INVALID_QUOTE, TENANT_FAILED = 9, 10


def scene(
    directory: Path,
    act: Callable[[RunningVerifier, AttestingAgent, AttestingAgent], Awaitable[None]],
    **environ: str,
) -> None:
    """A verifier with two agents that pass."""

    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as first,
            AttestingAgent("agent-2", verifier_authority()) as second,
            running_verifier(directory, environ) as verifier,
        ):
            for agent in (first, second):
                await verifier.add(agent)
                await verifier.until_passing(agent)
            await act(verifier, first, second)

    asyncio.run(play())


def check_signature(signed: SignedRevocation) -> dict[str, object]:
    """The message, after its signature was verified as agents do: RSA-PSS with the longest salt."""
    sha256 = hashes.SHA256()
    revocation_key().public_key().verify(
        base64.b64decode(signed.signature),
        signed.msg.encode(),
        padding.PSS(padding.MGF1(sha256), padding.PSS.MAX_LENGTH),
        sha256,
    )
    message: dict[str, object] = json.loads(signed.msg)
    return message


def test_all_agents_are_told_the_failed_one_included(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, failed: AttestingAgent, other: AttestingAgent) -> None:
        failed.tamper()
        for agent in (failed, other):
            (signed,) = await eventually(functools.partial(getattr, agent, "revocations"))
            message = check_signature(signed)
            assert list(message) == [
                "type",
                "ip",
                "agent_id",
                "port",
                "tpm_policy",
                "meta_data",
                "event_time",
                "event_id",
                "severity_label",
                "context",
                "event_timestamp",
            ]
            assert (message["type"], message["agent_id"]) == ("revocation", "agent-1")
            assert message["event_id"] == "ima.validation.ima-ng.not_in_allowlist"
            assert message["severity_label"] == "emergency"
            assert isinstance(message["context"], str)
        await eventually(lambda: verifier.rows(TOLD) == [("agent-1",), ("agent-2",)])
        assert verifier.rows(NOT_TOLD) == [(0,)]
        await verifier.until_passing(other, rounds=2)

    scene(tmp_path, act)


def test_subscribers_are_told_over_zeromq(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def act(verifier: RunningVerifier, failed: AttestingAgent, other: AttestingAgent) -> None:
        subscriber = RevocationSubscriber([endpoint("127.0.0.1", port)])
        try:
            received = asyncio.ensure_future(anext(subscriber))
            # A subscription takes a moment; a message published before it is lost, so fail until one arrives.
            while not received.done():
                failed.tamper()
                await verifier.until_state(failed, INVALID_QUOTE)
                await asyncio.wait([received], timeout=0.5)
                if not received.done():
                    failed.reboot()
                    await verifier.admin("PUT", "/v2.5/agents/agent-1/reactivate")
                    await verifier.until_passing(failed)
            assert check_signature(received.result())["agent_id"] == "agent-1"
        finally:
            subscriber.close()
        assert failed.revocations == [], "agents were not among the enabled channels"

    scene(
        tmp_path,
        act,
        KEYLIME_VERIFIER_REVOCATIONS_ENABLED_REVOCATION_NOTIFICATIONS="['zeromq']",
        KEYLIME_VERIFIER_REVOCATIONS_ZMQ_PORT=str(port),
    )


def test_without_channels_a_verdict_is_written_all_the_same(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, failed: AttestingAgent, other: AttestingAgent) -> None:
        failed.tamper()
        await verifier.until_state(failed, INVALID_QUOTE)
        await eventually(
            lambda: (
                verifier.rows("SELECT operational_state FROM agents WHERE agent_id = 'agent-1'")
                == [(INVALID_QUOTE,)]
            )
        )
        assert verifier.rows("SELECT * FROM revocations") == []

    scene(tmp_path, act, KEYLIME_VERIFIER_REVOCATIONS_ENABLED_REVOCATION_NOTIFICATIONS="[]")


def test_an_agent_that_is_busy_is_told_later(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, failed: AttestingAgent, other: AttestingAgent) -> None:
        other.answer_revocation = Response(503, status="busy")
        failed.tamper()
        await eventually(lambda: failed.revocations)
        path = "POST /v2.5/notifications/revocation"
        await eventually(lambda: other.paths.count(path) >= 2)
        other.answer_revocation = None
        await eventually(lambda: other.revocations)
        assert len(failed.revocations) == 1

    scene(tmp_path, act)


def test_v5_what_a_crash_left_undelivered_is_delivered_after_the_start(tmp_path: Path) -> None:
    """The state right after a crash between verdict and sending: written, and nothing sent."""

    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            async with running_verifier(tmp_path) as verifier:
                await verifier.add(agent)
                await verifier.until_passing(agent)
            query_database(
                tmp_path,
                "INSERT INTO revocations "
                "VALUES ('r1', 'agent-1', 1700000000, '{\"type\": \"x\"}', 'c2ln', 0, 'default', 0, 0)",
            )
            query_database(
                tmp_path,
                "INSERT INTO deliveries VALUES ('r1', 'agent', 'agent-1', 'pending', 0, NULL, 1700000000)",
            )
            async with running_verifier(tmp_path) as verifier:
                (signed,) = await eventually(lambda: agent.revocations)
                assert signed == SignedRevocation('{"type": "x"}', "c2ln")
                await eventually(
                    lambda: verifier.rows("SELECT state, attempts FROM deliveries") == [("delivered", 1)]
                )
            async with running_verifier(tmp_path) as verifier:
                await verifier.until_passing(agent)
            assert len(agent.revocations) == 1, "delivered is delivered"

    asyncio.run(play())


def test_a_revocation_survives_a_stop_before_it_was_delivered(tmp_path: Path) -> None:
    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as failed,
            AttestingAgent("agent-2", verifier_authority()) as other,
        ):
            async with running_verifier(tmp_path) as verifier:
                for agent in (failed, other):
                    await verifier.add(agent)
                    await verifier.until_passing(agent)
                other.answer_revocation = Response(503, status="busy")
                failed.tamper()
                await eventually(lambda: verifier.rows(TOLD) == [("agent-1",)])
            other.answer_revocation = None
            async with running_verifier(tmp_path):
                await eventually(lambda: other.revocations)
            assert len(failed.revocations) == 1

    asyncio.run(play())


def test_a_delivery_is_given_up_after_its_attempts_and_an_agent_that_is_gone_is_not_waited_for(
    tmp_path: Path,
) -> None:
    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            agent.answer_revocation = Response(400, status="no")
            async with running_verifier(tmp_path) as verifier:
                await verifier.add(agent)
                await verifier.until_passing(agent)
            query_database(
                tmp_path,
                "INSERT INTO revocations VALUES ('r1', 'agent-1', 1700000000, '{}', '', 0, 'default', 0, 0)",
            )
            for target, attempts in (("agent-1", 19), ("gone", 0)):
                query_database(
                    tmp_path,
                    "INSERT INTO deliveries VALUES ('r1', 'agent', ?, 'pending', ?, NULL, 1700000000)",
                    target,
                    attempts,
                )
            async with running_verifier(tmp_path) as verifier:
                await eventually(
                    lambda: (
                        verifier.rows("SELECT target, state, last_error FROM deliveries ORDER BY target")
                        == [("agent-1", "failed", "400 no"), ("gone", "gone", "the agent was deleted")]
                    )
                )

    asyncio.run(play())


def test_what_an_agent_would_be_told_is_kept_back_from_who_does_not_hold_its_key(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, failed: AttestingAgent, other: AttestingAgent) -> None:
        async def found(state: str) -> dict[str, Any]:
            """The one delivery to agent-2, when it is in this state, and all that is said of the target."""
            shown = (await verifier.admin("GET", f"/v2.5/revocations?agent=agent-1&state={state}")).results
            rows = [row for row in shown["deliveries"] if row["target"] == "agent-2"]
            targets = [one for one in shown["targets"] if one["target"] == "agent-2"]
            return {"row": rows[0], "target": targets[0]} if rows else {}

        other.show(self_signed("agent-2"))
        failed.tamper()
        first = await eventually(lambda: found("wrong_key"))
        assert first["target"]["wrong_key"] == 1
        assert (first["target"]["pending"], first["target"]["delivered"]) == (0, 0)
        assert first["target"]["oldest_pending"] == first["row"]["created_at"]
        assert "another key" in first["row"]["last_error"]
        assert first["row"]["last_error"].endswith("keylime_tenant -c update -u agent-2")
        await eventually(lambda: failed.revocations)
        assert other.revocations == []
        body = {"mtls_cert": other.identity.pem}
        assert (await verifier.admin("PUT", "/v2.6/agents/agent-2", body)).code == 200
        told = await eventually(lambda: found("delivered"))
        assert (told["target"]["wrong_key"], told["target"]["delivered"]) == (0, 1)
        about = [json.loads(signed.msg)["agent_id"] for signed in other.revocations]
        assert about.count("agent-1") == 1
        await verifier.until_passing(other)

    scene(tmp_path, act)


def test_a_stopped_or_deleted_agent_causes_no_message(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, first: AttestingAgent, second: AttestingAgent) -> None:
        await verifier.admin("PUT", "/v2.5/agents/agent-1/stop")
        await verifier.admin("DELETE", "/v2.5/agents/agent-1")
        await verifier.until_passing(second, rounds=2)
        assert verifier.rows("SELECT * FROM revocations") == []

    scene(tmp_path, act)


def test_what_waits_for_an_agent_is_dropped_when_it_is_deleted(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, failed: AttestingAgent, other: AttestingAgent) -> None:
        states = "SELECT state FROM deliveries WHERE target = 'agent-2'"
        await other.stop()
        failed.tamper()
        await eventually(lambda: verifier.rows(states))
        assert (await verifier.admin("DELETE", "/v2.5/agents/agent-2")).code == 200
        await eventually(lambda: verifier.rows(TOLD) == [("agent-1",)])
        assert verifier.rows(states) == []
        listed = (await verifier.admin("GET", "/v2.5/revocations")).results
        assert "agent-2" not in {one["target"] for one in listed["targets"] + listed["deliveries"]}

    scene(tmp_path, act)


def test_a_key_that_got_damaged_costs_the_signature_and_not_the_verdict(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, failed: AttestingAgent, other: AttestingAgent) -> None:
        await verifier.change("UPDATE agents SET revocation_key = 'damaged'")
        failed.tamper()
        (signed,) = await eventually(lambda: other.revocations)
        assert signed.signature == ""
        await verifier.until_state(failed, INVALID_QUOTE)

    scene(tmp_path, act)
