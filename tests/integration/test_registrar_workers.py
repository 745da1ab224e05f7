"""A registrar with several worker processes: any of them takes any step of a registration."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.fakes.client_session import client_session
from tests.fakes.metrics_page import free_port, scrape
from tests.fakes.running_registrar import RunningRegistrar, install_certificates, registrar_authority
from tests.fakes.server_process import ServerProcess
from tests.fakes.software_identity import SoftwareIdentity
from tests.fakes.tls_material import client_context

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs: there is one worker for each"
)


def registrar(directory: Path, **environ: str) -> ServerProcess:
    install_certificates(directory)
    return ServerProcess("keylime_registrar", directory, KEYLIME_REGISTRAR_MAX_WORKERS="2", **environ)


async def enrol_all(
    process: ServerProcess, directory: Path, identities: dict[str, SoftwareIdentity]
) -> set[str]:
    """Registers and activates, each step over a connection of its own; the ids that are listed then."""
    context = client_context(registrar_authority(), registrar_authority().issue("operator"))
    port, tls_port = process.ports()
    async with client_session({"headers": {"Connection": "close"}}) as session:
        api = RunningRegistrar(port, tls_port, directory, session, context)
        await asyncio.gather(*(api.enrol(name, identity) for name, identity in identities.items()))
    seen = []
    for _ in range(8):
        # A session that ends drops its TLS connection; one that is asked to close waits for the other end.
        async with client_session() as session:
            api = RunningRegistrar(port, tls_port, directory, session, context)
            seen.append(set((await api.admin("GET", "/v2.5/agents/")).results["uuids"]))
    assert all(ids == seen[0] for ids in seen), "every worker lists the same"
    return seen[0]


async def proven(port: int) -> float:
    """How many proofs all workers have counted."""
    return (await scrape(port)).value("keylime_registrar_activations_total", result="proven")


def test_steps_of_a_registration_may_go_to_different_workers(tmp_path: Path) -> None:
    port = free_port()
    with registrar(tmp_path, KEYLIME_REGISTRAR_METRICS_PORT=str(port)) as process:
        assert "with 2 worker processes" in process.line("Listening on.*")[0]
        identities = {f"agent-{number}": SoftwareIdentity() for number in range(6)}
        assert asyncio.run(enrol_all(process, tmp_path, identities)) == set(identities)
        assert [asyncio.run(proven(port)) for _ in range(4)] == [6] * 4, "of both, whichever is asked"
        first, second = process.children
        os.kill(second, signal.SIGKILL)
        process.line(r"worker \d ended \(SIGKILL\), starting another in 1 s")
        assert asyncio.run(enrol_all(process, tmp_path, identities)) == set(identities)
        assert first in process.children
        assert asyncio.run(proven(port)) == 12, "what the one that was killed has counted stays"
        status, took_s = process.stop()
        assert (status, took_s < 5) == (0, True)


def test_a_port_in_use_is_one_line_with_workers_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = str(taken.getsockname()[1])
        with registrar(tmp_path, KEYLIME_REGISTRAR_PORT=port) as process:
            assert process.ended() == 1
            assert process.text.splitlines()[-1].startswith("keylime_registrar: error: cannot listen on")
            assert process.text.count("error:") == 1
