"""Two PostgreSQL servers, a primary and its standby, behind one URL as operators write it."""

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from keylime.database.migrate import prepare_schema
from keylime_verifier.database.changes import ChangeFeed, Topic
from keylime_verifier.database.schema import SCHEMA
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.eventual import eventually
from tests.fakes.own_time import OwnTime
from tests.fakes.postgresql import PostgresServer, running_postgresql
from tests.fakes.running_verifier import verifier_authority
from tests.fakes.statements import opened
from tests.fakes.verifier_process import Verifiers, verifiers

LEASE_S = 8.0
LIMIT_S = 100.0
OPTIONS = {
    "KEYLIME_VERIFIER_LEASE": str(LEASE_S),
    "KEYLIME_VERIFIER_QUOTE_INTERVAL": "0.5",
    "KEYLIME_VERIFIER_MAX_RETRIES": "100000",
}


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    with running_postgresql() as server:
        try:
            yield server
        finally:
            with contextlib.suppress(FileNotFoundError):  # it may have been stopped
                server.thaw()


def replicated(primary: PostgresServer) -> None:
    """From here on nothing is committed that the standby does not have."""
    with psycopg.connect(primary.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        connection.execute("SELECT pg_reload_conf()")


def both(form: str, primary: PostgresServer, standby: PostgresServer, database: str) -> str:
    ports = {"p1": primary.port, "p2": standby.port, "db": database}
    return form.format(**ports)


FORMS = {
    "libpq": "postgresql://postgres@127.0.0.1:{p1},127.0.0.1:{p2}/{db}?target_session_attrs=read-write",
    "lists": "postgresql://postgres@/{db}?host=127.0.0.1,127.0.0.1&port={p1},{p2}",
    "SQLAlchemy": "postgresql+psycopg://postgres@/{db}?host=127.0.0.1:{p1}&host=127.0.0.1:{p2}",
}


@pytest.mark.parametrize(("form", "end"), [("libpq", "freeze"), ("lists", "crash"), ("SQLAlchemy", "crash")])
def test_after_a_promotion_every_machine_is_looked_after_within_two_leases(
    tmp_path: Path, primary: PostgresServer, form: str, end: str
) -> None:
    async def scenario() -> None:
        url = primary.new_database()
        database = url.rpartition("/")[2]
        with running_postgresql(primary_port=primary.port) as standby:
            replicated(primary)
            place = both(FORMS[form], primary, standby, database)
            own = {"KEYLIME_VERIFIER_DATABASE_URL": place}
            agents = [AttestingAgent(f"agent-{number}", verifier_authority()) for number in range(8)]
            async with verifiers(tmp_path, url, OPTIONS, own, own) as site:
                apis = [await site.api(process) for process in site.processes]
                for agent in agents:
                    agent.start()
                    await apis[0].add(agent)
                await eventually(lambda: all(passes(url).values()), limit_s=LIMIT_S)

                await asyncio.to_thread(
                    primary.freeze if end == "freeze" else lambda: primary.stop("immediate")
                )
                await asyncio.to_thread(standby.promote)
                since_promotion = OwnTime(*(process.pid for process in site.processes))
                there = standby.url_on(standby.port, database)
                before = passes(there)
                await eventually(
                    lambda: all(count > before[agent] for agent, count in passes(there).items()),
                    limit_s=LIMIT_S,
                )
                assert since_promotion.passed_s() < 2 * LEASE_S
                await eventually(lambda: len(listeners(there)) == 2, limit_s=LIMIT_S)
                await check_administration(site, agents[0], there)
            for agent in agents:
                await agent.stop()

    asyncio.run(scenario())


def passes(url: str) -> Counter[str]:
    """How often each agent has passed, as it is written."""
    with psycopg.connect(url) as connection:
        return Counter(
            dict(connection.execute("SELECT agent_id, attestation_count FROM progress").fetchall())
        )


def listeners(url: str) -> list[tuple[int]]:
    """The sessions that hear of changes."""
    query = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' OR (query = '' AND state = 'idle')"
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


async def check_administration(site: Verifiers, agent: AttestingAgent, url: str) -> None:
    """What is stopped and added at one takes effect at the other."""
    for process in site.processes:
        api = await site.api(process)
        assert (await api.admin("PUT", f"/v2.5/agents/{agent.agent_id}/stop")).code == 200
        asked = [len(agent.questions)]

        async def is_quiet(asked: list[int] = asked) -> bool:
            await asyncio.sleep(1.5)
            asked.append(len(agent.questions))
            return asked[-1] == asked[-2]

        await eventually(is_quiet, limit_s=LIMIT_S)
        assert (await api.admin("PUT", f"/v2.5/agents/{agent.agent_id}/reactivate")).code == 200
        await until_asked(agent)
    assert passes(url)


async def until_asked(agent: AttestingAgent) -> None:
    before = len(agent.questions)
    await eventually(lambda: len(agent.questions) > before, limit_s=LIMIT_S)


def test_another_server_means_that_everything_may_have_changed(
    tmp_path: Path, primary: PostgresServer
) -> None:
    """Whatever the counters say: they may have been lost and counted up again to the same numbers."""

    async def scenario() -> None:
        database = opened(primary.new_database())
        await prepare_schema(database, SCHEMA, migrate=True)
        called: Counter[Topic] = Counter()
        changes = ChangeFeed(database, {topic: functools.partial(called.update, [topic]) for topic in Topic})
        watching = asyncio.create_task(changes.run())
        await eventually(lambda: len(called) == len(Topic), limit_s=LIMIT_S)
        before = Counter(called)
        await asyncio.to_thread(primary.stop)
        await asyncio.to_thread(primary.start)
        await eventually(lambda: all(called[topic] > before[topic] for topic in Topic), limit_s=LIMIT_S)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await database.close()

    asyncio.run(scenario())
