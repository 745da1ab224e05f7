"""Who has no certificate of the verifier's CA gets nowhere: not at agents, verifier or registrar."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.fakes.tls_material import CLIENT_AUTH, Authority
from tests.lab.installation import Machine
from tests.lab.rest import Answer, Identity, Rest, client_context
from tests.lab.site import Site

STRANGERS = ("nobody", "another CA", "an agent")

AGENT_ROUTES = (
    ("GET", "/version"),
    ("GET", "/v2.5/agent/info"),
    ("GET", "/v2.5/keys/pubkey"),
    ("GET", "/v2.5/keys/verify?challenge=abc"),
    ("POST", "/v2.5/keys/ukey"),
    ("POST", "/v2.5/keys/vkey"),
    ("GET", "/v2.5/quotes/identity?nonce=abc"),
    ("GET", "/v2.5/quotes/integrity?nonce=abc&mask=0x400&partial=0"),
    ("POST", "/v2.5/notifications/revocation"),
)
VERIFIER_ROUTES = (
    ("GET", "/v2.5/agents/"),
    ("GET", "/v2.5/agents/{id}"),
    ("POST", "/v2.5/agents/{id}"),
    ("PUT", "/v2.5/agents/{id}/stop"),
    ("PUT", "/v2.5/agents/{id}/reactivate"),
    ("DELETE", "/v2.5/agents/{id}"),
)
REGISTRAR_ROUTES = (
    ("GET", "/v2.5/agents/"),
    ("GET", "/v2.5/agents/{id}"),
    ("DELETE", "/v2.5/agents/{id}"),
)


@pytest.fixture(scope="module")
def machine(site: Site) -> Machine:
    return site.attested_machine()


@pytest.fixture(params=STRANGERS)
def stranger(request: pytest.FixtureRequest, machine: Machine, tmp_path: Path) -> ssl.SSLContext:
    if request.param == "nobody":
        return client_context(None)
    if request.param == "an agent":
        return client_context(machine.identity)
    issued = Authority("Keylime Certificate Authority").issue("client", usages=(CLIENT_AUTH,))
    key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "certificate").write_text(issued.pem)
    (tmp_path / "key").write_bytes(key)
    return client_context(Identity(tmp_path / "certificate", tmp_path / "key"))


def call(server: Rest, method: str, path: str) -> Answer | None:
    """The answer, None when TLS ended the conversation."""
    try:
        return server.request(method, path, {} if method in ("POST", "PUT") else None)
    except (ssl.SSLError, ConnectionError):
        return None


@pytest.mark.parametrize(("method", "path"), AGENT_ROUTES)
def test_an_agent_ends_the_handshake(
    machine: Machine, stranger: ssl.SSLContext, method: str, path: str
) -> None:
    assert call(Rest(machine.node.ip, 9002, stranger), method, path) is None


@pytest.mark.parametrize(("method", "path"), VERIFIER_ROUTES)
def test_the_verifier_refuses(
    site: Site, machine: Machine, stranger: ssl.SSLContext, method: str, path: str
) -> None:
    server = Rest(site.control.node.ip, 8881, stranger)
    answer = call(server, method, path.format(id=machine.agent_id))
    assert answer is None or answer.code == 403


@pytest.mark.parametrize(("method", "path"), REGISTRAR_ROUTES)
def test_the_registrar_refuses(
    site: Site, machine: Machine, stranger: ssl.SSLContext, method: str, path: str
) -> None:
    server = Rest(site.control.node.ip, 8891, stranger)
    answer = call(server, method, path.format(id=machine.agent_id))
    assert answer is None or answer.code == 403


@pytest.mark.parametrize(("method", "path"), REGISTRAR_ROUTES)
def test_the_registrar_s_plain_port_is_for_agents_only(
    site: Site, machine: Machine, method: str, path: str
) -> None:
    assert site.control.registration_api.request(method, path.format(id=machine.agent_id)).code == 400


def test_an_administrator_gets_through(site: Site, machine: Machine) -> None:
    """The counter-check: the same calls with the right certificate are answered."""
    admin = site.control.administrator
    assert machine.api(admin).request("GET", "/v2.5/agent/info").results["agent_uuid"] == machine.agent_id
    assert site.record(machine)["attestation_status"] == "PASS"
    assert site.registration(machine)["agent_id"] == machine.agent_id
    site.await_passes(machine)
