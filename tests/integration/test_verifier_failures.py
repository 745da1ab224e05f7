"""What goes wrong on the way to a verdict: silence, nonsense, broken rows, a database that is away."""

import asyncio
import base64
import json
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from keylime.http.server import Response
from keylime_verifier.agent_client import MAX_ANSWER
from tests.fakes.attesting_agent import AttestingAgent, Raw, policy_of
from tests.fakes.eventual import eventually
from tests.fakes.loopback import served_by
from tests.fakes.running_verifier import (
    RunningVerifier,
    database_of,
    query_database,
    running_verifier,
    verifier_authority,
)
from tests.fakes.tls_material import Issued, self_signed

GET_QUOTE, PROVIDE_V, FAILED, INVALID_QUOTE = 3, 5, 7, 9
PATIENT = {"KEYLIME_VERIFIER_MAX_RETRIES": "100000"}


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


def test_silence_is_shown_and_over_when_the_agent_answers_again(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent)
        await agent.stop()
        status = await verifier.until(agent, lambda status: status["unreachable_since"] is not None)
        assert status["operational_state"] in (GET_QUOTE, PROVIDE_V)
        assert abs(status["unreachable_since"] - time.time()) < 60
        agent.start()
        await verifier.until(agent, lambda status: status["unreachable_since"] is None)
        await verifier.until_state(agent, GET_QUOTE)
        await verifier.until_passing(agent, rounds=2)

    scene(tmp_path, act, **PATIENT)


def test_an_attested_agent_that_stays_silent_is_given_up_and_told_about(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        async with AttestingAgent("agent-2", verifier_authority()) as other:
            await verifier.add(other)
            await verifier.add(agent)
            await verifier.until_passing(agent, rounds=2)  # V is there
            await agent.stop()
            status = await verifier.until_state(agent, FAILED)
            assert status["last_event_id"] == "internal.verifier.not_reachable"
            await eventually(lambda: other.revocations)
            message = json.loads(other.revocations[0].msg)
            assert (message["type"], message["agent_id"]) == ("comm_error", "agent-1")
            await verifier.until_passing(other, rounds=2)

    scene(tmp_path, act)


def test_an_agent_that_never_answered_is_given_up_in_silence(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await agent.stop()
        await verifier.add(agent)
        await verifier.until_state(agent, FAILED)
        assert verifier.rows("SELECT * FROM revocations") == []

    scene(tmp_path, act)


def test_an_agent_that_comes_back_after_it_was_given_up_passes_again_without_a_hand(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent)
        await agent.stop()
        await verifier.until_state(agent, FAILED)
        agent.start()
        status = await verifier.until_state(agent, GET_QUOTE)
        assert (status["severity_level"], status["unreachable_since"]) == (None, None)
        await verifier.until_passing(agent, rounds=2)
        told = [
            json.loads(text) for (text,) in verifier.rows("SELECT message FROM revocations ORDER BY number")
        ]
        assert [one["type"] for one in told] == ["comm_error", "cleared"]
        assert told[0]["event_timestamp"] <= told[1]["event_timestamp"]
        assert "back and good" in caplog.text

    scene(tmp_path, act, KEYLIME_VERIFIER_SILENCE_INTERVAL="1")


def test_a_rejected_agent_stays_rejected(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent, runtime_policy=base64.b64encode(policy_of({}).encode()).decode())
        await verifier.until_state(agent, INVALID_QUOTE)
        await eventually(lambda: verifier.rows("SELECT is_polled FROM agents") == [(0,)])

    scene(tmp_path, act, KEYLIME_VERIFIER_SILENCE_INTERVAL="1")


def test_silence_is_final_for_operators_who_want_it_so(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await agent.stop()
        await verifier.add(agent)
        await verifier.until_state(agent, FAILED)
        await eventually(lambda: verifier.rows("SELECT is_polled FROM agents") == [(0,)])

    scene(tmp_path, act, KEYLIME_VERIFIER_RESUME_AFTER_SILENCE="False")


def test_an_agent_that_refuses_is_failed_at_once(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        agent.answer_quote = lambda _: Response(404, status="not here")
        await verifier.add(agent)
        status = await verifier.until_state(agent, FAILED)
        assert status["last_event_id"] == "internal.verifier.no_quote"
        assert len(agent.questions) == 1

    scene(tmp_path, act)


def test_v_that_is_refused_is_a_failure(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        agent.answer_vkey = Response(400, status="no")
        await verifier.add(agent)
        status = await verifier.until_state(agent, FAILED)
        assert status["last_event_id"] == "internal.verifier.no_v"

    scene(tmp_path, act)


def test_v_is_offered_again_while_the_agent_is_busy(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        agent.answer_vkey = Response(503, status="busy")
        await verifier.add(agent)
        await eventually(lambda: agent.paths.count("POST /v2.5/keys/vkey") >= 3)
        agent.answer_vkey = None
        await eventually(lambda: agent.shares)
        await verifier.until_passing(agent, rounds=2)

    scene(tmp_path, act, **PATIENT)


@pytest.mark.parametrize(
    "nonsense",
    [
        Response(302, headers={"Location": "https://127.0.0.1:1/v2.5/quotes/integrity"}),
        Raw(content=b"\xff\x00 not JSON"),
        Raw(content=b'"a text"'),
        Raw(content=b"{" * 20_000),
        Response(500),
        Response(503, status="starting"),
        Response(200, headers={"Content-Encoding": "gzip"}),
    ],
    ids=["redirect", "garbage", "text", "deep", "error", "busy", "compressed"],
)
def test_n12_nonsense_is_asked_again_and_no_verdict_on_the_machine(
    tmp_path: Path, nonsense: Response
) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent)
        agent.answer_quote = lambda _: nonsense
        asked = len(agent.questions)
        await eventually(lambda: len(agent.questions) >= asked + 3)
        status = await verifier.status(agent)
        assert status["operational_state"] == GET_QUOTE
        agent.answer_quote = None
        await verifier.until_passing(agent, rounds=2)
        assert agent.revocations == []

    scene(tmp_path, act, **PATIENT)


def test_n12_who_says_that_it_cannot_quote_is_not_called_unreachable(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent)
        agent.answer_quote = lambda _: Response(500, status="Unable to retrieve quote")
        status = await verifier.until_state(agent, FAILED)
        assert status["last_event_id"] == "internal.verifier.unusable_answer"
        assert status["unreachable_since"] is None
        assert "500 Unable to retrieve quote" in status["last_findings"][0]["explanation"]
        agent.answer_quote = None
        await verifier.until_state(agent, GET_QUOTE)

    scene(tmp_path, act, KEYLIME_VERIFIER_RESUME_AFTER_SILENCE="False", KEYLIME_VERIFIER_SILENCE_INTERVAL="1")


@asynccontextmanager
async def raw_server(
    identity: Issued, act: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[int]:
    """Speaks whatever `act` says, under the certificate `identity`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await act(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    identity.load_into(context)
    async with served_by(serve, tls=context) as port:
        yield port.number


async def endless_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0)  # drain() may return at once, also when the other end is gone


async def many_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: a\r\n" % number for number in range(10_000)))
    writer.write(b"Content-Length: 0\r\n\r\n")
    await writer.drain()
    await reader.read()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def large_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_ANSWER + 1))
    await writer.drain()
    await reader.read()


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def no_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ESMTP\r\n")
    await writer.drain()
    await reader.read()


@pytest.mark.parametrize("misbehave", [silence, hang_up])
def test_n12_a_peer_that_is_no_agent_costs_a_bounded_time_and_others_nothing(
    tmp_path: Path, misbehave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        strange = AttestingAgent("strange", verifier_authority())
        async with raw_server(strange.identity, misbehave) as port:
            strange.port = port
            await verifier.add(strange)
            await verifier.add(agent)
            await verifier.until_passing(agent, rounds=3)
            status = await verifier.until(strange, lambda status: status["unreachable_since"] is not None)
            assert (status["attestation_status"], status["last_findings"]) == ("PENDING", [])

    scene(tmp_path, act, **PATIENT, KEYLIME_VERIFIER_REQUEST_TIMEOUT="0.5")


@pytest.mark.parametrize("misbehave", [endless_body, large_body, many_headers, no_http])
def test_n12_who_answers_nonsense_is_retried_so_often_and_then_told_as_what_it_is(
    tmp_path: Path, misbehave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        strange = AttestingAgent("strange", verifier_authority())
        async with raw_server(strange.identity, misbehave) as port:
            strange.port = port
            await verifier.add(strange)
            await verifier.add(agent)
            await verifier.until_passing(agent, rounds=3)
            status = await verifier.until_state(strange, FAILED)
            assert status["last_event_id"] == "internal.verifier.unusable_answer"
            assert status["unreachable_since"] is None
            await verifier.until_passing(agent, rounds=3)

    scene(tmp_path, act, KEYLIME_VERIFIER_REQUEST_TIMEOUT="3")


def test_n11_another_key_than_the_registered_one_is_sent_nothing(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        registered = agent.identity
        agent.identity = self_signed("agent-1")
        await agent.stop()
        agent.start()
        agent.identity = registered
        await verifier.add(agent)
        status = await verifier.until_state(agent, FAILED)
        assert status["last_event_id"] == "internal.verifier.wrong_key"
        assert "`keylime_tenant -c update -u agent-1`" in status["last_findings"][0]["hint"]
        assert (agent.paths, agent.shares) == ([], [])

    scene(tmp_path, act)


def test_n11_a_certificate_of_the_services_ca_is_no_substitute(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        registered = agent.identity
        agent.identity = verifier_authority().issue("agent-1")
        await agent.stop()
        agent.start()
        agent.identity = registered
        await verifier.add(agent)
        await verifier.until_state(agent, FAILED)
        assert agent.paths == []

    scene(tmp_path, act)


def test_an_envelope_without_a_quote_is_a_finding(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        agent.answer_quote = lambda _: Response(results={"quote": 7})
        await verifier.add(agent)
        status = await verifier.until_state(agent, INVALID_QUOTE)
        assert status["last_event_id"] == "qoute_validation.invalid_data"

    scene(tmp_path, act)


def test_s11_a_policy_that_cannot_be_read_fails_nobody_and_is_no_pass(tmp_path: Path) -> None:
    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as broken,
            AttestingAgent("agent-2", verifier_authority(), files={"boot_aggregate": b"other"}) as sound,
        ):
            async with running_verifier(tmp_path, PATIENT) as verifier:
                for agent in (broken, sound):
                    await verifier.add(agent)
                    await verifier.until_passing(agent)
            chosen = "(SELECT content_hash FROM policies WHERE name = 'agent-1')"
            change = f"UPDATE policy_texts SET text = ? WHERE content_hash = {chosen}"  # noqa: S608
            before = policy_of(broken.files)
            query_database(tmp_path, change, "{")
            asked = len(broken.questions)
            async with running_verifier(tmp_path, PATIENT) as verifier:
                await verifier.until_passing(sound, rounds=3)
                status = await verifier.until(broken, lambda status: status["attestation_status"] != "PASS")
                assert (status["operational_state"], status["attestation_status"]) == (GET_QUOTE, "PENDING")
                assert len(broken.questions) == asked
                await verifier.change(change, before)
                await verifier.until_passing(broken, rounds=2)
            assert broken.revocations == sound.revocations == []

    asyncio.run(play())


@pytest.mark.parametrize(
    "damage",
    [
        "accept_tpm_hash_algs = '{'",
        "operational_state = 42",
        "last_findings = '[1]'",
        "accept_tpm_signing_algs = '7'",
    ],
)
def test_s11_a_row_that_cannot_be_read_is_reported_and_hurts_no_other(tmp_path: Path, damage: str) -> None:
    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as broken,
            AttestingAgent("agent-2", verifier_authority()) as sound,
        ):
            async with running_verifier(tmp_path) as verifier:
                await verifier.add(broken)
                await verifier.add(sound)
            query_database(tmp_path, f"UPDATE agents SET {damage} WHERE agent_id = 'agent-1'")  # noqa: S608
            async with running_verifier(tmp_path) as verifier:
                await verifier.until_passing(sound, rounds=2)
                answer = await verifier.admin("GET", "/v2.5/agents/agent-1")
                assert (answer.code, "agent-1" in answer.status) == (500, True)
                answer = await verifier.admin("GET", "/v2.5/agents")
                assert answer.results == {"uuids": [["agent-1"], ["agent-2"]]}
                answer = await verifier.admin("GET", "/v2.5/agents?bulk=True")
                assert list(answer.results) == ["agent-2"]
                for act in ("stop", "reactivate"):
                    assert (await verifier.admin("PUT", f"/v2.5/agents/agent-1/{act}")).code == 500
                assert (await verifier.admin("DELETE", "/v2.5/agents/agent-1")).code == 200
                await verifier.add(broken)
                await verifier.until_passing(broken)

    asyncio.run(play())


@pytest.mark.parametrize("damage", ["mtls_cert = 'no PEM'", "ak_tpm = 'AAAA'", "tpm_policy = '{'"])
def test_s11_a_value_that_cannot_be_used_is_retried_and_hurts_no_other(tmp_path: Path, damage: str) -> None:
    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as broken,
            AttestingAgent("agent-2", verifier_authority()) as sound,
        ):
            async with running_verifier(tmp_path) as verifier:
                await verifier.add(broken)
                await verifier.add(sound)
            query_database(tmp_path, f"UPDATE agents SET {damage} WHERE agent_id = 'agent-1'")  # noqa: S608
            asked = len(broken.questions)
            async with running_verifier(tmp_path) as verifier:
                await verifier.until_passing(sound, rounds=5)
                await verifier.until(broken, lambda status: status["attestation_status"] != "PASS")
                assert len(broken.questions) == asked

    asyncio.run(play())


def test_s2_a_verdict_waits_for_a_locked_database_and_is_pending_until_it_is_written(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent, rounds=3)
        options: dict[str, Any] = {"isolation_level": None, "check_same_thread": False}
        with closing(sqlite3.connect(database_of(tmp_path), **options)) as intruder:
            await asyncio.to_thread(intruder.execute, "BEGIN IMMEDIATE")
            agent.tamper()
            status = await verifier.until_state(agent, INVALID_QUOTE)
            assert status["attestation_status"] == "PENDING", "other verifiers cannot know of it"
            assert intruder.execute("SELECT operational_state FROM agents").fetchall() == [(GET_QUOTE,)]
            intruder.execute("ROLLBACK")
        await eventually(lambda: verifier.rows("SELECT operational_state FROM agents") == [(INVALID_QUOTE,)])
        assert (await verifier.status(agent))["attestation_status"] == "FAIL"
        await eventually(lambda: agent.revocations)

    scene(tmp_path, act)


def test_s2_a_verdict_survives_a_database_that_refuses_and_is_not_written_by_halves(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent, rounds=3)
        await verifier.change("ALTER TABLE revocations RENAME TO away")
        agent.tamper()
        await verifier.until_state(agent, INVALID_QUOTE)
        assert verifier.rows("SELECT operational_state FROM agents") == [(GET_QUOTE,)]
        assert verifier.rows("SELECT * FROM away") == []
        await verifier.change("ALTER TABLE away RENAME TO revocations")
        await eventually(lambda: verifier.rows("SELECT operational_state FROM agents") == [(INVALID_QUOTE,)])
        assert len(verifier.rows("SELECT * FROM revocations")) == 1
        await eventually(lambda: agent.revocations)

    scene(tmp_path, act)


def test_s2_passes_go_on_while_the_database_is_away_and_are_written_later(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent, rounds=3)
        await verifier.change("ALTER TABLE agents RENAME TO away")
        asked = len(agent.questions)
        await eventually(lambda: len(agent.questions) > asked + 5)
        answer = await verifier.admin("GET", "/v2.5/agents/agent-1")
        assert (answer.code, answer.status) == (503, "The database is not available, try again later")
        assert (await verifier.admin("PUT", "/v2.5/agents/agent-1/stop")).code == 503
        asked = len(agent.questions)
        await eventually(lambda: len(agent.questions) > asked + 2)  # what was not stored did not happen
        await verifier.change("ALTER TABLE away RENAME TO agents")
        await verifier.until_passing(agent, rounds=2)

    scene(tmp_path, act)


def test_s14_agents_that_do_not_answer_delay_nobody(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        slow = [AttestingAgent(f"slow-{number}", verifier_authority()) for number in range(20)]
        for one in slow:
            one.gate = asyncio.Event()
            one.start()
            await verifier.add(one)
        await eventually(lambda: all(one.held for one in slow))
        await verifier.add(agent)
        await verifier.until_passing(agent, rounds=5)
        for one in slow:
            assert one.gate is not None
            one.gate.set()
        for one in slow:
            await verifier.until_passing(one)
            await one.stop()

    scene(tmp_path, act, **PATIENT)
