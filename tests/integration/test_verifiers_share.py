"""Two verifier processes on one database: who does the work, who takes over, and whose writes count."""

import asyncio
import base64
import contextlib
import json
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from keylime.http.server import Response
from keylime.revocation.channel import RevocationSubscriber
from keylime.revocation.publication import endpoint
from tests.fakes.attesting_agent import AttestingAgent, policy_of
from tests.fakes.databases import DatabaseServer
from tests.fakes.eventual import eventually
from tests.fakes.running_verifier import NOT_TOLD, RunningVerifier, verifier_authority
from tests.fakes.tls_material import server_context
from tests.fakes.verifier_process import VerifierProcess, Verifiers, verifiers
from tests.fakes.webhook_receiver import WebhookReceiver
from tests.integration.test_verifier_process import free_port

GET_QUOTE, INVALID_QUOTE, TENANT_FAILED = 3, 9, 10
LEASE_S = 1.5
PATIENT = {
    "KEYLIME_VERIFIER_MAX_RETRIES": "100000",
    "KEYLIME_VERIFIER_LEASE": str(LEASE_S),
    "KEYLIME_VERIFIER_QUOTE_INTERVAL": "0.2",
    "KEYLIME_VERIFIER_RETRY_INTERVAL": "0.2",
}


@asynccontextmanager
async def fleet(count: int) -> AsyncIterator[list[AttestingAgent]]:
    agents = [AttestingAgent(f"agent-{number}", verifier_authority()) for number in range(count)]
    for agent in agents:
        agent.start()
    try:
        yield agents
    finally:
        for agent in agents:
            await agent.stop()


async def add_all(site: Verifiers, agents: list[AttestingAgent]) -> None:
    """Adds agents through all verifiers in turn, and waits until each passes."""
    for number, agent in enumerate(agents):
        await (await site.api(site.processes[number % len(site.processes)])).add(agent)
    for agent in agents:
        await (await site.api(site.processes[0])).until_passing(agent)


async def until_asked(agents: list[AttestingAgent]) -> float:
    """Seconds until every agent has been asked twice more: the first may have been on its way."""
    began, asked = time.monotonic(), {agent.agent_id: len(agent.questions) for agent in agents}
    await eventually(lambda: all(len(agent.questions) >= asked[agent.agent_id] + 2 for agent in agents))
    return time.monotonic() - began


def state_of(site: Verifiers, agent: AttestingAgent) -> object:
    return site.query(f"SELECT operational_state FROM agents WHERE agent_id = '{agent.agent_id}'")[0][0]  # noqa: S608


def play(
    act: Callable[[Verifiers, list[AttestingAgent]], Awaitable[None]],
    directory: Path,
    url: str | None = None,
    agents: int = 4,
    **environ: str,
) -> None:
    """Two verifiers and a fleet that passes."""

    async def scene() -> None:
        options = {**PATIENT, **environ}
        async with fleet(agents) as machines, verifiers(directory, url, options, {}, {}) as site:
            await add_all(site, machines)
            await act(site, machines)

    asyncio.run(scene())


def test_the_agents_of_a_killed_verifier_are_taken_over(tmp_path: Path) -> None:
    async def act(site: Verifiers, agents: list[AttestingAgent]) -> None:
        victim, _ = site.processes
        assert await victim.end(signal.SIGKILL) == -signal.SIGKILL
        assert await until_asked(agents) < 2 * LEASE_S
        victim.start()
        await victim.listening()
        await site.until_shared()
        await until_asked(agents)
        assert {state_of(site, agent) for agent in agents} == {GET_QUOTE}
        assert all(agent.revocations == [] for agent in agents)

    play(act, tmp_path)


async def read_events(verifier: RunningVerifier, seen: list[dict[str, Any]]) -> None:
    """Follows the events after the last one that was seen, until the connection ends."""
    url = f"https://127.0.0.1:{verifier.port}/v2.6/events"
    after = {"Last-Event-ID": str(seen[-1]["id"] if seen else 0)}
    async with verifier.session.get(url, ssl=verifier.administrators, headers=after) as response:
        assert response.status == 200
        with contextlib.suppress(aiohttp.ClientError):
            async for line in response.content:
                assert not line.startswith(b"event: gap")
                if line.startswith(b"data: "):
                    seen.append(json.loads(line.removeprefix(b"data: ")))


async def shares_are_told(verifier: RunningVerifier, site: Verifiers, agents: list[AttestingAgent]) -> None:
    """Any of them says who has how much of the work."""
    await site.until_shared()
    told = (await verifier.admin("GET", "/v2.6/verifiers")).results
    pids = {int(one["name"].rpartition(":")[2]) for one in told["verifiers"]}
    assert pids == {process.pid for process in site.processes}
    assert [one["shards"] for one in told["verifiers"]] == [128, 128]
    assert sum(one["agents"] for one in told["verifiers"]) == len(agents)
    passes = [one["oldest_pass"] for one in told["verifiers"] if one["agents"]]
    assert all(0 <= told["now"] - at <= 100 for at in passes)


def test_who_follows_a_killed_verifier_goes_on_at_another_one_without_gap_or_double(
    tmp_path: Path, server: DatabaseServer
) -> None:
    async def act(site: Verifiers, agents: list[AttestingAgent]) -> None:
        victim, other = site.processes
        dying, living = await site.api(victim), await site.api(other)
        await shares_are_told(living, site, agents)
        seen: list[dict[str, Any]] = []
        reading = asyncio.create_task(read_events(dying, seen))
        is_enough = asyncio.Event()

        async def act_on_agents() -> None:
            """Something happens all the time, to whichever agent, at the verifier that lives."""
            while not is_enough.is_set():
                for agent in agents:
                    for what in ("stop", "reactivate"):
                        done = await living.admin("PUT", f"/v2.6/agents/{agent.agent_id}/{what}")
                        assert done.code == 200

        acting = asyncio.create_task(act_on_agents())
        await eventually(lambda: len(seen) >= 20)
        assert await victim.end(signal.SIGKILL) == -signal.SIGKILL
        async with asyncio.timeout(100):
            await reading
        at_the_kill = seen[-1]["id"]
        reading = asyncio.create_task(read_events(living, seen))
        await eventually(lambda: seen[-1]["id"] >= at_the_kill + 20)
        await eventually(lambda: any(event["kind"] == "taken_over" for event in seen))
        is_enough.set()
        await acting
        last = site.query("SELECT last FROM event_counter")[0][0]
        await eventually(lambda: seen[-1]["id"] >= last)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert [event["id"] for event in seen] == [*range(1, seen[-1]["id"] + 1)]
        stored = site.query(f"SELECT id, kind FROM events WHERE id <= {seen[-1]['id']} ORDER BY id")  # noqa: S608
        assert [(event["id"], event["kind"]) for event in seen] == stored

    play(act, tmp_path, server.new_database(), agents=2)


def test_a_verifier_that_stops_in_good_order_hands_over_at_once(tmp_path: Path) -> None:
    async def act(site: Verifiers, agents: list[AttestingAgent]) -> None:
        leaving, staying = site.processes
        before = {row[0]: row[1] for row in site.query("SELECT agent_id, attestation_count FROM progress")}
        assert await leaving.end() == 0
        assert await site.until_shared(1, limit_s=100) < 50, "long before the lease ends"
        await until_asked(agents)
        after = {row[0]: row[1] for row in site.query("SELECT agent_id, attestation_count FROM progress")}
        assert all(int(str(after[agent])) >= int(str(count)) for agent, count in before.items())
        assert "taken over by other verifiers" not in staying.text

    play(act, tmp_path, None, KEYLIME_VERIFIER_LEASE="600")


async def was_late(site: Verifiers, agent: AttestingAgent) -> bool:
    """Stops the verifier of an agent while that answers badly; whether it rejects the agent when it goes on.

    It gives up what it has asked if it learns first that another one has taken the agent over.
    """
    owner, other = await site.owners(agent)
    agent.gate, agent.held = asyncio.Event(), 0
    await eventually(lambda: agent.held)
    await site.pause(owner)
    # What waits for the stopped verifier fails the agent; what the other one is told does not.
    answered: list[bool] = []

    def lie(results: dict[str, Any]) -> Response:
        answered.append(True)
        return Response(results=results if len(answered) > 1 else {**results, "quote": "rAAAA:AAAA:AAAA"})

    agent.answer_quote = lie
    agent.gate.set()
    agent.gate = None
    await eventually(lambda: answered)
    await asyncio.sleep(0.2)  # until the answer is on its way into the stopped process
    agent.answer_quote = None
    await eventually(lambda: site.owner_of(agent) is other)
    await (await site.api(other)).until_passing(agent, rounds=2)
    owner.send(signal.SIGCONT)
    await site.until_shared(limit_s=100)  # it has renewed its lease, and looked
    return re.search(rf"agent {agent.agent_id}: .+ -> Invalid Quote", owner.text) is not None


def test_the_late_rejection_of_a_verifier_that_was_stopped_counts_once(
    tmp_path: Path, database: str | None
) -> None:
    async def act(site: Verifiers, agents: list[AttestingAgent]) -> None:
        agent = agents[0]
        for _ in range(5):
            if await was_late(site, agent):
                break
            await until_asked([agent])
        else:
            raise AssertionError("the verifier always learned first that it had lost the agent")
        await eventually(lambda: state_of(site, agent) == INVALID_QUOTE)
        for process in site.processes:
            status = await (await site.api(process)).until_state(agent, INVALID_QUOTE)
            assert status["attestation_status"] == "FAIL"
        await until_quiet(agent)
        assert state_of(site, agent) == INVALID_QUOTE
        assert site.query("SELECT agent_id FROM revocations") == [(agent.agent_id,)]
        await until_asked(agents[1:])

    # The stop must not outlast the request, else what waits for the verifier is no answer any more.
    play(act, tmp_path, database, KEYLIME_VERIFIER_REQUEST_TIMEOUT="100")


async def with_a_late_pass(site: Verifiers, agent: AttestingAgent) -> tuple[VerifierProcess, bool]:
    """Stops the verifier of an agent that has a pass to write, until another one has the agent.

    Which one that was, and whether the pass was refused. It has none to write if it wrote before it stopped.
    """
    owner, other = await site.owners(agent)
    written = attestations_of(site, agent)
    await eventually(lambda: attestations_of(site, agent) != written)
    asked = len(agent.questions)
    await eventually(lambda: len(agent.questions) >= asked + 2)  # who asks again has judged what was answered
    await site.pause(owner)
    await eventually(lambda: site.owner_of(agent) is other)
    await (await site.api(other)).until_passing(agent, rounds=2)
    owner.send(signal.SIGCONT)
    await site.until_shared(limit_s=100)
    for process in site.processes:  # whoever it belongs to goes on
        await (await site.api(process)).until_passing(agent, rounds=2)
    return owner, late_passes(owner, agent) > 0


def late_passes(process: VerifierProcess, agent: AttestingAgent) -> int:
    """How many have been refused: one that was written late, and at most one more that was judged then."""
    return process.text.count(f"ERROR - agent {agent.agent_id}: the verdict 'pass' does not count")


def attestations_of(site: Verifiers, agent: AttestingAgent) -> object:
    return site.query(f"SELECT attestation_count FROM progress WHERE agent_id = '{agent.agent_id}'")  # noqa: S608


def test_the_late_pass_of_a_verifier_that_was_stopped_is_refused_and_judged_again(
    tmp_path: Path, database: str | None
) -> None:
    async def act(site: Verifiers, agents: list[AttestingAgent]) -> None:
        agent = agents[0]
        for _ in range(5):
            owner, was_refused = await with_a_late_pass(site, agent)
            if was_refused:
                break
        else:
            raise AssertionError("the verifier never had a pass to write")
        assert "another verifier has taken the agent over" in owner.text
        recalls = f"SELECT recalls FROM progress WHERE agent_id = '{agent.agent_id}'"  # noqa: S608
        assert site.query(recalls) == [(late_passes(owner, agent),)], "the other one judges it again at once"
        await until_asked(agents)
        assert site.query("SELECT * FROM revocations") == []

    play(act, tmp_path, database)


def test_any_verifier_answers_any_request_and_the_owner_acts(tmp_path: Path, server: DatabaseServer) -> None:
    async def act(site: Verifiers, agents: list[AttestingAgent]) -> None:
        agent = agents[0]
        owner, other = await site.owners(agent)
        there = await site.api(other)
        assert (await there.admin("PUT", f"/v2.5/agents/{agent.agent_id}/stop")).code == 200
        await until_quiet(agent)
        assert (await (await site.api(owner)).status(agent))["operational_state"] == TENANT_FAILED
        assert (await there.admin("PUT", f"/v2.5/agents/{agent.agent_id}/reactivate")).code == 200
        await there.until_passing(agent, rounds=2)
        await until_asked(agents)
        assert (await there.admin("DELETE", f"/v2.5/agents/{agent.agent_id}")).code == 200
        await until_quiet(agent)
        assert (await (await site.api(owner)).admin("GET", f"/v2.5/agents/{agent.agent_id}")).code == 404
        await there.add(agent)
        await there.until_passing(agent)
        assert site.owner_of(agent) is owner

    play(act, tmp_path, server.new_database())


async def until_quiet(agent: AttestingAgent) -> None:
    """Returns when an agent that is asked many times a second has not been asked for a while."""

    async def is_quiet() -> bool:
        asked = len(agent.questions)
        await asyncio.sleep(0.5)
        return len(agent.questions) == asked

    await eventually(is_quiet)


def test_a_policy_that_is_replaced_at_one_verifier_binds_the_agents_of_the_other(tmp_path: Path) -> None:
    async def act(site: Verifiers, agents: list[AttestingAgent]) -> None:
        agent, *others = agents
        _, other = await site.owners(agent)
        there = await site.api(other)
        body = {
            "runtime_policy": base64.b64encode(policy_of({"boot_aggregate": b"another"}).encode()).decode()
        }
        assert (await there.admin("PUT", f"/v2.5/allowlists/{agent.agent_id}", body)).code == 201
        await there.until_state(agent, INVALID_QUOTE)
        await until_asked(others)
        assert {state_of(site, one) for one in others} == {GET_QUOTE}

    play(act, tmp_path)


def channels(receiver: WebhookReceiver, *names: str) -> dict[str, str]:
    prefix = "KEYLIME_VERIFIER_REVOCATIONS"
    return {
        **PATIENT,
        f"{prefix}_ENABLED_REVOCATION_NOTIFICATIONS": str(list(names)),
        f"{prefix}_WEBHOOK_URL": receiver.url,
    }


def test_each_revocation_arrives_once_on_every_channel_of_every_verifier(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]

    async def scene() -> None:
        async with (
            fleet(4) as agents,
            WebhookReceiver(server_context(verifier_authority())) as receiver,
            verifiers(
                tmp_path,
                None,
                channels(receiver, "agent", "zeromq", "webhook"),
                *({"KEYLIME_VERIFIER_REVOCATIONS_ZMQ_PORT": str(port)} for port in ports),
            ) as site,
        ):
            await add_all(site, agents)
            subscribers = [RevocationSubscriber([endpoint("127.0.0.1", port)]) for port in ports]
            heard = [asyncio.ensure_future(anext(subscriber)) for subscriber in subscribers]
            failing = {site.owner_of(agent): agent for agent in agents}
            for agent in failing.values():
                agent.tamper()
            revocations = "SELECT count(*) FROM revocations"
            await eventually(lambda: site.query(revocations) == [(len(failing),)])
            await eventually(lambda: site.query(NOT_TOLD) == [(0,)])
            told = {agent.agent_id for agent in failing.values()}
            assert {json.loads(message.msg)["agent_id"] for message in await asyncio.gather(*heard)} <= told
            for arrived in (receiver.received, *(agent.revocations for agent in agents)):
                assert sorted(json.loads(message.msg)["agent_id"] for message in arrived) == sorted(told)
            for subscriber in subscribers:
                subscriber.close()

    asyncio.run(scene())


def test_another_verifier_sends_what_a_killed_one_could_not(tmp_path: Path, server: DatabaseServer) -> None:
    async def scene() -> None:
        async with (
            fleet(4) as agents,
            WebhookReceiver(server_context(verifier_authority())) as receiver,
            verifiers(tmp_path, server.new_database(), channels(receiver, "webhook"), {}, {}) as site,
        ):
            await add_all(site, agents)
            agent = agents[0]
            owner, _ = await site.owners(agent)
            receiver.gate = asyncio.Event()
            agent.tamper()
            await eventually(lambda: receiver.received)
            await owner.end(signal.SIGKILL)
            receiver.received.clear()  # what nobody confirmed does not count
            receiver.gate.set()
            await eventually(lambda: receiver.received)
            await eventually(lambda: site.query("SELECT state FROM deliveries") == [("delivered",)])
            assert json.loads(receiver.received[0].msg)["agent_id"] == agent.agent_id

    asyncio.run(scene())
