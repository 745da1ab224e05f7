"""Worker processes, and registrars on one database: each takes up what another has begun."""

import asyncio
import base64
import functools
import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from keylime.identifiers import AgentId
from tests.fakes.client_session import client_session
from tests.fakes.databases import DatabaseServer, rows_in
from tests.fakes.running_registrar import (
    Answer,
    RunningRegistrar,
    install_certificates,
    registrar_authority,
)
from tests.fakes.server_process import ServerProcess
from tests.fakes.software_identity import SoftwareIdentity
from tests.fakes.strangers import calling_from, hollow_registration, prefix_address
from tests.fakes.tls_material import client_context

AGENT = AgentId("d432fbb3-d2f1-4a97-9ef7-75bd81c0aaaa")
PATH = f"/v2.5/agents/{AGENT}"


@functools.cache
def machine(number: int = 0) -> SoftwareIdentity:
    return SoftwareIdentity()


def secret_in(answer: Answer) -> bytes:
    assert answer.code == 200, answer
    return machine().open(base64.b64decode(answer.results["blob"]))


def tag_for(answer: Answer, agent_id: str = AGENT) -> dict[str, str]:
    return {"auth_tag": machine().answer(answer.results["blob"], agent_id)}


def with_registrars(
    directory: Path,
    act: Callable[[list[RunningRegistrar]], Awaitable[None]],
    *,
    count: int = 2,
    **environ: str,
) -> None:
    """Several registrars that serve as processes, on one database."""
    shared = {"KEYLIME_REGISTRAR_DATABASE_URL": f"sqlite:///{directory / 'shared.sqlite'}", **environ}

    async def scenario(processes: list[ServerProcess]) -> None:
        context = client_context(registrar_authority(), registrar_authority().issue("operator"))
        async with AsyncExitStack() as stack:
            registrars = []
            for process in processes:
                ports = await asyncio.to_thread(process.ports)
                # Each call is a connection of its own: with several workers, any of them may get it.
                session = await stack.enter_async_context(client_session(force_close=True))
                registrars.append(RunningRegistrar(ports[0], ports[1], directory, session, context))
            await act(registrars)

    processes = []
    try:
        for number in range(count):
            home = directory / f"registrar-{number}"
            home.mkdir()
            install_certificates(home)
            workers = {"KEYLIME_REGISTRAR_MAX_WORKERS": "1", **shared}
            process = ServerProcess("keylime_registrar", home, **workers)
            process.start()  # all at once, as at a power-up: one makes the tables and keys
            processes.append(process)
        asyncio.run(scenario(processes))
        for process in processes:
            assert "Traceback" not in process.text
    finally:
        for process in processes:
            process.kill()


async def repeated_everywhere(registrars: list[RunningRegistrar]) -> None:
    """One agent registers again and again, at any of them; whichever credential it answers to proves it."""
    first = await asyncio.gather(
        *(registrars[n % len(registrars)].plain("POST", PATH, machine().registration()) for n in range(12))
    )
    assert len({secret_in(answer) for answer in first}) == 1
    assert (await registrars[-1].plain("PUT", PATH, tag_for(first[0]))).code == 200
    for registrar in registrars:
        # An answer that got lost is asked for again, wherever.
        assert (await registrar.plain("PUT", PATH, tag_for(first[0]))).code == 200
        assert (await registrar.admin("GET", PATH)).results["regcount"] == 1
    second = await registrars[0].plain("POST", PATH, machine().registration())
    assert secret_in(second) != secret_in(first[0])
    for registrar in registrars:
        assert (await registrar.plain("PUT", PATH, tag_for(first[0]))).code == 400, "a replay"
    assert (await registrars[-1].plain("PUT", PATH, tag_for(second))).code == 200
    assert (await registrars[0].admin("GET", PATH)).results["regcount"] == 2


async def at_once(registrars: list[RunningRegistrar]) -> None:
    """The same tag comes to all of them in the same moment, again and again."""
    for number in range(10):
        agent_id = f"agent-{number}"
        path = f"/v2.5/agents/{agent_id}"
        registered = await registrars[0].plain("POST", path, machine().registration())
        tag = tag_for(registered, agent_id)
        answers = await asyncio.gather(
            *(registrars[n % len(registrars)].plain("PUT", path, tag) for n in range(6))
        )
        assert [answer.code for answer in answers] == [200] * 6
        assert (await registrars[0].admin("GET", path)).results["regcount"] == 1


def test_r10_r14_two_registrars_on_one_sqlite_file(tmp_path: Path) -> None:
    with_registrars(tmp_path, repeated_everywhere)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs: there is one worker for each")
def test_r10_r14_two_workers_of_one_registrar(tmp_path: Path) -> None:
    async def act(registrars: list[RunningRegistrar]) -> None:
        await repeated_everywhere(registrars)
        await at_once(registrars)

    with_registrars(tmp_path, act, count=1, KEYLIME_REGISTRAR_MAX_WORKERS="2")


def test_r10_r14_two_registrars_on_a_server(tmp_path: Path, server: DatabaseServer) -> None:
    url = server.new_database()

    async def act(registrars: list[RunningRegistrar]) -> None:
        await repeated_everywhere(registrars)
        await at_once(registrars)
        keys = rows_in(url, "SELECT key_id, length(secret) FROM challenge_keys")
        assert keys == [(1, 32)], "both have the same"

    with_registrars(tmp_path, act, KEYLIME_REGISTRAR_DATABASE_URL=url)


def test_r20_r14_strangers_from_64_prefixes_neither_displace_nor_shut_out_an_agent(tmp_path: Path) -> None:
    """They register what they like, the agent's id and the agent's own words included, and guess tags."""

    async def flood(registrar: RunningRegistrar, prefix: int) -> list[int]:
        url = f"http://127.0.0.1:{registrar.port}"
        codes = []
        async with calling_from(prefix_address(prefix)) as session:
            for number in range(8):
                hollow = hollow_registration(machine(1))
                body = hollow if number % 2 else machine().registration(ip=f"10.0.0.{number}")
                agent_id = AGENT if number % 3 else f"stranger-{prefix}-{number}"
                for method, sent in (("POST", body), ("PUT", {"auth_tag": "0" * 96})):
                    async with session.request(
                        method, f"{url}/v2.5/agents/{agent_id}", json=sent
                    ) as response:
                        codes.append(response.status)
        return codes

    async def act(registrars: list[RunningRegistrar]) -> None:
        first, second = registrars
        async with calling_from(prefix_address(5000)) as session:
            url = f"http://127.0.0.1:{first.port}{PATH}"
            async with session.post(url, json=machine().registration()) as response:
                before = Answer(response.status, await response.json())
            codes = await asyncio.gather(
                *(flood(registrars[prefix % 2], prefix) for prefix in range(64)),
            )
            assert {code for each in codes for code in each} <= {200, 400, 429}
            listed = await first.admin("GET", "/v2.5/agents/")
            assert listed.results == {"uuids": []}
            # A newcomer, from an address of its own, and the one that has waited all the time.
            async with calling_from(prefix_address(5001)) as newcomer:
                fresh = RunningRegistrar(second.port, 0, tmp_path, newcomer, first.administrators)
                await fresh.enrol("newcomer", machine(2))
            async with session.put(url, json=tag_for(before)) as response:
                assert response.status == 200
        listed = await second.admin("GET", "/v2.5/agents/")
        assert listed.results == {"uuids": [AGENT, "newcomer"]}
        with closing(sqlite3.connect(tmp_path / "shared.sqlite")) as connection:
            query = "SELECT count(DISTINCT network) FROM pending_registrations"
            assert connection.execute(query).fetchone() == (64,)

    with_registrars(tmp_path, act)
