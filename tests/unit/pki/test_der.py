import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence
from keylime.pki.der import MAX_CERTIFICATE_SIZE, read_certificate, read_pem_certificates
from tests.captures import CA_DIRECTORY, VM_DEBIAN12

DER = (VM_DEBIAN12 / "direct-efistub" / "nv_1c00002.der").read_bytes()
SERIAL = DER.index(b"\x02\x01\x18") + 2  # the one byte of the serial number 24
CRITICAL = DER.index(b"\x01\x01\xff") + 2


def strict(data: bytes) -> bytes:
    return read_certificate(data).certificate.public_bytes(Encoding.DER)


def test_a_strict_certificate_is_taken_as_it_is() -> None:
    item = read_certificate(DER)
    assert not item.normalised
    assert strict(DER) == DER
    assert item.signed_bytes == item.certificate.tbs_certificate_bytes
    assert item.signature == item.certificate.signature


@pytest.mark.parametrize("padding", [b"\xff" * 100, b"\x00", b"\x30\x82"])
def test_what_follows_the_certificate_is_ignored_and_marked(padding: bytes) -> None:
    item = read_certificate(DER + padding)
    assert item.normalised
    assert strict(DER + padding) == DER


def test_indefinite_and_long_lengths_become_der() -> None:
    assert strict(b"\x30\x80" + DER[4:] + b"\x00\x00") == DER
    assert strict(b"\x30\x83\x00" + DER[2:]) == DER


def test_a_boolean_of_ber_becomes_that_of_der_while_the_signed_bytes_stay() -> None:
    altered = DER[:CRITICAL] + b"\x01" + DER[CRITICAL + 1 :]
    item = read_certificate(altered)
    assert item.normalised
    assert strict(altered) == DER
    assert item.signed_bytes in altered


def test_a_negative_serial_number_is_read_as_a_positive_one() -> None:
    item = read_certificate(DER[:SERIAL] + b"\x98" + DER[SERIAL + 1 :])
    assert item.normalised
    assert item.certificate.serial_number == 0x98


def test_a_key_marked_for_oaep_is_an_rsa_key() -> None:
    plain, oaep = bytes.fromhex("2a864886f70d010101"), bytes.fromhex("2a864886f70d010107")
    item = read_certificate(DER.replace(plain, oaep))
    assert item.normalised
    assert item.certificate.public_key() == read_certificate(DER).certificate.public_key()


def test_all_certificates_of_a_pem_text_are_read() -> None:
    text = b"# a comment\n" + b"\n".join(path.read_bytes() for path in sorted(CA_DIRECTORY.glob("*.pem")))
    subjects = [item.certificate.subject.rfc4514_string() for item in read_pem_certificates(text)]
    assert subjects == ["CN=swtpm-localca", "CN=swtpm-localca-rootca"]


@pytest.mark.parametrize("text", [b"", b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"])
def test_a_pem_text_without_a_certificate_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        read_pem_certificates(text)


@pytest.mark.parametrize("size", range(0, len(DER), 7))
def test_a_truncated_certificate_is_refused(size: int) -> None:
    with pytest.raises(MalformedEvidence):
        read_certificate(DER[:size])


@pytest.mark.parametrize(
    "data",
    [b"\x30\x80" * 5000, b"\x30\x80" + b"\x04\x80" * 9, b"0" * (MAX_CERTIFICATE_SIZE + 1), b"\x1f\x00"],
    ids=["nested", "primitive of indefinite length", "huge", "long tag"],
)
def test_a_hostile_structure_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        read_certificate(data)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_certificate_or_malformed(data: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        read_certificate(data)


@given(st.lists(st.tuples(st.integers(0, len(DER) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_an_altered_certificate_is_read_or_malformed(changes: list[tuple[int, int]]) -> None:
    data = bytearray(DER)
    for position, value in changes:
        data[position] = value
    try:
        item = read_certificate(bytes(data))
    except MalformedEvidence:
        return
    assert item.signed_bytes in bytes(data)
