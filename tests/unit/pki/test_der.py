import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence
from keylime.pki.asn1 import Bounds
from keylime.pki.der import (
    MAX_CERTIFICATE_SIZE,
    OPERATORS,
    STRANGERS,
    read_certificate,
    read_pem_certificates,
)
from tests.captures import CA_DIRECTORY, VM_DEBIAN12
from tests.fakes.counted_calls import counted_calls
from tests.fakes.hostile_der import SHAPES

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


def outcome(data: bytes, bounds: Bounds) -> str:
    try:
        read_certificate(data, bounds)
    except MalformedEvidence as error:
        return str(error)
    return "read"


@pytest.mark.parametrize("shape", SHAPES)
def test_r4_no_certificate_of_a_stranger_costs_more_than_its_bounds(shape: str) -> None:
    data = SHAPES[shape](MAX_CERTIFICATE_SIZE)
    assert MAX_CERTIFICATE_SIZE * 0.85 < len(data) <= MAX_CERTIFICATE_SIZE
    with counted_calls() as calls:
        outcome(data, STRANGERS)
    # Some 15 calls for each element: it is read, encoded anew and read once more.
    assert calls.count < 20 * STRANGERS.elements


@pytest.mark.parametrize("shape", SHAPES)
def test_r4_the_work_for_a_certificate_grows_no_faster_than_its_size(shape: str) -> None:
    unbounded = Bounds(size=1 << 20, elements=1 << 20)
    counts = []
    for size in (8 << 10, 32 << 10):
        data = SHAPES[shape](size)
        with counted_calls() as calls:
            outcome(data, unbounded)
        counts.append(calls.count)
    small, large = counts
    assert large <= 4.6 * small + 100


def test_r4_elements_and_levels_are_counted_inside_extensions_and_strings_in_pieces() -> None:
    for shape in ("directory names", "host names", "policies", "a name without end", "empty elements"):
        assert "more than 640 ASN.1 elements" in outcome(SHAPES[shape](MAX_CERTIFICATE_SIZE), STRANGERS)
    assert "too deeply" in outcome(SHAPES["as deep as it goes"](400), STRANGERS)
    for size in (1 << 10, 2 << 10):
        assert outcome(SHAPES["host names"](size), Bounds(size, elements=700)) == "read", "a few are welcome"


def test_r4_an_extension_in_pieces_hides_nothing() -> None:
    data = SHAPES["host names in pieces"](4 << 10)
    assert outcome(data, Bounds(len(data), elements=3000)) == "read"
    assert "too many ASN.1 elements" in outcome(data, Bounds(len(data), elements=500))


def test_a_certificate_of_the_operators_own_may_be_larger() -> None:
    data = SHAPES["one large key"](MAX_CERTIFICATE_SIZE + 2000)
    assert "more than 8192 bytes" in outcome(data, STRANGERS)
    assert outcome(data, OPERATORS) == "read"


def test_serial_number_0_is_read_also_by_libraries_that_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    zero = DER[:SERIAL] + b"\0" + DER[SERIAL + 1 :]
    assert read_certificate(zero).signed_bytes in zero
    load = x509.load_der_x509_certificate

    def load_strictly(data: bytes) -> x509.Certificate:
        if load(data).serial_number == 0:
            raise ValueError("serial number must be positive")
        return load(data)

    monkeypatch.setattr(x509, "load_der_x509_certificate", load_strictly)
    read = read_certificate(zero)
    assert read.certificate.public_key() == read_certificate(DER).certificate.public_key()
    assert read.signed_bytes in zero
