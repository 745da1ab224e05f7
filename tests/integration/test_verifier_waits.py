"""A database that does not answer, answers late, or only to some: every wait ends, and somebody says why."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.databases import SERVERS, DatabaseServer, running_server
from tests.fakes.eventual import eventually
from tests.fakes.postgresql import PostgresServer, running_postgresql
from tests.fakes.running_verifier import (
    Answer,
    RunningVerifier,
    enrolment,
    install_certificates,
    verifier_authority,
)
from tests.fakes.tcp_proxy import TcpProxy
from tests.fakes.verifier_process import VerifierProcess, Verifiers, verifiers

LEASE_S = 2.0
STOP_S = 5.0
CALL_LIMIT_S = 9.0  # callers are told after three seconds; less than work of our own waits
LIMIT_S = 100.0  # for things that take seconds on an idle machine
OPTIONS = {
    "KEYLIME_VERIFIER_LEASE": str(LEASE_S),
    "KEYLIME_VERIFIER_QUOTE_INTERVAL": "0.3",
    "KEYLIME_VERIFIER_MAX_RETRIES": "100000",
}
NOTHING_DONE = "nothing was done"


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    with running_server(request.param) as running:
        try:
            yield running
        finally:
            with contextlib.suppress(FileNotFoundError):  # it may have been stopped
                running.thaw()


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with running_postgresql() as server:
        yield server


@asynccontextmanager
async def one_verifier(directory: Path, url: str | None) -> AsyncIterator[tuple[RunningVerifier, Verifiers]]:
    async with verifiers(directory, url, OPTIONS, {}) as site:
        yield await site.api(site.processes[0]), site


async def answer_in_time(api: RunningVerifier, method: str, path: str, body: object = None) -> Answer:
    """The answer, which comes long before work of our own would be given up."""
    async with asyncio.timeout(CALL_LIMIT_S):
        return await api.admin(method, path, body)


async def problems(api: RunningVerifier) -> dict[str, str]:
    """What /readyz says."""
    answer = await api.admin("GET", "/readyz")
    found: dict[str, str] = answer.results["problems"]
    assert (answer.code == 200) == (found == {})
    return found


async def until_problem(api: RunningVerifier, name: str, words: str) -> None:
    async def is_told() -> bool:
        await asyncio.sleep(0.1)
        return words in (await problems(api)).get(name, "")

    await eventually(is_told, limit_s=LIMIT_S)


async def until_ready(api: RunningVerifier) -> None:
    async def is_ready() -> bool:
        await asyncio.sleep(0.1)
        return await problems(api) == {}

    await eventually(is_ready, limit_s=LIMIT_S)


async def stopped_in_time(process: VerifierProcess) -> None:
    status, took_s = await asyncio.to_thread(process.stop)
    assert (status, took_s < STOP_S, "Traceback" in process.text) == (0, True, False), took_s


async def is_refused(api: RunningVerifier, agent_id: str = "new") -> None:
    """An agent is not added, and the caller is told so."""
    async with AttestingAgent(agent_id, verifier_authority()) as agent:
        answer = await answer_in_time(api, "POST", f"/v2.5/agents/{agent_id}", enrolment(agent))
        assert (answer.code, answer.results.get("outcome")) == (503, NOTHING_DONE)


async def check_silence(api: RunningVerifier, site: Verifiers) -> None:
    """Callers learn that nothing was done, whoever watches learns why, and a stop is a stop."""
    await is_refused(api)
    answer = await answer_in_time(api, "GET", "/v2.5/agents/new")
    assert (answer.code, answer.results.get("outcome")) == (503, NOTHING_DONE)
    await until_problem(api, "lease", "see to the database")
    assert "database" in await problems(api)
    (process,) = site.processes
    await asyncio.to_thread(process.line, "ERROR - not ready: lease: ")
    await stopped_in_time(process)


def test_a_server_whose_processes_are_stopped_is_given_up(tmp_path: Path, server: DatabaseServer) -> None:
    async def scenario() -> None:
        async with one_verifier(tmp_path, server.new_database()) as (api, site):
            await until_ready(api)
            server.freeze()
            await check_silence(api, site)

    asyncio.run(scenario())


def test_a_line_that_is_dead_behind_a_pooler_is_given_up(tmp_path: Path, server: DatabaseServer) -> None:
    async def scenario() -> None:
        url = server.new_database()
        async with TcpProxy(server.port) as line:
            place = server.url_on(line.port, url.rpartition("/")[2])
            async with verifiers(tmp_path, url, OPTIONS, {"KEYLIME_VERIFIER_DATABASE_URL": place}) as site:
                api = await site.api(site.processes[0])
                await until_ready(api)
                line.cut()
                await check_silence(api, site)

    asyncio.run(scenario())


def test_one_that_is_silent_at_the_start_does_not_keep_it_from_stopping(
    tmp_path: Path, server: DatabaseServer
) -> None:
    async def scenario() -> None:
        url = server.new_database()
        async with one_verifier(tmp_path, url) as (_, site):
            (process,) = site.processes
            await stopped_in_time(process)
            with server.holding(url, server.lock_table("members")):
                process.start()
                await asyncio.to_thread(process.line, "trying again")
                await stopped_in_time(process)

    asyncio.run(scenario())


LOCKS = {
    "agents": "",
    "a row of agents": "SELECT * FROM agents FOR UPDATE",
    "shards": "",
    "rows of shards": "SELECT * FROM shards FOR UPDATE",
    "the counters": "SELECT * FROM change_counters FOR UPDATE",
}


@pytest.mark.parametrize("what", LOCKS)
def test_whoever_locks_is_named_and_callers_learn_that_nothing_was_done(
    tmp_path: Path, server: DatabaseServer, what: str
) -> None:
    async def scenario() -> None:
        url = server.new_database()
        async with (
            AttestingAgent("agent", verifier_authority()) as agent,
            one_verifier(tmp_path, url) as (api, site),
        ):
            await api.add(agent)
            await until_ready(api)
            (process,) = site.processes
            lock = LOCKS[what] or server.lock_table(what, for_writers=what == "shards")
            with server.holding(url, lock) as holder:
                await until_problem(api, "database", "keeps ")
                await asyncio.to_thread(process.line, rf"locked by session {holder} \(")
                if what in ("agents", "the counters"):
                    await is_refused(api)
            await until_ready(api)
            assert (await api.admin("GET", "/v2.5/agents/new")).code == 404

    asyncio.run(scenario())


def test_a_commit_that_nobody_confirms_is_told_apart(tmp_path: Path, postgres: PostgresServer) -> None:
    async def scenario() -> None:
        url = postgres.new_database()
        async with (
            AttestingAgent("agent", verifier_authority()) as agent,
            one_verifier(tmp_path, url) as (api, _),
        ):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'away'")
                connection.execute("SELECT pg_reload_conf()")
            path = f"/v2.5/agents/{agent.agent_id}"

            async def is_unknown() -> bool:
                answer = await answer_in_time(api, "POST", path, enrolment(agent))
                assert answer.code in (200, 409, 503)
                return answer.code == 503 and answer.results["outcome"] == "unknown"

            await eventually(is_unknown, limit_s=LIMIT_S)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
                connection.execute("SELECT pg_reload_conf()")

            async def is_there() -> bool:
                return (await api.admin("GET", path)).code == 200

            await eventually(is_there, limit_s=LIMIT_S)

    asyncio.run(scenario())


def test_callers_do_not_wait_for_another_process_that_keeps_a_sqlite_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with one_verifier(tmp_path, None) as (api, site):
            await until_ready(api)
            with contextlib.closing(sqlite3.connect(tmp_path / "cv_data.sqlite")) as other:
                other.execute("BEGIN IMMEDIATE")
                await is_refused(api)
                await until_problem(api, "database", "another session or process keeps it from being written")
                await asyncio.to_thread(site.processes[0].line, "ERROR - not ready: database: another")
            await until_ready(api)
            await asyncio.to_thread(site.processes[0].line, "INFO - database: well again")
            assert (await api.admin("GET", "/v2.5/agents/new")).code == 404
            await stopped_in_time(site.processes[0])

    asyncio.run(scenario())


@contextmanager
def held_by_the_dead(url: str, member: str) -> Iterator[None]:
    """A session like one of a verifier that has stopped inside a transaction; what it holds ends with it."""
    connection = psycopg.connect(
        url,
        application_name=f"keylime_verifier:{member}:1",
        options="-c idle_in_transaction_session_timeout=0",
    )
    with contextlib.closing(connection):
        theirs = f"SELECT * FROM shards WHERE owner = '{member}' ORDER BY shard LIMIT 50 FOR UPDATE"  # noqa: S608
        connection.execute(theirs)
        connection.execute("SELECT * FROM change_counters FOR UPDATE")
        yield


def test_the_sessions_of_a_dead_member_end_and_its_shards_are_taken_over(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    async def scenario() -> None:
        url = postgres.new_database()
        async with verifiers(tmp_path, url, OPTIONS, {}, {}) as site:
            survivor, dying = site.processes
            members = f"SELECT member_id FROM members WHERE name ~ '[^0-9]{dying.pid}$'"  # noqa: S608
            ((member,),) = site.query(members)
            with held_by_the_dead(url, str(member)):
                dying.kill()
                ended = r"ended session \d+ of keylime_verifier:[0-9a-f]{32}:1 "
                await asyncio.to_thread(survivor.line, ended)
                await site.until_shared(1, limit_s=LIMIT_S)
                await until_ready(await site.api(survivor))

    asyncio.run(scenario())


def test_who_starts_is_not_kept_out_by_a_member_that_died(tmp_path: Path, postgres: PostgresServer) -> None:
    async def scenario() -> None:
        url = postgres.new_database()
        async with one_verifier(tmp_path, url) as (_, site):
            (process,) = site.processes
            ((member,),) = site.query("SELECT member_id FROM members")
            with held_by_the_dead(url, str(member)):
                process.kill()
                process.start()
                await process.listening()
                await site.until_shared(1, limit_s=LIMIT_S)

    asyncio.run(scenario())


def test_shards_that_a_stranger_keeps_from_being_taken_are_told(
    tmp_path: Path, server: DatabaseServer
) -> None:
    async def scenario() -> None:
        url = server.new_database()
        async with verifiers(tmp_path, url, OPTIONS, {}, {}) as site:
            survivor, dying = site.processes
            api = await site.api(survivor)
            with server.holding(url, "SELECT * FROM shards FOR UPDATE"):
                dying.kill()
                await until_problem(api, "shards", "128 shards that nobody looks after cannot be taken over")
                await asyncio.to_thread(survivor.line, r"their rows are locked by: session \d+ \(")
            await site.until_shared(1, limit_s=LIMIT_S)
            await until_ready(api)

    asyncio.run(scenario())


def test_a_full_disk_is_not_ready_and_callers_learn_that_nothing_was_done(tmp_path: Path) -> None:
    """The database is on a small file system of the verifier's own."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare (Debian package util-linux), to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    mount = [
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -t tmpfs -o size=8m,mode=700 none "$0" && exec "$@"',
        str(small),
    ]
    options = {**OPTIONS, "KEYLIME_VERIFIER_DATABASE_URL": f"sqlite:///{small}/cv.sqlite"}
    if subprocess.run([*mount, "true"], capture_output=True).returncode != 0:  # noqa: S603
        pytest.skip("this environment does not let us mount a file system")

    async def scenario() -> None:
        install_certificates(tmp_path)
        with VerifierProcess(tmp_path, "small", options, prefix=mount) as process:
            await process.listening()
            async with Verifiers(tmp_path, f"sqlite:///{tmp_path}/unused", [process]) as site:
                api = await site.api(process)
                await until_ready(api)
                ballast = Path(f"/proc/{process.pid}/root{small}/ballast")
                await asyncio.to_thread(fill, ballast)
                await until_problem(api, "disk", "the disk is full: make room")
                await asyncio.to_thread(process.line, "ERROR - not ready: disk: the disk is full")
                await is_refused_when_full(api)
                await asyncio.to_thread(ballast.unlink)
                await until_ready(api)
                await stopped_in_time(process)

    asyncio.run(scenario())


def fill(ballast: Path) -> None:
    """Until there is no room left."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


async def is_refused_when_full(api: RunningVerifier) -> None:
    """Agents are added until there is no room left in what the database has already."""
    for number in range(2000):
        async with AttestingAgent(f"new-{number}", verifier_authority()) as agent:
            path = f"/v2.5/agents/{agent.agent_id}"
            answer = await answer_in_time(
                api, "POST", path, enrolment(agent, metadata='{"x": "' + 20000 * "x" + '"}')
            )
            if answer.code == 503:
                assert answer.results["outcome"] == NOTHING_DONE
                assert (await api.admin("GET", path)).code == 404
                return
            assert answer.code == 200
    raise AssertionError("the disk was never full")
