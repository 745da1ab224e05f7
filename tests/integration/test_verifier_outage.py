"""A database whose clock is set, or that goes on from an older state, costs no verdict.

Databases that are away, locked or replaced: `test_verifier_faults.py`.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.databases import DatabaseServer
from tests.fakes.eventual import eventually
from tests.fakes.postgresql import PostgresServer
from tests.fakes.running_verifier import verifier_authority
from tests.fakes.stepping_clock import install_stepping_clock, step_clock
from tests.fakes.verifier_process import Verifiers, verifiers

GET_QUOTE, INVALID_QUOTE = 3, 9
LEASE_S = 4.0
LIMIT_S = 100.0
OPTIONS = {
    "KEYLIME_VERIFIER_LEASE": str(LEASE_S),
    "KEYLIME_VERIFIER_QUOTE_INTERVAL": "0.5",
    "KEYLIME_VERIFIER_RETRY_INTERVAL": "0.5",
    "KEYLIME_VERIFIER_MAX_RETRIES": "100000",
    # One target that is not there: revocations are written, and their deliveries do not matter.
    "KEYLIME_VERIFIER_REVOCATIONS_ENABLED_REVOCATION_NOTIFICATIONS": "['webhook']",
    "KEYLIME_VERIFIER_REVOCATIONS_WEBHOOK_URL": "https://127.0.0.1:9/",
}
Act = Callable[[Verifiers, list[AttestingAgent]], Awaitable[None]]


@asynccontextmanager
async def stage(
    directory: Path, url: str | None, count: int, *each: dict[str, str]
) -> AsyncIterator[tuple[Verifiers, list[AttestingAgent]]]:
    """Verifiers and a fleet that passes."""
    agents = [AttestingAgent(f"agent-{number}", verifier_authority()) for number in range(count)]
    async with verifiers(directory, url, OPTIONS, *each) as site:
        api = await site.api(site.processes[0])
        for agent in agents:
            agent.start()
            await api.add(agent)
        for agent in agents:
            await api.until_passing(agent, rounds=2)
        try:
            yield site, agents
        finally:
            for agent in agents:
                await agent.stop()


def play(
    act: Act,
    directory: Path,
    url: str | None,
    *each: dict[str, str],
    agents: int,
) -> None:
    async def scene() -> None:
        async with stage(directory, url, agents, *each) as (site, machines):
            await act(site, machines)

    asyncio.run(scene())


async def until_all_are_rejected(site: Verifiers, agents: list[AttestingAgent]) -> None:
    failed = f"SELECT agent_id FROM agents WHERE operational_state = {INVALID_QUOTE}"  # noqa: S608
    with suppress(TimeoutError):
        await eventually(lambda: len(site.query(failed)) == len(agents), limit_s=LIMIT_S)
    told = sorted(str(row[0]) for row in site.query("SELECT agent_id FROM revocations"))
    assert (len(site.query(failed)), told) == (len(agents), sorted(agent.agent_id for agent in agents))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_leases_survive_steps_of_the_databases_clock(
    tmp_path: Path, postgres: PostgresServer, step_s: int
) -> None:
    url = postgres.new_database()
    install_stepping_clock(url)

    async def act(site: Verifiers, agents: list[AttestingAgent]) -> None:
        owners = "SELECT shard, owner FROM shards ORDER BY shard"
        before = site.query(owners)
        step_clock(url, step_s)
        await asyncio.sleep(1.5 * LEASE_S)
        assert site.query(owners) == before, "everybody has renewed its lease"
        api = await site.api(site.processes[0])
        for agent in agents:
            shown = await api.until_passing(agent, rounds=2)
            now = site.query("SELECT EXTRACT(EPOCH FROM clock_timestamp())::float8")[0][0]
            assert abs(shown["last_successful_attestation"] - float(str(now))) < 30, "by the database's clock"
        victim, staying = site.processes
        await site.pause(victim)
        try:
            await eventually(
                lambda: len(set(site.query("SELECT owner FROM shards"))) == 1, limit_s=4 * LEASE_S
            )
            for agent in agents:
                await (await site.api(staying)).until_passing(agent)
        finally:
            victim.send(signal.SIGCONT)

    play(act, tmp_path, url, {}, {}, agents=4)


@pytest.mark.timeout(240)
def test_what_a_restored_backup_has_forgotten_is_judged_again_at_once(
    tmp_path: Path, server: DatabaseServer
) -> None:
    async def act(site: Verifiers, agents: list[AttestingAgent]) -> None:
        agent = agents[0]
        backup = site.query("SELECT member_id, renewals FROM members")
        agent.tamper()
        await until_all_are_rejected(site, agents[:1])
        renewed = "SELECT member_id, renewals FROM members"
        await eventually(lambda: not set(site.query(renewed)) & set(backup))
        asked = len(agent.questions)
        restore(site, agent, backup)
        await eventually(lambda: len(agent.questions) > asked, limit_s=2 * LEASE_S + 12)
        await until_all_are_rejected(site, agents[:1])
        await eventually(
            lambda: any("another history than before" in process.text for process in site.processes)
        )

    play(act, tmp_path, server.new_database(), {}, {}, agents=3)


def restore(site: Verifiers, agent: AttestingAgent, members: list[tuple[object, ...]]) -> None:
    """The tables as they were before an agent was rejected: nothing else has changed meanwhile."""
    site.change(
        f"UPDATE agents SET operational_state = {GET_QUOTE}, is_polled = true, severity_level = NULL "  # noqa: S608
        f"WHERE agent_id = '{agent.agent_id}'",
        "DELETE FROM deliveries",
        "DELETE FROM revocations",
        *(
            f"UPDATE members SET renewals = {renewals} WHERE member_id = '{member}'"  # noqa: S608
            for member, renewals in members
        ),
    )


@pytest.mark.timeout(240)
def test_a_former_owner_does_not_write_over_a_rejection_after_a_failover_lost_its_epoch(
    tmp_path: Path, database: str | None
) -> None:
    async def act(site: Verifiers, agents: list[AttestingAgent]) -> None:
        agent = agents[0]
        owner, other = await site.owners(agent)
        agent.gate = asyncio.Event()
        await eventually(lambda: agent.held)
        await site.pause(owner)
        held, agent.gate = agent.gate, None
        held.set()  # the former owner will read a pass
        # A standby took over that has not heard of the last change of owners: all shards are free there, in
        # the epoch before.
        site.change("UPDATE shards SET owner = NULL, epoch = epoch - 1")
        await eventually(lambda: site.owner_of(agent) is other, limit_s=LIMIT_S)
        await (await site.api(other)).until_passing(agent, rounds=2)
        agent.tamper()
        await until_all_are_rejected(site, agents[:1])
        owner.send(signal.SIGCONT)
        await site.until_shared(limit_s=LIMIT_S)
        await (await site.api(owner)).until_passing(agents[1], rounds=4)
        await until_all_are_rejected(site, agents[:1])

    play(act, tmp_path, database, {}, {}, agents=3)
