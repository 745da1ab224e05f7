"""Attacks on what all servers share (catalogue N): handshakes, slow clients, floods, a broken database."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keylime.database.engine import parse_database_url
from keylime.database.migrate import prepare_schema
from keylime.database.transactions import open_database
from keylime.http.server import Request, Response, Role, Route, Server, ServerLimits
from keylime_registrar.handlers import Handlers
from keylime_registrar.identity import IdentityDemand
from keylime_registrar.registrations import Clocks, RegistrationRules, Registrations
from keylime_registrar.schema import SCHEMA
from keylime_registrar.store import PendingLimits, Store
from keylime_registrar.throttle import Allowance, Throttle
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.client_session import client_session
from tests.fakes.eventual import eventually
from tests.fakes.loopback import served_by
from tests.fakes.own_time import OwnTime
from tests.fakes.running_registrar import registrar_authority, running_registrar
from tests.fakes.running_verifier import enrolment, running_verifier, verifier_authority
from tests.fakes.software_identity import SoftwareIdentity
from tests.fakes.tls_material import Authority, client_context, server_context

CA = Authority()
AGENT = "d432fbb3-d2f1-4a97-9ef7-75bd81c0aaaa"
SHORT = ServerLimits(
    max_body=100_000, handshake_timeout_s=0.5, header_timeout_s=0.5, body_timeout_s=0.5, write_timeout_s=0.5
)


@asynccontextmanager
async def both_servers(directory: Path) -> AsyncIterator[tuple[tuple[str, int, Authority], ...]]:
    """Name, TLS port and authority of a registrar and a verifier at work."""
    async with running_registrar(directory / "r") as registrar, running_verifier(directory / "v") as verifier:
        yield (
            ("registrar", registrar.tls_port, registrar_authority()),
            ("verifier", verifier.port, verifier_authority()),
        )


def scene(act: Callable[[], Awaitable[None]]) -> None:
    async def play() -> None:
        await asyncio.wait_for(act(), 60)

    asyncio.run(play())


async def shake_hands(port: int, context: ssl.SSLContext) -> str | None:
    """The version that was agreed upon; None when the server refused."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    except (ssl.SSLError, ConnectionError):
        return None
    version: str | None = writer.get_extra_info("ssl_object").version()
    writer.transport.abort()
    return version


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_n5_old_versions_of_tls_are_refused_by_every_server(tmp_path: Path) -> None:
    versions = (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)

    async def act() -> None:
        async with both_servers(tmp_path) as servers:
            for name, port, authority in servers:
                agreed = []
                for version in versions:
                    context = client_context(authority)
                    context.set_ciphers("ALL:@SECLEVEL=0")  # the client would take anything
                    context.minimum_version = context.maximum_version = version
                    agreed.append(await shake_hands(port, context))
                assert agreed == [None, None, "TLSv1.2", "TLSv1.3"], name

    scene(act)


async def renegotiate(openssl: str, *options: str) -> str:
    """What OpenSSL's own client says when it asks for another handshake on an open connection."""
    client = await asyncio.create_subprocess_exec(
        openssl,
        "s_client",
        "-tls1_2",
        *options,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    said = await asyncio.wait_for(client.stdout.readuntil(b"Verify return code"), 20)
    client.stdin.write(b"R\n")
    await client.stdin.drain()
    rest = await asyncio.wait_for(client.stdout.read(), 20)
    await client.wait()
    return (said + rest).decode(errors="replace")


def test_n5_a_second_handshake_on_a_connection_is_refused_by_every_server(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the program openssl is not installed")

    async def act() -> None:
        async with both_servers(tmp_path) as servers:
            for name, port, authority in servers:
                said = await renegotiate(openssl, "-connect", f"127.0.0.1:{port}")
                assert "RENEGOTIATING" in said, said
                assert "no renegotiation" in said, (name, said)
                assert await shake_hands(port, client_context(authority)) == "TLSv1.3"

    scene(act)


def test_n5_the_counter_check_a_server_that_allows_a_second_handshake_is_told_apart() -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the program openssl is not installed")

    async def act() -> None:
        lenient = server_context(CA)
        lenient.options &= ~ssl.OP_NO_RENEGOTIATION
        lenient.options |= 1 << 8  # SSL_OP_ALLOW_CLIENT_RENEGOTIATION, which Python does not name
        async with serving(lenient) as (_, port):
            said = await renegotiate(openssl, "-connect", f"127.0.0.1:{port}")
            assert "RENEGOTIATING" in said
            assert "no renegotiation" not in said

    scene(act)


async def answer(_request: Request) -> Response:
    return Response(results={"text": "x" * 8_000_000})


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Server, int]]:
    route = Route("POST", "/x", Role.ANONYMOUS, answer, plain_http=True, versioned=False)
    server = Server([route], limits=SHORT)
    try:
        yield server, server.listen("127.0.0.1", 0, tls)
    finally:
        await server.stop(0)


HEAD = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n"
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)


@pytest.mark.parametrize(
    ("beginning", "drip", "secure"),
    [
        (b"", HELLO, True),
        (b"", b"POST /x HTTP/1.1\r\n" + b"X: y\r\n" * 1000, False),
        (HEAD, b"x" * 90000, False),
    ],
    ids=["n6 handshake", "n7 headers", "n7 body"],
)
def test_n6_n7_whoever_sends_byte_by_byte_is_dropped_in_time(
    beginning: bytes, drip: bytes, secure: bool
) -> None:
    async def act() -> None:
        async with serving(server_context(CA) if secure else None) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(beginning)
            closed = asyncio.create_task(reader.read())
            own = OwnTime()
            for byte in drip:
                writer.write(bytes([byte]))
                if (await asyncio.wait([closed], timeout=0.02))[0]:
                    break
            assert own.passed_s() < 3
            with contextlib.suppress(ConnectionResetError):
                await closed
            writer.transport.abort()
            await eventually(lambda: len(server.connections) == 0)

    scene(act)


def test_n7_whoever_reads_its_answer_byte_by_byte_is_dropped_in_time() -> None:
    async def act() -> None:
        async with serving() as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            await reader.readexactly(1)
            own = OwnTime()
            while len(server.connections) > 0:
                await asyncio.wait_for(reader.read(1), 100)
                await asyncio.sleep(0)  # what has come already is read without a turn of the server's loop
                assert own.passed_s() < 5
            writer.transport.abort()

    scene(act)


def test_n10_r21_an_address_that_belongs_to_another_service_learns_and_tells_nothing(tmp_path: Path) -> None:
    """Who names a database as its contact gets the verifier to knock there, with a handshake and no more."""
    heard: list[bytes] = []

    async def be_a_database(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(65536))
        writer.write(b"-ERR the canary sings\r\n")
        writer.close()

    async def act() -> None:
        async with running_verifier(tmp_path) as verifier, served_by(be_a_database) as port:
            agent = AttestingAgent("agent-1", verifier_authority())
            plain = await verifier.admin(
                "POST",
                "/v2.5/agents/agent-1",
                enrolment(agent, cloudagent_port=port.number, mtls_cert="disabled"),
            )
            assert plain.code == 400, "nothing is asked in plain HTTP"
            assert heard == []
            await verifier.add(agent, cloudagent_port=port.number)
            await eventually(lambda: len(heard) >= 2)
            for path in ("/v2.5/agents/agent-1", "/v2.5/agents?bulk=1"):
                shown = await verifier.admin("GET", path)
                assert shown.code == 200
                assert "canary" not in json.dumps(shown.body)
        assert all(data[:2] == b"\x16\x03" for data in heard), "handshakes of TLS, and nothing else"

    scene(act)


async def retry_after(session: aiohttp.ClientSession, url: str, body: object) -> tuple[int, str]:
    """Status and Retry-After of a PUT."""
    async with session.put(url, json=body) as response:
        return response.status, response.headers.get("Retry-After", "")


def test_n15_r20_who_floods_the_registrar_is_told_when_to_come_back(tmp_path: Path) -> None:
    async def act() -> None:
        database = open_database(parse_database_url("sqlite", work_dir=tmp_path, sqlite_name="reg.sqlite"))
        await prepare_schema(database, SCHEMA, migrate=True)
        rules = RegistrationRules(IdentityDemand.EK_CERT, False, False, tuple)
        clocks = Clocks(wall=time.time, steady=lambda: 100.0)
        throttle = Throttle(Allowance(rate=0.0003, burst=0.0025))
        registrations = Registrations(Store(database, PendingLimits()), rules, throttle, clocks)
        server = Server(Handlers(registrations).routes())
        url = f"http://127.0.0.1:{server.listen('127.0.0.1', 0)}"
        async with client_session() as session:
            put = f"{url}/v2.5/agents/{AGENT}"
            # How much processor time each of them takes is the machine's business.
            seen = [await retry_after(session, put, {"auth_tag": "x"}) for _ in range(12)]
            served = [status for status, _ in seen].index(429)
            assert seen[:served] == [(404, "")] * served
            assert served >= 1
            assert {status for status, _ in seen[served:]} == {429}
            assert all(int(wait_s) >= 1 for _, wait_s in seen[served:])
            async with session.get(f"{url}/version") as free:
                assert free.status == 200
        await server.stop(0)
        await database.close()

    scene(act)


def test_s2_no_handler_of_either_server_shows_what_is_wrong_with_the_database(tmp_path: Path) -> None:
    """Every call that needs the database is answered with 503, in the same words, and with Retry-After."""
    body = {**SoftwareIdentity().registration(), "auth_tag": "x"}

    def damage(file: Path, tables: tuple[str, ...]) -> None:
        with closing(sqlite3.connect(file, timeout=10)) as connection, connection:
            for table in tables:
                connection.execute(f"ALTER TABLE {table} RENAME TO hidden_{table}")

    async def act() -> None:
        async with (
            running_registrar(tmp_path / "r") as registrar,
            running_verifier(tmp_path / "v") as verifier,
        ):
            damage(tmp_path / "r" / "reg_data.sqlite", ("registrations", "pending_registrations"))
            damage(tmp_path / "v" / "cv_data.sqlite", ("agents", "policies", "revocations"))
            agent = AttestingAgent("agent-1", verifier_authority())
            agent.port = 1
            calls: list[Awaitable[Any]] = [
                registrar.plain("POST", f"/v2.5/agents/{AGENT}", body),
                registrar.plain("PUT", f"/v2.5/agents/{AGENT}", body),
                registrar.admin("GET", "/v2.5/agents"),
                registrar.admin("GET", f"/v2.5/agents/{AGENT}"),
                registrar.admin("DELETE", f"/v2.5/agents/{AGENT}"),
                verifier.admin("GET", "/v2.5/agents"),
                verifier.admin("GET", "/v2.5/agents?bulk=1"),
                verifier.admin("GET", "/v2.5/agents/agent-1"),
                verifier.admin("POST", "/v2.5/agents/agent-1", enrolment(agent)),
                verifier.admin("DELETE", "/v2.5/agents/agent-1"),
                verifier.admin("PUT", "/v2.5/agents/agent-1/stop"),
                verifier.admin("PUT", "/v2.5/agents/agent-1/reactivate"),
                verifier.admin("GET", "/v2.5/allowlists"),
                verifier.admin("GET", "/v2.5/mbpolicies/x"),
                verifier.admin("DELETE", "/v2.5/allowlists/x"),
                verifier.admin("GET", "/v2.5/revocations"),
                verifier.admin("GET", "/v2.5/verify/identity?agent_uuid=a&quote=r&nonce=n&hash_alg=sha256"),
            ]
            text = "The database is not available, try again later"
            for number, call in enumerate(calls):
                seen = await call
                assert (seen.code, seen.status) == (503, text), (number, seen)
            url = f"http://127.0.0.1:{registrar.port}/v2.5/agents/{AGENT}"
            assert await retry_after(registrar.session, url, body) == (503, "5")

    scene(act)
