"""Attacks on the network side (catalogue N) against the real registrar on loopback."""

import asyncio
import functools
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
import yarl

from keylime.http.server import Role
from keylime.pki.roles import ADMINISTRATOR, NODE
from keylime_registrar.handlers import MAX_AGENT_BODY, Handlers, reading_route
from tests.fakes.own_time import OwnTime
from tests.fakes.running_registrar import RunningRegistrar, registrar_authority, running_registrar
from tests.fakes.software_identity import SoftwareIdentity
from tests.fakes.tls_material import (
    CLIENT_AUTH,
    SERVER_AUTH,
    Authority,
    Issued,
    client_context,
    plain_leaf,
    self_signed,
    unmarked_node,
)

AGENT = "d432fbb3-d2f1-4a97-9ef7-75bd81c0aaaa"
PATH = f"/v2.5/agents/{AGENT}"
FORBIDDEN_IDS = [
    "..",
    ".",
    "a%2F..%2Fb",
    "%2e%2e",
    "a%00",
    "a%0Aforged",
    "%D0%B0gent",
    "x" * 10_000,
    "%20",
    "-a",
    "a'--",
    "a%5C",
    "%25",
]


@functools.cache
def machine() -> SoftwareIdentity:
    return SoftwareIdentity()


def with_registrar(
    directory: Path, act: Callable[[RunningRegistrar], Awaitable[None]], **environ: str
) -> None:
    async def scenario() -> None:
        async with running_registrar(directory, environ) as registrar:
            await act(registrar)

    asyncio.run(scenario())


def administrators_routes() -> list[tuple[str, str]]:
    routes = (*Handlers(None).routes(), reading_route(None))  # type: ignore[arg-type]  # no route is called
    return [(r.method, "/v2" + r.path.format(agent_id=AGENT)) for r in routes if r.role is Role.ADMIN]


async def raw(port: int, data: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 15)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def test_n1_strangers_on_administrators_routes(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        await registrar.enrol(AGENT, machine())
        anonymous = client_context(registrar_authority())
        for method, path in administrators_routes():
            assert (await registrar.plain(method, path)).code == 400
            assert (await registrar.secure(method, path, anonymous)).code == 403
        assert (await registrar.admin("GET", PATH)).code == 200

    with_registrar(tmp_path, act)


@pytest.mark.parametrize(
    "identity",
    [
        Authority("Keylime test CA").issue("operator"),
        registrar_authority().issue("operator", days=(-9, -1)),
        registrar_authority().issue("operator", days=(1, 9)),
        registrar_authority().issue("operator", usages=(SERVER_AUTH,)),
    ],
    ids=["another CA of the same name", "expired", "not yet valid", "server only"],
)
def test_n2_certificates_that_are_not_an_administrators(tmp_path: Path, identity: Issued) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        for method, path in administrators_routes():
            with pytest.raises(aiohttp.ClientError):
                await registrar.secure(method, path, client_context(registrar_authority(), identity))

    with_registrar(tmp_path, act)


def test_n3_an_agents_certificate_that_the_operator_put_among_the_trusted_ones(tmp_path: Path) -> None:
    own = self_signed(AGENT)
    trusted = tmp_path / "agent.crt"
    trusted.write_text(own.pem)

    async def act(registrar: RunningRegistrar) -> None:
        await registrar.enrol(AGENT, machine(), mtls_cert=own.pem)
        context = client_context(registrar_authority(), own)
        for method, path in administrators_routes():
            assert (await registrar.secure(method, path, context)).code == 403

    with_registrar(tmp_path, act, KEYLIME_REGISTRAR_TRUSTED_CLIENT_CA=str(trusted))


@pytest.mark.parametrize("required", ["False", "True"])
def test_n3_a_machines_certificate_from_the_daemons_own_authority(tmp_path: Path, required: str) -> None:
    authority = registrar_authority()
    machines = [
        authority.issue("web01", usages=(SERVER_AUTH, CLIENT_AUTH, NODE)),
        unmarked_node(authority, "web01"),
        plain_leaf(authority, AGENT),
    ]
    former = plain_leaf(authority, "client")
    bearer = authority.issue("client", usages=(CLIENT_AUTH, ADMINISTRATOR))

    async def act(registrar: RunningRegistrar) -> None:
        await registrar.enrol(AGENT, machine())
        for identity in machines:
            context = client_context(authority, identity)
            for method, path in administrators_routes():
                assert (await registrar.secure(method, path, context)).code == 403
        asked = [
            (await registrar.secure("GET", PATH, client_context(authority, identity))).code
            for identity in (former, bearer)
        ]
        assert asked == [403 if required == "True" else 200, 200]

    with_registrar(tmp_path, act, KEYLIME_REGISTRAR_REQUIRE_ADMIN_ROLE=required)


def test_n1_n13_an_authorization_header_opens_nothing_and_does_not_fall_back(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        for header in ("Bearer anything", "Basic YTpi", "", "bearer x"):
            headers = {"Authorization": header}
            for method, path in administrators_routes():
                answer = await registrar.secure(method, path, registrar.administrators, headers=headers)
                assert answer.code == 401

    with_registrar(tmp_path, act)


def test_n5_plain_http_and_weak_suites_on_the_tls_port(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        assert b"HTTP/1.1 2" not in await raw(registrar.tls_port, b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        old = client_context(registrar_authority())
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        for ciphers in ("ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "ECDHE-ECDSA-AES128-CCM8"):
            old.set_ciphers(f"{ciphers}:@SECLEVEL=0")
            with pytest.raises(aiohttp.ClientError):
                await registrar.secure("GET", "/version", old)
        assert (await registrar.secure("GET", "/version", client_context(registrar_authority()))).code == 200

    with_registrar(tmp_path, act)


@pytest.mark.parametrize("beginning", [b"", b"\x16\x03\x01", b"\x16\x03\x01\x40\x00" + bytes(200)])
def test_n6_handshakes_that_are_never_finished(tmp_path: Path, beginning: bytes) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        opened = [await asyncio.open_connection("127.0.0.1", registrar.tls_port) for _ in range(300)]
        for _, writer in opened:
            writer.write(beginning)
        own = OwnTime()
        assert (await registrar.admin("GET", "/v2/agents")).code == 200
        assert (await registrar.plain("GET", "/version")).code == 200
        assert own.passed_s() < 1
        for _, writer in opened:
            writer.close()

    with_registrar(tmp_path, act)


def test_n8_bodies_larger_than_announced_or_allowed(tmp_path: Path) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n".encode()

    async def act(registrar: RunningRegistrar) -> None:
        huge = await registrar.plain("POST", PATH, b"x" * (MAX_AGENT_BODY + 1))
        assert huge.code == 413
        both = head + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}"
        assert b" 400 " in (await raw(registrar.port, both)).split(b"\r\n")[0]
        endless = head + b"Transfer-Encoding: chunked\r\n\r\n" + (b"8000\r\n" + bytes(0x8000) + b"\r\n") * 17
        assert b" 413 " in (await raw(registrar.port, endless)).split(b"\r\n")[0]
        lies = (
            head + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        assert (await raw(registrar.port, lies)).count(b"HTTP/1.1") == 1

    with_registrar(tmp_path, act)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zlib"])
def test_n9_compressed_bodies(tmp_path: Path, coding: str) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        answer = await registrar.plain("POST", PATH, b"x", headers={"Content-Encoding": coding})
        assert answer.code == 415

    with_registrar(tmp_path, act)


@pytest.mark.parametrize("name", FORBIDDEN_IDS)
def test_n17_agent_ids_that_are_paths_lines_or_statements(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")

    async def act(registrar: RunningRegistrar) -> None:
        for route in Handlers(None).routes():  # type: ignore[arg-type]  # no route is called
            if "{agent_id}" not in route.path:
                continue
            target = f"https://127.0.0.1:{registrar.tls_port}/v2" + route.path.replace("{agent_id}", name)
            url = yarl.URL(target, encoded=True)
            body = json.dumps({**machine().registration(), "auth_tag": "x"})
            call = registrar.session.request(route.method, url, data=body, ssl=registrar.administrators)
            async with call as response:
                # aiohttp sends "." and ".." as they are; no route has them as a fixed part.
                assert response.status in (400, 404)
                if response.status == 404:
                    assert await response.read() == b""
        named = {**machine().registration(), "agent_id": name}
        assert (await registrar.plain("POST", "/v2/agents", named)).code == 400
        assert (await registrar.admin("GET", "/v2/agents")).results == {"uuids": []}

    with_registrar(tmp_path, act)
    assert "\nforged" not in caplog.text


def test_n18_strangers_cannot_tell_known_from_unknown_agents(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        await registrar.enrol(AGENT, machine())
        anonymous = client_context(registrar_authority())
        for method in ("GET", "DELETE"):
            known = await registrar.secure(method, PATH, anonymous)
            assert known == await registrar.secure(method, "/v2.5/agents/unknown", anonymous)

    with_registrar(tmp_path, act)


@pytest.mark.parametrize(
    "prefix", ["/v1.0", "/v2.9", "/v9.9", "/v3.0", "/V2.5", "", "/2.5", "//v2.5", "/v2.5/", "/v2.5.0", "/v-2"]
)
def test_n19_versions_and_prefixes_that_do_not_exist(tmp_path: Path, prefix: str) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        target = f"{prefix}/agents/a"
        for method in ("GET", "POST", "DELETE"):
            answer = await raw(
                registrar.port, f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            )
            assert answer.startswith(b"HTTP/1.1 404 ")
            assert answer.endswith(b"\r\n\r\n")

    with_registrar(tmp_path, act)


@pytest.mark.parametrize(
    "body",
    [
        b'{"ek_tpm":' * 50_000,
        b"[" * 300_000,
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"port": NaN}',
        b'{"port": Infinity}',
        b'{"port": 1e999}',
        b'{"port": ' + b"9" * 100_000 + b"}",
        b'{"ip": "\\ud800"}',
        b'{"ip": "\xff"}',
        b'{"ip": ["a"]}',
        b'{"ek_tpm": {}}',
        b'{"aik_tpm": true}',
        b'{"port": 9002.5}',
        b"\x00",
        b'{"a":1}{"b":2}',
    ],
)
def test_n20_json_meant_to_hurt(tmp_path: Path, body: bytes) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        for method in ("POST", "PUT"):
            assert (await registrar.plain(method, PATH, body)).code == 400
        assert (await registrar.plain("GET", "/version")).code == 200

    with_registrar(tmp_path, act)


def test_n20_of_doubled_keys_the_last_counts_and_only_it(tmp_path: Path) -> None:
    """Whichever key wins, one value is checked and that value is stored."""

    async def act(registrar: RunningRegistrar) -> None:
        body = json.dumps(machine().registration(ip="10.0.0.1"))
        doubled = body[:-1] + ', "ip": "10.0.0.2"}'
        registered = await registrar.plain("POST", PATH, doubled.encode())
        tag = machine().answer(registered.results["blob"], AGENT)
        await registrar.plain("PUT", PATH, {"auth_tag": tag})
        assert (await registrar.admin("GET", PATH)).results["ip"] == "10.0.0.2"

    with_registrar(tmp_path, act)


@pytest.mark.parametrize("field", ["ek_tpm", "aik_tpm", "ekcert", "ip", "port", "mtls_cert", "iak_tpm"])
def test_n21_sql_in_every_field(tmp_path: Path, field: str) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        body = {**machine().registration(), field: "x'); DROP TABLE registrations; --"}
        assert (await registrar.plain("POST", PATH, body)).code == 400
        assert (await registrar.admin("GET", "/v2/agents")).results == {"uuids": []}

    with_registrar(tmp_path, act)


def test_n23_line_ends_in_a_header_that_is_echoed(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        for separator in (b"\r", b"\n ", b"\r\n\t", b"\x0b", b"\x85"):
            request = (
                b"GET /version HTTP/1.1\r\nConnection: close\r\nX-Request-Id: a"
                + separator
                + b"Set-Cookie: b\r\n\r\n"
            )
            answer = await raw(registrar.port, request)
            assert b"Set-Cookie:" not in answer
            assert answer.count(b"HTTP/1.1") == 1

    with_registrar(tmp_path, act)


def test_n24_forwarding_headers_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    headers = {"X-Forwarded-For": "203.0.113.7", "X-Real-Ip": "203.0.113.7", "X-Forwarded-Proto": "https"}
    headers["Forwarded"] = "for=203.0.113.7;proto=https"

    async def act(registrar: RunningRegistrar) -> None:
        assert (await registrar.plain("GET", PATH, headers=headers)).code == 400
        await registrar.plain("POST", PATH, machine().registration(), headers=headers)

    with_registrar(tmp_path, act)
    assert "registration from 127.0.0.1" in caplog.text
    assert "203.0.113.7" not in caplog.text


def test_n25_keys_that_name_internal_columns(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        extra = {
            "active": True,
            "regcount": 99,
            "key": "x",
            "tag_hash": "x",
            "agent_id": "other",
            "virtual": True,
        }
        registered = await registrar.plain("POST", PATH, {**machine().registration(), **extra})
        assert registered.code == 200
        assert (await registrar.admin("GET", PATH)).code == 404
        tag = machine().answer(registered.results["blob"], AGENT)
        await registrar.plain("PUT", PATH, {"auth_tag": tag, **extra})
        assert (await registrar.admin("GET", PATH)).results["regcount"] == 1
        assert (await registrar.admin("GET", "/v2/agents")).results == {"uuids": [AGENT]}

    with_registrar(tmp_path, act)


def test_n2_a_certificate_for_clients_is_an_administrators(tmp_path: Path) -> None:
    """The counter-check: what is refused above is refused for its reason, not by accident."""

    async def act(registrar: RunningRegistrar) -> None:
        for usages in ((), (CLIENT_AUTH,), (SERVER_AUTH, CLIENT_AUTH)):
            identity = registrar_authority().issue("operator", usages=usages)
            context = client_context(registrar_authority(), identity)
            assert (await registrar.secure("GET", "/v2/agents", context)).code == 200

    with_registrar(tmp_path, act)
