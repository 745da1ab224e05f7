"""Three verifiers on one PostgreSQL; a nemesis kills, stops and cuts them off while machines are hacked.

Afterwards a checker goes through what the machines, the webhook and the database remember: every counted
write was the owner's, every hacked machine was found and told about, and no other, and none was left alone.
KEYLIME_NEMESIS_SECONDS makes it longer, KEYLIME_NEMESIS_SEED repeats what a run reported.
"""

import asyncio
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.postgresql import PostgresServer, running_postgresql
from tests.fakes.running_verifier import NOT_TOLD, eventually, verifier_authority
from tests.fakes.tcp_proxy import TcpProxy
from tests.fakes.tls_material import server_context
from tests.fakes.verifier_process import Verifiers, verifiers
from tests.fakes.webhook_receiver import WebhookReceiver
from tests.fakes.write_history import remember_writes, wrong_writes

SECONDS = float(os.environ.get("KEYLIME_NEMESIS_SECONDS", "15"))
SEED = int(os.environ.get("KEYLIME_NEMESIS_SEED", "0")) or random.randrange(1, 10**6)  # noqa: S311
AGENTS = 16
LEASE_S = 2.0
INTERVAL_S = 0.5
# Beyond two leases and an interval: a session that ends in the middle of a transaction keeps its locks until
# the server's time-out of five seconds, and this machine is busy.
GRACE_S = 8.0
INVALID_QUOTE = 9
OPTIONS = {
    "KEYLIME_VERIFIER_QUOTE_INTERVAL": str(INTERVAL_S),
    "KEYLIME_VERIFIER_RETRY_INTERVAL": str(INTERVAL_S),
    "KEYLIME_VERIFIER_MAX_RETRIES": "100000",
    "KEYLIME_VERIFIER_LEASE": str(LEASE_S),
    "KEYLIME_VERIFIER_REVOCATIONS_ENABLED_REVOCATION_NOTIFICATIONS": "['webhook']",
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgresql() as server:
        yield server


@dataclass
class Nemesis:
    """Does harm, at random but repeatably, to all but one of the verifiers at any time."""

    chance: random.Random
    site: Verifiers
    proxies: list[TcpProxy]
    server: PostgresServer
    done: Counter[str] = field(default_factory=Counter)
    database_down_s: float = 0.0
    _suffering: set[int] = field(default_factory=set)
    _one_restart: asyncio.Lock = field(default_factory=asyncio.Lock)  # at a time

    async def rage(self, seconds: float) -> None:
        """Harms until the time is over and everything it did has been made good."""
        acts = (
            self.kill,
            self.kill,
            self.freeze,
            self.freeze,
            self.cut_off,
            self.cut_off,
            self.restart_database,
        )
        deadline = time.monotonic() + seconds
        under_way: set[asyncio.Task[None]] = set()
        while time.monotonic() < deadline:
            healthy = [number for number in range(len(self.proxies)) if number not in self._suffering]
            act = self.chance.choice(acts)
            if len(healthy) > 1:
                under_way.add(asyncio.create_task(self._harm(act.__name__, self.chance.choice(healthy))))
            await asyncio.sleep(self.chance.uniform(0.2, 1.5))
        await asyncio.gather(*under_way)

    async def _harm(self, act: str, number: int) -> None:
        self.done[act] += 1
        self._suffering.add(number)
        await getattr(self, act)(number)
        self._suffering.discard(number)

    async def kill(self, number: int) -> None:
        process = self.site.processes[number]
        await process.end(signal.SIGKILL)
        await self._wait()
        while True:
            process.start()
            try:
                await process.listening()
            except AssertionError:  # it ended, because the database was away
                await asyncio.sleep(0.2)
            else:
                return

    async def freeze(self, number: int) -> None:
        process = self.site.processes[number]
        process.send(signal.SIGSTOP)
        await self._wait()
        process.send(signal.SIGCONT)

    async def cut_off(self, number: int) -> None:
        self.proxies[number].cut()
        await self._wait()
        self.proxies[number].heal()

    async def restart_database(self, _number: int) -> None:
        async with self._one_restart:
            began = time.monotonic()
            await asyncio.to_thread(self.server.stop, self.chance.choice(("fast", "immediate")))
            await asyncio.to_thread(self.server.start)
            self.database_down_s += time.monotonic() - began

    async def _wait(self) -> None:
        await asyncio.sleep(self.chance.uniform(0.1, 3 * LEASE_S))


async def hack(agents: list[AttestingAgent], chance: random.Random, seconds: float) -> set[str]:
    """Half of the machines are hacked, at random moments; their ids."""
    victims = chance.sample(agents, len(agents) // 2)
    for victim in victims:
        await asyncio.sleep(seconds / len(victims) * chance.uniform(0.2, 1.0))
        victim.tamper()
    return {victim.agent_id for victim in victims}


@asynccontextmanager
async def stage(
    directory: Path, server: PostgresServer, receiver: WebhookReceiver
) -> AsyncIterator[tuple[Verifiers, list[TcpProxy]]]:
    """Three verifiers, each with a line of its own to the database."""
    url = server.new_database()
    name = url.rpartition("/")[2]
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(TcpProxy(server.port)) for _ in range(3)]
        each = [{"KEYLIME_VERIFIER_DATABASE_URL": server.url_on(proxy.port, name)} for proxy in proxies]
        options = {**OPTIONS, "KEYLIME_VERIFIER_REVOCATIONS_WEBHOOK_URL": receiver.url}
        site = await stack.enter_async_context(verifiers(directory, url, options, *each))
        remember_writes(url)
        yield site, proxies


@pytest.mark.timeout(SECONDS * 2 + 180)
def test_no_verdict_is_lost_or_counted_twice_whatever_happens_to_verifiers_and_database(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    async def scene() -> None:
        chance = random.Random(SEED)  # noqa: S311
        agents = [AttestingAgent(f"agent-{number}", verifier_authority()) for number in range(AGENTS)]
        async with (
            WebhookReceiver(server_context(verifier_authority())) as receiver,
            stage(tmp_path, postgres, receiver) as (site, proxies),
        ):
            for number, agent in enumerate(agents):
                agent.start()
                await (await site.api(site.processes[number % 3])).add(agent)
            for agent in agents:
                await (await site.api(site.processes[0])).until_passing(agent)
            nemesis = Nemesis(chance, site, proxies, postgres)
            hacked, _ = await asyncio.gather(hack(agents, chance, SECONDS), nemesis.rage(SECONDS))
            await until_calm(site, agents, hacked)
            findings = check(site, agents, receiver, hacked, nemesis)
            print(f"\n[nemesis seed {SEED}, {SECONDS:g} s: {dict(nemesis.done)}; {findings.summary}]")
            assert findings.faults == [], f"seed {SEED}"
            for agent in agents:
                await agent.stop()

    asyncio.run(scene())


async def until_calm(site: Verifiers, agents: list[AttestingAgent], hacked: set[str]) -> None:
    """Everything was made good: shards are shared out, verdicts written and told, and the others attested."""
    await site.until_shared(limit_s=30)
    failed = f"SELECT count(*) FROM agents WHERE operational_state = {INVALID_QUOTE}"  # noqa: S608
    await eventually(lambda: site.query(failed) == [(len(hacked),)], limit_s=30)
    await eventually(lambda: site.query(NOT_TOLD) == [(0,)], limit_s=60)
    asked = {agent.agent_id: len(agent.questions) for agent in agents}
    sound = [agent for agent in agents if agent.agent_id not in hacked]
    await eventually(lambda: all(len(agent.questions) >= asked[agent.agent_id] + 2 for agent in sound))


@dataclass
class Findings:
    """What the checker says: `faults` must be empty."""

    faults: list[str]
    summary: str


def check(
    site: Verifiers,
    agents: list[AttestingAgent],
    receiver: WebhookReceiver,
    hacked: set[str],
    nemesis: Nemesis,
) -> Findings:
    """Goes through everything that was remembered."""
    faults, writes = wrong_writes(site)
    told = Counter(json.loads(message.msg)["agent_id"] for message in receiver.received)
    verdicts = Counter(str(row[0]) for row in site.query("SELECT agent_id FROM revocations"))
    if set(told) != hacked or verdicts != Counter(hacked):
        faults.append(f"hacked {sorted(hacked)}, verdicts {verdicts}, told {told}")
    gaps = {agent.agent_id: longest_gap_s(agent) for agent in agents if agent.agent_id not in hacked}
    allowed_s = 2 * LEASE_S + INTERVAL_S + GRACE_S + nemesis.database_down_s
    faults += [f"{name}: not asked for {gap_s:.1f} s" for name, gap_s in gaps.items() if gap_s > allowed_s]
    owners = site.query("SELECT count(*), max(epoch) FROM shards")[0]
    repeated = sum(told.values()) - len(told)
    summary = (
        f"{writes} counted writes, epochs up to {owners[1]}, {len(hacked)} hacked, {repeated} told twice, "
        f"longest gap {max(gaps.values()):.1f} s, database down {nemesis.database_down_s:.1f} s"
    )
    return Findings(faults, summary)


def longest_gap_s(agent: AttestingAgent) -> float:
    """The longest time between two questions to an agent."""
    times = [question.at for question in agent.questions]
    return max(later - earlier for earlier, later in itertools.pairwise(times))
