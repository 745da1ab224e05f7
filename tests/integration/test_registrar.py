"""The registrar over HTTP: registering, activating, reading, deleting, rights, start and stop."""

import asyncio
import base64
import functools
import os
import signal
import socket
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import aiohttp
import pytest

from keylime.hashes import HashAlgorithm
from keylime.http.server import Role
from keylime.tpm.credential import activation_tag, parse_credential_blob
from keylime.tpm.device import Tpm
from keylime_registrar.handlers import Handlers, reading_route
from tests.fakes.running_registrar import (
    RunningRegistrar,
    install_certificates,
    registrar_authority,
    running_registrar,
)
from tests.fakes.server_process import ServerProcess
from tests.fakes.software_identity import SoftwareIdentity, b64
from tests.fakes.swtpm import SoftwareTpm
from tests.fakes.tls_material import SERVER_AUTH, Authority, client_context, self_signed

AGENT = "d432fbb3-d2f1-4a97-9ef7-75bd81c0aaaa"
VENDOR = Authority("vendor")


@functools.cache
def machine(number: int = 0) -> SoftwareIdentity:
    return SoftwareIdentity()


def with_registrar(
    directory: Path, act: Callable[[RunningRegistrar], Awaitable[None]], **environ: str
) -> None:
    async def scenario() -> None:
        async with running_registrar(directory, environ) as registrar:
            await act(registrar)

    asyncio.run(scenario())


def test_an_agent_registers_activates_and_is_shown(tmp_path: Path) -> None:
    own = self_signed(AGENT)
    ekcert = machine().ek_certificate(VENDOR)

    async def act(registrar: RunningRegistrar) -> None:
        path = f"/v2.5/agents/{AGENT}"
        body = machine().registration(ip="10.1.2.3", port="9002", mtls_cert=own.pem, ekcert=b64(ekcert))
        registered = await registrar.plain("POST", path, body)
        assert (registered.code, registered.status, list(registered.results)) == (200, "Success", ["blob"])
        assert (await registrar.admin("GET", "/v2/agents/")).results == {"uuids": []}
        hidden = await registrar.admin("GET", path)
        assert (hidden.code, hidden.status) == (404, f"Agent with ID '{AGENT}' has not been activated")
        tag = machine().answer(registered.results["blob"], AGENT)
        activated = await registrar.plain("PUT", path, {"auth_tag": tag})
        assert activated.body == {"code": 200, "status": "Success", "results": {}}
        assert (await registrar.admin("GET", "/v2/agents/")).results == {"uuids": [AGENT]}
        shown = await registrar.admin("GET", path)
        assert list(shown.results.items()) == [
            ("agent_id", AGENT),
            ("ek_tpm", b64(machine().ek_public)),
            ("ekcert", b64(ekcert)),
            ("aik_tpm", b64(machine().ak.tpm2b_public)),
            ("ip", "10.1.2.3"),
            ("port", 9002),
            ("mtls_cert", own.pem),
            ("regcount", 1),
        ]

    with_registrar(tmp_path, act)


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/v2.0/agents/{}"), ("PUT", "/v2/agents/{}/activate/"), ("POST", "/v2.6/agents/{}/activate")],
)
def test_every_form_of_activation_works(tmp_path: Path, method: str, path: str) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        body = {**machine().registration(), "agent_id": AGENT}
        registered = await registrar.plain("POST", "/v2/agents", body)
        tag = {"auth_tag": machine().answer(registered.results["blob"], AGENT)}
        assert (await registrar.plain(method, path.format(AGENT), tag)).code == 200
        # An agent whose answer got lost asks again.
        assert (await registrar.plain(method, path.format(AGENT), tag)).code == 200

    with_registrar(tmp_path, act)


def test_a_real_tpm_registers_and_activates(tmp_path: Path) -> None:
    os.environ.setdefault("TSS2_LOG", "all+NONE")

    def answer(opened: Tpm, blob: str, ek: object, ak: object) -> str:
        secret = opened.activate_credential(ek, ak, *parse_credential_blob(base64.b64decode(blob)))  # type: ignore[arg-type]
        return activation_tag(secret, AGENT)

    async def act(registrar: RunningRegistrar) -> None:
        with SoftwareTpm.manufactured(tmp_path / "tpm") as tpm, Tpm.open(tpm.tcti) as opened:
            ek = opened.create_ek("rsa")
            certificate = opened.ek_certificates(ek).certificate
            ak = opened.load_ak(ek, opened.create_ak(ek, "rsassa", "rsa", HashAlgorithm.SHA256))
            assert certificate is not None
            body = {
                "ek_tpm": b64(ek.tpm2b_public),
                "aik_tpm": b64(ak.tpm2b_public),
                "ekcert": b64(certificate),
            }
            registered = await registrar.plain("POST", f"/v2.5/agents/{AGENT}", body)
            assert registered.code == 200
            tag = answer(opened, registered.results["blob"], ek, ak)
        assert (await registrar.plain("PUT", f"/v2.5/agents/{AGENT}", {"auth_tag": tag})).code == 200
        assert (await registrar.admin("GET", f"/v2.5/agents/{AGENT}")).results["regcount"] == 1

    with_registrar(tmp_path, act)


def test_registering_again_counts_and_takes_over_the_contact_only_when_proven(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        await registrar.enrol(AGENT, machine(), ip="10.0.0.1", port=1)
        path = f"/v2.5/agents/{AGENT}"
        again = await registrar.plain("POST", path, machine().registration(ip="10.0.0.2", port=2))
        before = (await registrar.admin("GET", path)).results
        assert (before["ip"], before["port"], before["regcount"]) == ("10.0.0.1", 1, 1)
        tag = machine().answer(again.results["blob"], AGENT)
        assert (await registrar.plain("PUT", path, {"auth_tag": tag})).code == 200
        after = (await registrar.admin("GET", path)).results
        assert (after["ip"], after["port"], after["regcount"]) == ("10.0.0.2", 2, 2)

    with_registrar(tmp_path, act)


def test_deleting_forgets_everything_and_makes_room_for_another_tpm(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        path = f"/v2.5/agents/{AGENT}"
        await registrar.enrol(AGENT, machine())
        await registrar.plain("POST", path, machine().registration())
        deleted = await registrar.admin("DELETE", path)
        assert deleted.body == {"code": 200, "status": "Success", "results": {}}
        assert (await registrar.admin("GET", path)).status == f"Agent with ID '{AGENT}' not found"
        assert (await registrar.admin("DELETE", path)).status == f"Agent with ID '{AGENT}' not found"
        assert (await registrar.admin("GET", "/v2/agents")).results == {"uuids": []}
        await registrar.enrol(AGENT, machine(1))

    with_registrar(tmp_path, act)


def test_records_survive_a_restart_and_the_file_is_private(tmp_path: Path) -> None:
    async def first(registrar: RunningRegistrar) -> None:
        await registrar.enrol(AGENT, machine())

    async def second(registrar: RunningRegistrar) -> None:
        assert (await registrar.admin("GET", f"/v2/agents/{AGENT}")).results["regcount"] == 1

    with_registrar(tmp_path, first)
    assert (tmp_path / "reg_data.sqlite").stat().st_mode & 0o777 == 0o600
    with_registrar(tmp_path, second)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "/v2/agents/a"),
        ({"ek_tpm": "x", "aik_tpm": "y"}, "/v2/agents/a"),
        ({"ekcert": "emulators"}, "/v2/agents/a"),
        ({"mtls_cert": "x"}, "/v2/agents/a"),
        ({"ip": "a b"}, "/v2/agents/a"),
        ({"iak_tpm": "AAEC"}, "/v2/agents/a"),
    ],
)
def test_invalid_data_are_refused_with_one_text(tmp_path: Path, body: dict[str, str], path: str) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        sent = body if not body or "ek_tpm" in body else machine().registration(**body)
        answer = await registrar.plain("POST", path, sent)
        assert answer.code == 400
        assert answer.status.startswith("Could not register agent with invalid data: ")

    with_registrar(tmp_path, act)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"auth_tag": 1}', b'{"auth_tag": null}', b"{}"])
def test_a_body_without_a_tag_is_refused(tmp_path: Path, body: bytes) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        assert (await registrar.plain("PUT", "/v2/agents/a", body)).code == 400

    with_registrar(tmp_path, act)


def test_activation_of_nothing_is_not_found(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        answer = await registrar.plain("PUT", "/v2/agents/a", {"auth_tag": "x"})
        assert (answer.code, answer.status) == (404, "Agent with ID 'a' not found")

    with_registrar(tmp_path, act)


def test_versions_are_told_to_anyone_on_both_ports(tmp_path: Path) -> None:
    expected = {
        "current_version": "2.6",
        "supported_versions": ["2.0", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6"],
    }

    async def act(registrar: RunningRegistrar) -> None:
        assert (await registrar.plain("GET", "/version")).results == expected
        anonymous = client_context(registrar_authority())
        assert (await registrar.secure("GET", "/version", anonymous)).results == expected
        assert (await registrar.plain("GET", "/versions")).code == 404

    with_registrar(tmp_path, act)


Expected: TypeAlias = Mapping[str, int | None]

# What each caller gets on each route: over plain HTTP, then over TLS by the certificate shown. None: the
# handshake or the connection fails.
REFUSED: Expected = {
    "wrong CA": None,
    "expired": None,
    "not yet valid": None,
    "server only": None,
    "agent": None,
}
OPEN: Expected = {"plain": True, "no certificate": True, "admin": True, **REFUSED}
ADMINISTRATORS: Expected = {"plain": 400, "no certificate": 403, "nameless": 403, "admin": True, **REFUSED}
RIGHTS = {
    ("GET", "/version"): OPEN,
    ("POST", "/agents/{agent_id}"): OPEN,
    ("POST", "/agents"): OPEN,
    ("PUT", "/agents/{agent_id}"): OPEN,
    ("PUT", "/agents/{agent_id}/activate"): OPEN,
    ("POST", "/agents/{agent_id}/activate"): OPEN,
    ("GET", "/agents"): ADMINISTRATORS,
    ("GET", "/agents/{agent_id}"): ADMINISTRATORS,
    ("DELETE", "/agents/{agent_id}"): ADMINISTRATORS,
    ("GET", "/audit"): ADMINISTRATORS,
}


def test_every_route_stands_in_the_table_of_rights() -> None:
    routes = (*Handlers(None).routes(), reading_route(None))  # type: ignore[arg-type]  # no route is called
    assert {(route.method, route.path) for route in routes} == set(RIGHTS)
    for route in routes:
        is_open = RIGHTS[route.method, route.path] is OPEN
        assert (route.role is Role.ANONYMOUS, route.plain_http) == (is_open, is_open)


def test_every_route_admits_exactly_whom_the_table_says(tmp_path: Path) -> None:
    authority = registrar_authority()
    contexts = {
        "no certificate": client_context(authority),
        "wrong CA": client_context(authority, Authority("Keylime test CA").issue("operator")),
        "expired": client_context(authority, authority.issue("operator", days=(-9, -2))),
        "not yet valid": client_context(authority, authority.issue("operator", days=(2, 9))),
        "server only": client_context(authority, authority.issue("server", usages=(SERVER_AUTH,))),
        "agent": client_context(authority, self_signed(AGENT)),
        "nameless": client_context(authority, authority.issue(None)),
        "admin": client_context(authority, authority.issue("operator")),
    }

    async def act(registrar: RunningRegistrar) -> None:
        for (method, path), expected in RIGHTS.items():
            target = path.format(agent_id="a") if path == "/version" else "/v2" + path.format(agent_id="a")
            for who, code in expected.items():
                seen = await code_for(registrar, method, target, who)
                # Through the rights, the empty requests of this test end in the handler's own 400 or 404.
                passed = seen in (200, 400, 404)
                assert passed if code is True else seen == code, (method, path, who, seen)

    async def code_for(registrar: RunningRegistrar, method: str, target: str, who: str) -> int | None:
        if who == "plain":
            return (await registrar.plain(method, target)).code
        try:
            return (await registrar.secure(method, target, contexts[who])).code
        except aiohttp.ClientError:
            return None

    with_registrar(tmp_path, act)


def test_a_database_of_another_implementation_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "reg_data.sqlite") as connection:
        connection.execute("CREATE TABLE alembic_version_registrar (version_num VARCHAR(32))")
        connection.execute("CREATE TABLE registrarmain (agent_id VARCHAR(80) PRIMARY KEY)")
    connection.close()
    code, output = start_and_wait(tmp_path)
    assert code == 1
    assert output.splitlines()[-1].startswith("keylime_registrar: error: database ")
    assert "made by another implementation" in output


def start_and_wait(directory: Path, **changes: str) -> tuple[int, str]:
    with ServerProcess("keylime_registrar", directory, **changes) as process:
        return process.ended(), process.text


def test_without_the_verifiers_certificates_it_waits_and_then_says_what_is_missing(tmp_path: Path) -> None:
    code, output = start_and_wait(tmp_path)
    assert code == 1
    assert f"It appears that the specified tls_dir does not exist: {tmp_path / 'cv_ca'}" in output
    assert "keylime_verifier" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert (tmp_path / "reg_data.sqlite").exists()


def test_it_starts_as_soon_as_the_certificates_appear_and_stops_on_a_signal(tmp_path: Path) -> None:
    with ServerProcess("keylime_registrar", tmp_path) as process:
        process.line("Waiting for keylime_verifier")
        install_certificates(tmp_path)
        process.line(r"Listening on 127\.0\.0\.1:.*\(HTTP/S\)")
        assert process.stop()[0] == 0


def test_a_signal_while_it_waits_ends_it_cleanly(tmp_path: Path) -> None:
    with ServerProcess("keylime_registrar", tmp_path) as process:
        process.line("Waiting for keylime_verifier")
        status, took_s = process.stop(signal.SIGINT)
        assert (status, took_s < 5) == (0, True)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"KEYLIME_REGISTRAR_PORT": "many"}, "[registrar] port"),
        ({"KEYLIME_REGISTRAR_TLS_DIR": "/nowhere/at/all"}, "tls_dir does not exist: /nowhere/at/all"),
        ({"KEYLIME_REGISTRAR_DATABASE_URL": "oracle://x"}, "database_url"),
        ({"KEYLIME_REGISTRAR_DATABASE_POOL_SZ_OVFL": ""}, "database_pool_sz_ovfl"),
        ({"KEYLIME_REGISTRAR_AUTO_MIGRATE_DB": "False"}, "needs a migration"),
        ({"KEYLIME_REGISTRAR_DATABASE_URL": "postgresql://u:hush@127.0.0.1:1/x"}, "Connection refused"),
    ],
)
def test_what_it_cannot_start_with_is_one_line(tmp_path: Path, changes: dict[str, str], text: str) -> None:
    install_certificates(tmp_path)
    code, output = start_and_wait(tmp_path, **changes)
    assert code == 1
    last = output.splitlines()[-1]
    assert last.startswith("keylime_registrar: error: ")
    assert text in last
    assert "Traceback" not in output
    assert "hush" not in output


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    install_certificates(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = start_and_wait(tmp_path, KEYLIME_REGISTRAR_TLS_PORT=str(port))
    assert code == 1
    message = f"keylime_registrar: error: cannot listen on 127.0.0.1:{port}: Address already in use"
    assert output.splitlines()[-1] == message


def test_with_generate_it_makes_its_own_certificate_and_still_trusts_the_verifiers_clients(
    tmp_path: Path,
) -> None:
    install_certificates(tmp_path)
    with ServerProcess("keylime_registrar", tmp_path, KEYLIME_REGISTRAR_TLS_DIR="generate") as process:
        process.ports()
        names = {path.name for path in (tmp_path / "reg_ca").iterdir()}
        assert {"cacert.crt", "server-cert.crt", "server-private.pem"} <= names
        assert "client-cert.crt" not in names
        assert process.stop()[0] == 0
