"""Who answers, told by a certificate: clients of both kinds ask the same."""

import logging

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from keylime.http.objections import HostDemands, key_objection
from keylime.pki.agent_certificate import key_pin
from keylime.pki.server_names import NameCheck
from tests.fakes.tls_material import Authority, Issued


@pytest.fixture(scope="module")
def server() -> Issued:
    return Authority().issue("server", usages=(ExtendedKeyUsageOID.SERVER_AUTH,))


def der(issued: Issued) -> bytes:
    return issued.certificate.public_bytes(Encoding.DER)


def test_a_server_is_known_by_its_names(server: Issued, caplog: pytest.LogCaptureFixture) -> None:
    assert HostDemands("127.0.0.1", NameCheck.STRICT).objection(der(server), 1) is None
    assert "not for localhost" in str(HostDemands("localhost", NameCheck.STRICT).objection(der(server), 1))
    lenient = HostDemands("localhost", NameCheck.WARN)
    with caplog.at_level(logging.WARNING):
        assert [lenient.objection(der(server), 1) for _ in range(3)] == [None] * 3
    assert caplog.text.count("the server at localhost:1: ") == 1, "each certificate is warned of once"


@pytest.mark.parametrize("shown", [b"", b"\x30\x00", bytes(100)])
def test_who_shows_no_certificate_is_nobody(shown: bytes) -> None:
    assert HostDemands("localhost", NameCheck.OFF).objection(shown, 1) is not None
    assert "shows no key" in str(key_objection(shown, bytes(32)))


def test_an_agent_is_known_by_its_key(server: Issued) -> None:
    pem = server.certificate.public_bytes(Encoding.PEM).decode()
    assert key_objection(der(server), key_pin(pem)) is None
    assert "holds another key" in str(key_objection(der(server), bytes(32)))
