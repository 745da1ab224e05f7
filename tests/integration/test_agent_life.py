"""The agent under a service manager: ready, watched, reloaded, stopped; and a start without a /proc."""

import asyncio
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.agent_process import AgentProcess, Registrar
from tests.fakes.client_session import client_session
from tests.fakes.notify_socket import NotifySocket
from tests.fakes.swtpm import SoftwareTpm
from tests.fakes.tls_material import Authority, client_context, plain_leaf


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    with SoftwareTpm.manufactured(tmp_path_factory.mktemp("tpm")) as made:
        yield made


def agent(directory: Path, tpm: SoftwareTpm, registrar_port: int, manager: NotifySocket) -> AgentProcess:
    process = AgentProcess(
        directory,
        tpm.tcti,
        uuid="agent-1",
        registrar_port=registrar_port,
        ima_ml_path=directory / "ima",
        config=directory / "agent.conf",
        tpm_encryption_alg="ecc",
        tpm_signing_alg="ecdsa",
    )
    process.environment |= {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "400000"}
    process.environment["KEYLIME_LOGGING_CONFIG"] = str(directory / "logging.conf")
    return process


async def is_served(port: int, authority: Authority) -> bool:
    """Whether a client of this authority gets an answer."""
    context = client_context(authority, authority.issue("verifier"))
    context.verify_mode = ssl.CERT_NONE
    try:
        async with (
            client_session() as session,
            session.get(f"https://127.0.0.1:{port}/version", ssl=context) as answer,
        ):
            return answer.status == 200
    except aiohttp.ClientError:
        return False


def test_it_tells_the_service_manager_and_takes_up_new_authorities(tmp_path: Path, tpm: SoftwareTpm) -> None:
    former, later = Authority("former"), Authority("later")
    trusted = tmp_path / "cv_ca" / "cacert.crt"
    trusted.parent.mkdir()
    former.write(trusted)
    for name in ("ima", "agent.conf", "logging.conf"):
        (tmp_path / name).write_text("")

    async def scenario(manager: NotifySocket) -> None:
        server, registrar_port = Registrar().serve()
        async with agent(tmp_path, tpm, registrar_port, manager) as process:
            ready = await asyncio.to_thread(manager.until, "READY=1")
            assert "Listening on https://127.0.0.1:" in ready["STATUS"]
            port = await process.port()
            await asyncio.to_thread(manager.until, "WATCHDOG=1", count=3)
            await process.line("is registered and active")
            assert [await is_served(port, ca) for ca in (former, later)] == [True, False]
            later.write(trusted)
            (tmp_path / "agent.conf").write_text("[agent]\nenable_insecure_payload = true\n")
            process.hang_up()
            await asyncio.to_thread(manager.until, "RELOADING=1")
            await asyncio.to_thread(manager.until, "READY=1", count=2)
            assert [await is_served(port, ca) for ca in (former, later)] == [False, True]
            await process.line("[agent] enable_insecure_payload has changed, which needs a restart")
            (tmp_path / "server-cert.crt").write_text(plain_leaf(later, "agent-1").pem)
            process.hang_up()
            await process.line("server-cert.crt does not belong to the key in")
            trusted.write_text("nonsense")
            process.hang_up()
            await process.line(f"{trusted}: ")
            assert await is_served(port, later)
            assert await process.stop() == 0
            await asyncio.to_thread(manager.until, "STOPPING=1")
            assert "Traceback" not in str(process)
        await server.stop(0)

    with NotifySocket(tmp_path) as manager:
        asyncio.run(scenario(manager))


def test_it_stops_in_time_whatever_its_clients_do(tmp_path: Path, tpm: SoftwareTpm) -> None:
    authority = Authority()
    (tmp_path / "cv_ca").mkdir()
    authority.write(tmp_path / "cv_ca" / "cacert.crt")
    for name in ("ima", "agent.conf", "logging.conf"):
        (tmp_path / name).write_text("")
    context = client_context(authority, authority.issue("verifier"))
    context.verify_mode = ssl.CERT_NONE

    async def scenario(manager: NotifySocket) -> None:
        # Nobody listens at the registrar's port: the agent is in the middle of its attempts.
        async with agent(tmp_path, tpm, 1, manager) as process:
            port = await process.port()
            await process.line("registration failed, next attempt")
            _, half_open = await asyncio.open_connection("127.0.0.1", port)
            half_open.write(b"\x16\x03\x01")
            _, stuck = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            stuck.write(b"POST /v2.5/keys/ukey HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert await is_served(port, authority)
            assert await process.stop() == 0
            assert process.stopped_in_s < 5
            for writer in (half_open, stuck):
                writer.transport.abort()
            await asyncio.sleep(0)

    with NotifySocket(tmp_path) as manager:
        asyncio.run(scenario(manager))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide /proc")
def test_without_a_list_of_mounts_it_ends_in_one_clear_line(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    Authority().write(tmp_path / "ca.crt")
    options = {
        "KEYLIME_DIR": str(tmp_path),
        "KEYLIME_AGENT_RUN_AS": "",
        "KEYLIME_AGENT_TRUSTED_CLIENT_CA": str(tmp_path / "ca.crt"),
        "KEYLIME_AGENT_CONFIG": str(tmp_path / "agent.conf"),
    }
    (tmp_path / "agent.conf").write_text("")
    program = Path(sys.executable).with_name("keylime_agent")
    done = subprocess.run(  # noqa: S603
        [unshare, "--mount", "sh", "-c", f"mount -t tmpfs none /proc && exec {program}"],
        env={"PATH": os.environ["PATH"], **options},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if done.stderr.startswith(("mount:", "unshare:")):
        pytest.skip(f"this machine forbids mounts: {done.stderr.strip()}")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "keylime_agent: error: /proc/self/mountinfo cannot be read: No such file or directory; "
        "mount a proc file system on /proc"
    ]
