"""Agents' certificates, read by their elements: what is in them, and that no library is asked."""

import base64
import json
import subprocess
import sys
import warnings
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime.errors import CredentialError
from keylime.identifiers import AgentId
from keylime.pki.agent_certificate import (
    PinnedKey,
    PlainHttp,
    key_pin,
    read_agent_certificate,
    read_agent_tls,
)
from keylime.pki.certificates import certificate_text, self_signed_certificate
from tests.captures import DATA
from tests.fakes.tls_material import self_signed
from tests.fuzz.cpu_time import within

AGENT = AgentId("d432fbb3-d2f1-4a97-9ef7-75bd81c00000")
NOW = datetime(2026, 5, 1, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
RUST = json.loads((DATA / "registrations" / "register-rust-0.2.9-serial-0.json").read_text())["mtls_cert"]


def made(days: float = 0, key: ec.EllipticCurvePrivateKey = KEY) -> x509.Certificate:
    return self_signed_certificate(key, AGENT, None, NOW + timedelta(days=days))


def der_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


DER = der_of(made())


def test_its_fields_are_those_that_the_library_reads() -> None:
    certificate = made()
    for data in (der_of(certificate), certificate_text(certificate).encode()):
        found = read_agent_certificate(data)
        info = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert found.public_key == info
        assert found.serial == certificate.serial_number
        assert found.issuer == found.subject == certificate.subject.public_bytes()
        assert found.not_before == certificate.not_valid_before_utc
        assert found.not_after == certificate.not_valid_after_utc
        assert found.pem == certificate_text(certificate)
        assert found.is_self_signed


def test_a_certificate_of_a_rust_agent_has_serial_0_and_is_read_like_any_other() -> None:
    found = read_agent_certificate(RUST.encode())
    assert found.serial == 0
    assert found.not_after is not None
    assert found.pem.split() == RUST.split()
    assert read_agent_certificate(found.der) == found


def test_no_crypto_library_is_asked() -> None:
    """So that none of any version can warn of it, or refuse it."""
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from keylime.pki.agent_certificate import key_pin\n"
        "print(key_pin(sys.stdin.read()).hex())"
    )
    run = subprocess.run(  # noqa: S603 - a program of ours
        [sys.executable, "-W", "error", "-c", program], input=RUST, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == key_pin(RUST).hex()


def test_the_pin_is_that_of_the_key_whatever_certificate_is_around_it() -> None:
    first, renewed = certificate_text(made()), certificate_text(made(days=340))
    assert first != renewed
    assert key_pin(first) == key_pin(renewed)
    other = certificate_text(made(key=ec.generate_private_key(ec.SECP256R1())))
    assert key_pin(first) != key_pin(other)


@pytest.mark.parametrize(
    ("day", "expected"),
    [(0, False), (334, False), (336, True), (364, True), (366, True), (2000, True)],
)
def test_it_is_made_anew_from_thirty_days_before_its_end(day: int, expected: bool) -> None:
    found = read_agent_certificate(der_of(made()))
    assert found.ends_soon(NOW + timedelta(days=day)) is expected


def test_a_clock_before_its_beginning_says_nothing_of_its_end() -> None:
    found = read_agent_certificate(der_of(made()))
    early = datetime(1970, 1, 2, tzinfo=UTC)
    assert found.begins_later(early)
    assert not found.ends_soon(early)


def test_dates_that_are_none_do_not_hide_the_key() -> None:
    der = der_of(made())
    odd = der.replace(b"260430", b"269930", 1)
    assert odd != der
    found = read_agent_certificate(odd)
    assert found.not_before is None
    assert found.key_pin == read_agent_certificate(der).key_pin


@pytest.mark.parametrize("year", [b"0001", b"0000", b"9999"])
def test_dates_at_the_ends_of_time_are_dates_or_none(year: bytes) -> None:
    """RFC 5280 has 9999-12-31 for a certificate without an end; a device may make any."""
    der = der_of(made())
    at = der.index(b"\x17\x0d") - 2
    time = b"\x18\x0f" + year + b"0101000000Z"
    contents = der[8:at] + b"\x30\x22" + 2 * time + der[at + 32 :]
    length = int.from_bytes(der[6:8]) + 4
    body = b"\x30\x82" + length.to_bytes(2) + contents
    found = read_agent_certificate(b"\x30\x82" + len(body).to_bytes(2) + body)
    assert found.public_key == read_agent_certificate(der).public_key
    assert found.ends_soon(NOW) is (year != b"9999")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_the_library_reads_as_well_has_the_same_key(data: st.DataObject) -> None:
    """Another reading of the key than that of the handshake would be somebody else's."""
    der = bytearray(DER)
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(der) - 1))
        if data.draw(st.booleans()):
            der[at] = data.draw(st.integers(0, 255))
        else:
            der[at:at] = data.draw(st.binary(max_size=3))
    try:
        ours = read_agent_certificate(bytes(der)).public_key
    except CredentialError:
        return
    with warnings.catch_warnings(), suppress(ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        warnings.simplefilter("ignore")
        key = x509.load_der_x509_certificate(bytes(der)).public_key()
        assert load_der_public_key(ours) == key


@pytest.mark.parametrize(
    "data",
    [
        b"\x30\x80" * 32_000,
        b"\x30\x80" * 20 + b"\x04\x00" * 32_000,
        b"\x30\x82\xff\xf0" + b"\x04\x82\x00\x10" * 15_000,
        b"-----BEGIN CERTIFICATE-----" * 100_000,
        b"-----BEGIN CERTIFICATE-----" + b"A " * 2_000_000,
    ],
    ids=["nested", "empty strings", "strings", "beginnings", "without an end"],
)
def test_what_is_large_and_none_costs_little(data: bytes) -> None:
    def refuse(data: bytes) -> None:
        with pytest.raises(CredentialError):
            read_agent_certificate(data)

    within(5, refuse, data)


def test_a_date_after_2049_is_read() -> None:
    found = read_agent_certificate(der_of(made(days=40_000)))
    assert found.not_after == NOW + timedelta(days=40_365)


PEM = certificate_text(made())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "disabled",
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nMA==MA==\n-----END CERTIFICATE-----\n",
        "-----BEGIN EC PRIVATE KEY-----\nMAA=\n-----END EC PRIVATE KEY-----\n",
        "\ud800-----BEGIN CERTIFICATE-----",
    ],
)
def test_what_is_no_certificate_has_no_key(text: str) -> None:
    with pytest.raises(CredentialError):
        key_pin(text)


def test_bytes_behind_its_end_are_refused() -> None:
    with pytest.raises(CredentialError, match="behind its end"):
        read_agent_certificate(der_of(made()) + b"\0")


def test_the_first_of_several_certificates_counts() -> None:
    assert key_pin(PEM + RUST) == key_pin(PEM)


@given(st.binary(max_size=300), st.integers(0, 600), st.sampled_from(["cut", "replace", "insert", "all"]))
def test_any_bytes_are_a_certificate_with_a_key_or_a_credential_error(
    noise: bytes, at: int, how: str
) -> None:
    der = der_of(CERTIFICATE)
    at = min(at, len(der))
    data = {
        "cut": der[:at],
        "replace": der[:at] + noise + der[at + len(noise) :],
        "insert": der[:at] + noise + der[at:],
        "all": noise,
    }[how]
    try:
        found = read_agent_certificate(data)
    except CredentialError:
        return
    assert found.public_key in data
    assert read_agent_certificate(found.pem.encode()) == found
    assert base64.b64encode(found.der).decode() in found.pem.replace("\n", "")


CERTIFICATE = made()


def test_how_an_agent_is_spoken_to_is_read_once_from_what_it_registered() -> None:
    pem = self_signed("agent").pem
    assert read_agent_tls(pem) == PinnedKey(key_pin(pem))
    assert read_agent_tls("disabled") is PlainHttp.DISABLED
    assert read_agent_tls(None) is read_agent_tls("") is PlainHttp.UNKNOWN
    for text in ("Disabled", " ", "none", "disabled\n"):
        with pytest.raises(CredentialError):
            read_agent_tls(text)
