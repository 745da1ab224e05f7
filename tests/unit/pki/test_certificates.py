import base64
import re
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import ConfigError, CredentialError
from keylime.identifiers import AgentId, parse_agent_id
from keylime.pki import agent_identity, certificates, key_files
from keylime.pki.agent_certificate import key_pin, read_agent_certificate
from keylime.pki.tls import load_trusted_certificates

AGENT = parse_agent_id("d432fbb3-d2f1-4a97-9ef7-75bd81c00000")
OTHER = parse_agent_id("node2")
NOW = datetime(2026, 5, 1, tzinfo=UTC)


def identity(
    directory: Path,
    agent: AgentId = AGENT,
    *,
    contact: str | None = "192.0.2.7",
    key_password: str | None = None,
    now: datetime = NOW,
) -> agent_identity.AgentIdentity:
    return agent_identity.load_or_create_identity(
        directory / "server-cert.crt",
        directory / "server-private.pem",
        agent=agent,
        contact=contact,
        key_password=key_password,
        now=now,
    )


def parsed(made: agent_identity.AgentIdentity) -> x509.Certificate:
    return certificates.parse_certificate(made.certificate_pem.encode())


def test_an_agent_certificate_names_the_agent_and_its_host(tmp_path: Path) -> None:
    certificate = parsed(identity(tmp_path))
    assert certificate.subject == certificate.issuer
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == AGENT
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", "localhost.domain"}
    assert {str(ip) for ip in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1", "192.0.2.7"}
    assert certificate.not_valid_after_utc == NOW + timedelta(days=365)
    assert [extension.oid for extension in certificate.extensions] == [x509.SubjectAlternativeName.oid]
    certificate.verify_directly_issued_by(certificate)


def test_the_agent_key_is_p256_in_a_private_file(tmp_path: Path) -> None:
    made = identity(tmp_path)
    key = key_files.load_private_key(made.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert stat.S_IMODE(made.key.stat().st_mode) == 0o600
    assert made.key.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")


def test_a_second_start_uses_the_same_certificate(tmp_path: Path) -> None:
    assert identity(tmp_path) == identity(tmp_path)


def test_another_agent_id_gets_a_new_certificate_for_the_same_key(tmp_path: Path) -> None:
    first, second = parsed(identity(tmp_path)), parsed(identity(tmp_path, OTHER))
    assert first.subject != second.subject
    assert first.public_key() == second.public_key()


def test_a_certificate_about_to_expire_is_made_anew(tmp_path: Path) -> None:
    first = identity(tmp_path)
    assert identity(tmp_path, now=NOW + timedelta(days=330)).certificate_pem == first.certificate_pem
    later = identity(tmp_path, now=NOW + timedelta(days=336))
    assert parsed(later).not_valid_after_utc == NOW + timedelta(days=336 + 365)


def test_it_is_made_anew_for_the_same_key(tmp_path: Path) -> None:
    first, second = identity(tmp_path), identity(tmp_path, now=NOW + timedelta(days=336))
    assert first.certificate_pem != second.certificate_pem
    assert key_pin(first.certificate_pem) == key_pin(second.certificate_pem)


def test_a_clock_that_is_set_back_makes_nothing_anew(tmp_path: Path) -> None:
    first = identity(tmp_path)
    early = identity(tmp_path, now=datetime(1970, 1, 2, tzinfo=UTC))
    assert early.certificate_pem == first.certificate_pem
    assert "clock is wrong" in (early.remark or "")


def test_a_certificate_made_by_a_clock_that_was_early_is_made_anew(tmp_path: Path) -> None:
    first = identity(tmp_path, now=datetime(1970, 1, 2, tzinfo=UTC))
    assert identity(tmp_path).certificate_pem != first.certificate_pem


def test_a_certificate_that_cannot_be_written_goes_on_to_serve(tmp_path: Path) -> None:
    first = identity(tmp_path)
    # Beside a name of this length there is no room for that of a temporary file, for root neither.
    place = first.certificate.rename(tmp_path / ("c" * 250))
    made = agent_identity.load_or_create_identity(
        place, first.key, agent=AGENT, contact=None, now=NOW + timedelta(days=400)
    )
    assert made.certificate_pem == first.certificate_pem
    assert "cannot be made anew and stays as it is" in (made.remark or "")
    first.key.unlink()
    with pytest.raises(ConfigError, match="cannot be written"):
        agent_identity.load_or_create_identity(
            place, first.key, agent=AGENT, contact=None, now=NOW + timedelta(days=400)
        )


def test_a_certificate_with_serial_0_as_rust_agents_make_it_is_made_anew_for_the_same_key(
    tmp_path: Path,
) -> None:
    first = identity(tmp_path)
    der = parsed(first).public_bytes(Encoding.DER)
    number = parsed(first).serial_number
    size = (number.bit_length() + 8) // 8
    serial = bytes([2, size]) + number.to_bytes(size)
    assert der.count(serial) == 1
    # Not the signature, which nobody checks, and lengths that stay: a zero as long as the number.
    odd = der.replace(serial, bytes([2, size]) + bytes(size))
    first.certificate.write_text(read_agent_certificate(odd).pem)
    second = identity(tmp_path)
    assert parsed(second).serial_number > 0
    assert key_pin(second.certificate_pem) == key_pin(first.certificate_pem)


def test_a_certificate_somebody_else_issued_is_kept(tmp_path: Path) -> None:
    key = key_files.load_or_create_ecc_key(tmp_path / "server-private.pem", None)
    issued = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "host.example")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "our CA")]))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=10))
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "server-cert.crt").write_text(certificates.certificate_text(issued))
    found = identity(tmp_path)
    assert parsed(found) == issued
    assert "issued by somebody else and ends soon" in (found.remark or "")


def test_a_certificate_for_another_key_is_refused(tmp_path: Path) -> None:
    made = identity(tmp_path)
    made.key.unlink()
    with pytest.raises(ConfigError, match="does not belong to the key"):
        identity(tmp_path)


def test_an_encrypted_key_opens_with_its_password_only(tmp_path: Path) -> None:
    made = identity(tmp_path, key_password="blue")  # noqa: S106 - a test password
    assert b"ENCRYPTED" in made.key.read_bytes()
    assert identity(tmp_path, key_password="blue") == made  # noqa: S106 - a test password
    for wrong in (None, "", "red"):
        with pytest.raises(ConfigError, match=r"server-private\.pem: .*password"):
            identity(tmp_path, key_password=wrong)


def test_a_password_for_a_plain_key_does_no_harm(tmp_path: Path) -> None:
    made = identity(tmp_path)
    assert identity(tmp_path, key_password="unneeded") == made  # noqa: S106 - a test password


def test_the_payload_key_is_rsa_2048_and_persistent(tmp_path: Path) -> None:
    path = tmp_path / "payload-private.pem"
    key = key_files.load_or_create_rsa_key(path, None)
    assert key.key_size == 2048
    assert isinstance(key_files.load_private_key(path, None), rsa.RSAPrivateKey)
    again = key_files.load_or_create_rsa_key(path, None)
    assert again.private_numbers() == key.private_numbers()


def test_an_elliptic_curve_payload_key_is_refused(tmp_path: Path) -> None:
    key_files.load_or_create_ecc_key(tmp_path / "payload-private.pem", None)
    with pytest.raises(ConfigError, match="holds no RSA key"):
        key_files.load_or_create_rsa_key(tmp_path / "payload-private.pem", None)


def test_a_long_agent_id_still_gets_a_certificate(tmp_path: Path) -> None:
    certificate = parsed(identity(tmp_path, parse_agent_id("a" * 80)))
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "a" * 64


@given(st.binary(max_size=300) | st.just(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
def test_any_bytes_are_a_certificate_or_a_credential_error(data: bytes) -> None:
    with pytest.raises(CredentialError):
        certificates.parse_certificate(data)


@given(st.binary(max_size=200) | st.just(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n"))
def test_any_bytes_are_a_private_key_or_a_credential_error(data: bytes) -> None:
    with pytest.raises(CredentialError):
        certificates.parse_private_key(data, "password")


@pytest.mark.parametrize("pem", [False, True])
def test_a_certificate_of_an_unknown_version_is_refused(tmp_path: Path, pem: bool) -> None:
    good = parsed(identity(tmp_path)).public_bytes(Encoding.DER)
    odd = good.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020106"), 1)
    assert odd != good
    if pem:
        odd = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(odd) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(CredentialError, match=r"not an X\.509 certificate"):
        certificates.parse_certificate(odd)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"\n", "it is empty"),
        (b"\x7fELF", "neither PEM (BEGIN CERTIFICATE) nor DER, or damaged"),
        (b"-----BEGIN CERTIFICATE-----\n", "neither PEM (BEGIN CERTIFICATE) nor DER, or damaged"),
        (
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "neither PEM (BEGIN CERTIFICATE) nor DER, or damaged",
        ),
    ],
)
def test_what_is_no_certificate_is_told_in_words_of_people(data: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CredentialError) as told:
        certificates.parse_certificate(data)
    assert str(told.value) == f"not an X.509 certificate: {reason}"
    path = tmp_path / "cacert.crt"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: no usable CA certificate: ")) as told_of_file:
        load_trusted_certificates(path)
    assert str(told_of_file.value).endswith(reason)
