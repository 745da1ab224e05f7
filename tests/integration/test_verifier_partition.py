"""A verifier that loses its database without a word: what it sends does not arrive, and nothing says so."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.eventual import eventually
from tests.fakes.own_time import OwnTime
from tests.fakes.postgresql import PostgresServer, running_postgresql
from tests.fakes.running_verifier import verifier_authority
from tests.fakes.two_machines import TwoMachines, two_machines
from tests.fakes.verifier_process import VerifierProcess, Verifiers, sharing
from tests.fakes.write_history import remember_writes, writes
from tests.truth.checker import wrong_writes

LEASE_S = 2.0
INTERVAL_S = 0.2
RECONNECT_S = 8.0  # attempts to connect that were made in vain are repeated after 1, 2 and 4 seconds
OPTIONS = {
    "KEYLIME_VERIFIER_LEASE": str(LEASE_S),
    "KEYLIME_VERIFIER_QUOTE_INTERVAL": str(INTERVAL_S),
    "KEYLIME_VERIFIER_RETRY_INTERVAL": str(INTERVAL_S),
    "KEYLIME_VERIFIER_MAX_RETRIES": "100000",
}


class Scene:
    """Two verifiers, agents that both of them reach, and a database that one of them may cease to reach."""

    def __init__(self, machines: TwoMachines, site: Verifiers, agents: list[AttestingAgent]) -> None:
        self.line = machines.for_database
        self.site = site
        self.agents = agents
        self.near, self.far = site.processes
        self._far_ip = machines.for_agents.there

    def asked_by_far(self) -> list[float]:
        """When agents were asked by the verifier on the other machine, in order."""
        questions = [question for agent in self.agents for question in agent.questions]
        return sorted(question.at for question in questions if question.asker == self._far_ip)

    def lease_of_far_ends_at(self) -> float:
        """When its lease ends or has ended by the database, on the clock of `asked_by_far`."""
        # It is process 1 of its machine.
        lease = "SELECT expires_at - EXTRACT(EPOCH FROM clock_timestamp())::float8 FROM members"
        ((left_s,),) = self.site.query(f"{lease} WHERE name ~ '[^0-9]1$'")
        return time.monotonic() + float(str(left_s))

    async def until_asked(self) -> None:
        """Returns when each agent has been asked twice more."""
        before = {agent.agent_id: len(agent.questions) for agent in self.agents}
        await eventually(
            lambda: all(len(agent.questions) >= before[agent.agent_id] + 2 for agent in self.agents)
        )


@pytest.fixture
def machines() -> Iterator[TwoMachines]:
    with two_machines() as made:
        yield made


def play(act: Callable[[PostgresServer], Coroutine[None, None, None]], machines: TwoMachines) -> None:
    """Acts on the machine that has the database."""

    def here() -> None:
        with running_postgresql(machines.for_database.here) as postgres:
            asyncio.run(act(postgres))

    machines.run(here)


def far_verifier(
    directory: Path, url: str, machines: TwoMachines, postgres: PostgresServer
) -> VerifierProcess:
    """On the other machine, with the same database."""
    place = postgres.url_on(postgres.port, url.rpartition("/")[2], machines.for_database.here)
    options = {**OPTIONS, "KEYLIME_VERIFIER_DATABASE_URL": place}
    return VerifierProcess(directory, "far", options, prefix=machines.elsewhere)


@asynccontextmanager
async def fleet_of_two(
    directory: Path, machines: TwoMachines, postgres: PostgresServer
) -> AsyncIterator[Scene]:
    """Two verifiers share agents that pass; nothing wrong may have been written at the end."""
    url = postgres.new_database()
    near = VerifierProcess(directory, "near", {**OPTIONS, "KEYLIME_VERIFIER_DATABASE_URL": url})
    here = machines.for_agents.here
    agents = [AttestingAgent(f"agent-{number}", verifier_authority(), ip=here) for number in range(6)]
    async with sharing(directory, url, [near, far_verifier(directory, url, machines, postgres)]) as site:
        remember_writes(url)
        api = await site.api(near)
        for agent in agents:
            agent.start()
            await api.add(agent)
        scene = Scene(machines, site, agents)
        await scene.until_asked()
        await eventually(scene.asked_by_far)
        yield scene
        written = writes(site)
        assert (list(wrong_writes(written)), len(written) > len(agents)) == ([], True)
        for agent in agents:
            await agent.stop()


def test_one_that_is_cut_off_asks_on_in_vain_and_has_its_share_again_when_it_is_back(
    tmp_path: Path, machines: TwoMachines
) -> None:
    async def act(postgres: PostgresServer) -> None:
        async with fleet_of_two(tmp_path, machines, postgres) as scene:
            await cut_off_and_back(scene)

    play(act, machines)


async def cut_off_and_back(scene: Scene) -> None:
    cut_at = time.monotonic()
    scene.line.cut()
    await scene.site.until_shared(1)
    assert time.monotonic() - cut_at < 2 * LEASE_S
    await scene.until_asked()
    ended_at = scene.lease_of_far_ends_at()
    # It cannot know whether anybody still has the database, and would rather ask in vain than not at all.
    await eventually(lambda: scene.asked_by_far()[-1] > ended_at + LEASE_S)

    scene.line.heal()
    healed_at = time.monotonic()
    await scene.site.until_shared(2)
    assert time.monotonic() - healed_at < RECONNECT_S
    await eventually(lambda: scene.asked_by_far()[-1] > healed_at)
    await scene.until_asked()
    assert scene.site.query("SELECT * FROM revocations") == []


def test_a_stop_takes_no_longer_while_the_database_is_silent(tmp_path: Path, machines: TwoMachines) -> None:
    async def act(postgres: PostgresServer) -> None:
        url = postgres.new_database()
        far = far_verifier(tmp_path, url, machines, postgres)
        async with sharing(tmp_path, url, [far]):
            machines.for_database.cut()
            await asyncio.sleep(LEASE_S / 2)  # by now it waits for the answer to a renewal
            (verifier,) = far.children  # of the program that gave it a machine of its own
            own = OwnTime(verifier)
            os.kill(verifier, signal.SIGTERM)
            await eventually(lambda: own.passed_s() > 5 or not far.is_running)
            assert own.passed_s() < 5
            assert await asyncio.to_thread(far.ended) == 0
            assert "Traceback" not in far.text

    play(act, machines)
