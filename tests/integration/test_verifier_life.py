"""The verifier under a service manager: ready, watched, reloaded, stopped, migrated; also with workers."""

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.eventual import eventually
from tests.fakes.kept_connection import ask, certificate_of, connected
from tests.fakes.notify_socket import NotifySocket
from tests.fakes.running_verifier import (
    RunningVerifier,
    install_certificates,
    running_verifier,
    verifier_authority,
)
from tests.fakes.server_process import ServerProcess
from tests.fakes.tls_material import SERVER_AUTH, Issued, client_context
from tests.fakes.verifier_process import VerifierProcess, Verifiers

WORKERS = {
    "KEYLIME_VERIFIER_NUM_WORKERS": "2",
    "KEYLIME_VERIFIER_LEASE": "2",
    "KEYLIME_VERIFIER_QUOTE_INTERVAL": "0.2",
}
# Runs the program in its arguments, with less patience for its workers.
IMPATIENT = """
import runpy, sys, keylime.service.supervisor
keylime.service.supervisor._SILENCE_LIMIT_S = 2
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def verifier(directory: Path, *arguments: str, workers: int = 1, **environ: str) -> ServerProcess:
    install_certificates(directory)
    options = {"KEYLIME_VERIFIER_NUM_WORKERS": str(workers), "KEYLIME_VERIFIER_TLS_DIR": "default"}
    return ServerProcess("keylime_verifier", directory, *arguments, **(options | environ))


def install(directory: Path, side: str, issued: Issued) -> None:
    (directory / "cv_ca" / f"{side}-cert.crt").write_text(issued.pem)
    key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "cv_ca" / f"{side}-private.pem").write_bytes(key)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_service_manager_hears_ready_alive_reloading_and_stopping(tmp_path: Path, workers: int) -> None:
    with (
        NotifySocket(tmp_path) as manager,
        verifier(tmp_path, workers=workers, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="200000") as process,
    ):
        assert "Listening on 127.0.0.1:" in manager.until("READY=1")["STATUS"]
        assert manager.messages[0].get("READY") == "1", "nothing is said before it is ready"
        manager.until("WATCHDOG=1", count=3)
        (port,) = process.ports()
        with connected(port, client_context(verifier_authority())) as connection:
            for path, status in (("/healthz", "alive"), ("/readyz", "ready")):
                code, _, body = ask(connection, path)
                assert (code, body) == (
                    200,
                    f'{{"code":200,"status":"{status}","results":{{"problems":{{}}}}}}',
                )
        renewed = verifier_authority().issue("renewed", usages=(SERVER_AUTH,))
        install(tmp_path, "server", renewed)
        process.hang_up()
        manager.until("RELOADING=1")
        manager.until("READY=1", count=2)
        # Each connection is taken by any of the workers.
        assert {certificate_of(port) for _ in range(8)} == {renewed.certificate}
        (tmp_path / "cv_ca" / "server-cert.crt").write_text("no certificate")
        process.hang_up()
        manager.until("READY=1", count=3)
        assert process.text.count("nothing was reloaded") == 1
        assert str(tmp_path / "cv_ca" / "server-cert.crt") in process.line(".*nothing was reloaded.*")[0]
        assert certificate_of(port) == renewed.certificate
        code, took_s = process.stop()
        assert (code, took_s < 5) == (0, True)
        manager.until("STOPPING=1")
        assert process.text.count(" - reloaded") == 1
        assert "Traceback" not in process.text


def test_with_workers_the_watchdog_is_still_told_when_one_of_them_ends(tmp_path: Path) -> None:
    with (
        NotifySocket(tmp_path) as manager,
        verifier(tmp_path, workers=2, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="400000") as process,
    ):
        manager.until("READY=1")
        os.kill(process.children[0], signal.SIGKILL)
        process.line(r"worker \d ended \(SIGKILL\)")
        manager.until("WATCHDOG=1", count=len(manager.messages) + 3)
        assert process.stop()[0] == 0


@asynccontextmanager
async def two_workers(directory: Path, agents: list[AttestingAgent]) -> AsyncIterator[Verifiers]:
    """A verifier that takes a worker for dead after two seconds of silence, and attests `agents`."""
    install_certificates(directory)
    process = VerifierProcess(directory, "verifier", WORKERS, prefix=[sys.executable, "-c", IMPATIENT])
    database = f"sqlite:///{directory / 'cv_data.sqlite'}"
    with process:
        await process.listening()
        async with Verifiers(directory, database, [process]) as site:
            await site.until_shared(2)
            for agent in agents:
                await (await site.api(process)).add(agent)
            yield site


async def until_asked(agents: list[AttestingAgent]) -> None:
    """Returns when each agent has been asked twice more."""
    before = [len(agent.questions) for agent in agents]
    await eventually(
        lambda: all(len(agent.questions) >= n + 2 for agent, n in zip(agents, before, strict=True))
    )


def test_a_worker_that_hangs_is_replaced_and_one_that_keeps_dying_is_not_started_all_the_time(
    tmp_path: Path,
) -> None:
    async def play() -> None:
        async with AsyncExitStack() as stack:
            names = [f"agent-{number}" for number in range(4)]
            agents = [
                await stack.enter_async_context(AttestingAgent(name, verifier_authority())) for name in names
            ]
            site = await stack.enter_async_context(two_workers(tmp_path, agents))
            (process,) = site.processes
            await until_asked(agents)
            healthy, hanging = process.children
            os.kill(hanging, signal.SIGSTOP)
            await asyncio.to_thread(process.line, r"worker 1 was not heard of for 2 s and is killed")
            await until_asked(agents)
            await eventually(lambda: len(process.children) == 2)
            assert await site.until_shared(2) < 10

            deaths = 0
            deadline = time.monotonic() + 4
            while time.monotonic() < deadline:
                if newcomers := set(process.children) - {healthy}:
                    os.kill(newcomers.pop(), signal.SIGKILL)
                    deaths += 1
                    await eventually(lambda: process.children == [healthy])
                await until_asked(agents)
            assert 1 <= deaths <= 3, "after pauses of 2 and 4 seconds"
            assert healthy in process.children
            assert await process.end() == 0

    asyncio.run(play())


def test_agents_are_shown_the_new_certificate_and_no_round_fails(tmp_path: Path) -> None:
    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as agent,
            running_verifier(tmp_path) as running,
        ):
            await running.add(agent)
            await running.until_passing(agent, rounds=3)
            assert set(agent.callers) == {"client"}
            install(tmp_path, "client", verifier_authority().issue("renewed client"))
            agent.gate = asyncio.Event()
            await eventually(lambda: agent.held > 0)
            reload(running)
            agent.gate.set()
            agent.gate = None
            await eventually(lambda: agent.callers[-1] == "renewed client")
            await running.until_passing(agent, rounds=3)
            assert sorted(set(agent.callers), key=agent.callers.index) == ["client", "renewed client"]
            status = await running.status(agent)
            assert status["attestation_count"] >= len(agent.questions) - 1, "each round was a pass"

    asyncio.run(play())


def reload(running: RunningVerifier) -> None:
    environ = {"KEYLIME_DIR": str(running.config.work_dir), "KEYLIME_VERIFIER_TLS_DIR": "default"}
    assert running.verifier is not None
    running.verifier.reload(environ)


def test_a_database_that_cannot_be_written_and_a_loop_that_fails_are_not_ready(tmp_path: Path) -> None:
    async def play() -> None:
        async with running_verifier(tmp_path) as running:
            nobody = client_context(verifier_authority())
            assert (await running.call("GET", "/readyz", nobody)).code == 200
            await running.change("ALTER TABLE keylime_verifier_schema RENAME TO away")

            async def is_not_ready() -> bool:
                answer = await running.call("GET", "/readyz", nobody)
                return (answer.code, answer.body["status"]) == (503, "not ready: database")

            await eventually(is_not_ready)
            assert (await running.call("GET", "/healthz", nobody)).code == 200
            await running.change("ALTER TABLE away RENAME TO keylime_verifier_schema")

    asyncio.run(play())


def test_migrating_says_from_where_to_where_and_serves_nobody(tmp_path: Path) -> None:
    database = tmp_path / "cv_data.sqlite"

    def run(*arguments: str) -> tuple[int, str]:
        with verifier(tmp_path, *arguments, KEYLIME_VERIFIER_AUTO_MIGRATE_DB="False") as process:
            return process.ended(), process.text

    status, text = run()
    assert (status, "run `keylime_verifier --migrate`" in text.splitlines()[-1]) == (1, True)
    status, text = run("--migrate")
    assert status == 0
    assert text.startswith(f"database sqlite:///{database} migrated from schema none to v")
    assert len(text.splitlines()) == 1
    status, text = run("--migrate")
    assert (status, f"database sqlite:///{database} is up to date" in text) == (0, True)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM agents").fetchone() == (0,)


def test_it_stops_in_time_while_its_database_is_locked_and_clients_are_stuck(tmp_path: Path) -> None:
    with verifier(tmp_path) as process:
        (port,) = process.ports()
        operator = client_context(verifier_authority(), verifier_authority().issue("operator"))
        with (
            connected(port, operator) as stuck,
            connected(port) as half_open,
            connected(port, operator) as waiting,
            connected(port, operator) as other_client,
            closing(sqlite3.connect(tmp_path / "cv_data.sqlite", isolation_level=None, timeout=20)) as other,
        ):
            half_open.sendall(b"\x16\x03\x01")
            other.execute("BEGIN IMMEDIATE")
            stuck.sendall(b"POST /v2.5/agents/a HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            waiting.sendall(b"DELETE /v2.5/agents/a HTTP/1.1\r\nHost: x\r\n\r\n")
            assert ask(other_client, "/healthz")[0] == 200  # by now the others are under way
            status, took_s = process.stop()
            assert status == 0, process.text
            assert took_s < 5
