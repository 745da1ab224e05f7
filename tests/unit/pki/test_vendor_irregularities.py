"""What vendors' certificates have that DER forbids: read all the same, and believed for their signatures."""

import itertools
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import CredentialError, MalformedEvidence
from keylime.pki.certificates import parse_certificate
from keylime.pki.der import read_certificate, strict_ecdsa_signature
from keylime.pki.ek import EkVerdict, check_ek_certificate, trust_store
from keylime.pki.tpm_cert_store import load_trust_store
from keylime.tpm.default_ek import default_ek
from keylime.tpm.ek_certificates import choose_certificates
from tests.captures import DATA
from tests.fakes.hostile_der import encoded
from tests.fakes.vendor_certificates import (
    ATTRIBUTES,
    EK_KEY,
    Parts,
    attribute,
    ca_certificate,
    common_name,
    ek_certificate,
    extension,
    name,
)

NOW = datetime(2027, 1, 1, tzinfo=UTC)
EVIDENCE = DATA / "evidence"
ALTERNATIVE_NAME = "551d11"
AUTHORITY_KEY = "551d23"
FALSE = b"\x01\x01\x00"
FULL_CERT_HEADER = bytes.fromhex("1001000000") + b"\x10\x02"
PLAIN = Parts(subject=common_name(b"ek"))


def verdict(ca: Parts, ek: Parts) -> EkVerdict:
    store = trust_store([read_certificate(ca_certificate(ca))])
    return check_ek_certificate(ek_certificate(ek), EK_KEY.public_key(), store, NOW)


def directory_name(one: bytes) -> bytes:
    return encoded(0x30, encoded(0xA4, one))


@pytest.mark.parametrize("case", ["ek-certificate-name-set-order", "ek-certificate-padded-with-ff"])
def test_certificates_as_vendors_make_them_are_trusted_and_marked(case: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes((EVIDENCE / f"{case}-ca.pem").read_bytes())
    (leaf,) = (path for path in EVIDENCE.glob(f"{case}-*") if path.suffix != ".pem")
    data = leaf.read_bytes()
    key = read_certificate(data).certificate.public_key()
    found = check_ek_certificate(data, key, load_trust_store(tmp_path), NOW)  # type: ignore[arg-type]
    assert found.trusted, found.reason
    assert any("not strict DER" in warning for warning in found.warnings)


UTC_TIME, GENERALIZED_TIME = 0x17, 0x18


@pytest.mark.parametrize(
    ("tag", "text", "time"),
    [
        (UTC_TIME, b"2701010000Z", datetime(2027, 1, 1, tzinfo=UTC)),
        (UTC_TIME, b"9912312359Z", datetime(1999, 12, 31, 23, 59, tzinfo=UTC)),
        (UTC_TIME, b"270101013000+0130", datetime(2027, 1, 1, tzinfo=UTC)),
        (UTC_TIME, b"2612311600-0800", datetime(2027, 1, 1, tzinfo=UTC)),
        (GENERALIZED_TIME, b"20270101000000.5Z", datetime(2027, 1, 1, tzinfo=UTC)),
        (GENERALIZED_TIME, b"202701010000Z", datetime(2027, 1, 1, tzinfo=UTC)),
        (GENERALIZED_TIME, b"20270101000000", datetime(2027, 1, 1, tzinfo=UTC)),
        (GENERALIZED_TIME, b"99991231235959.9-0100", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_times_of_ber_are_read_in_utc(tag: int, text: bytes, time: datetime) -> None:
    end = encoded(GENERALIZED_TIME, b"99991231235959Z")
    begins = Parts(subject=PLAIN.subject, validity=encoded(0x30, encoded(tag, text) + end))
    item = read_certificate(ek_certificate(begins))
    assert item.normalised
    assert item.certificate.not_valid_before_utc == time
    assert verdict(Parts(), begins).trusted == (time <= NOW)


@pytest.mark.parametrize("text", [b"", b"Z", b"27010100Z", b"270101", b"271301000000Z", b"270101000000+9900"])
def test_what_is_no_time_is_no_certificate(text: bytes) -> None:
    validity = encoded(0x30, encoded(UTC_TIME, text) + encoded(GENERALIZED_TIME, b"99991231235959Z"))
    with pytest.raises(MalformedEvidence, match="not a certificate"):
        read_certificate(ek_certificate(Parts(validity=validity)))


PRINTABLE, T61, BMP = 0x13, 0x14, 0x1E


@pytest.mark.parametrize(
    ("subject", "issuer"),
    [
        (common_name(b"A Vendor"), common_name(b"A Vendor", PRINTABLE)),
        (common_name(b"A Vendor", PRINTABLE), common_name(b"A Vendor", T61)),
        (common_name(b"A Vendor"), common_name("A Vendor".encode("utf-16-be"), BMP)),
        (common_name(b"A Vendor"), common_name(b"a vendor", PRINTABLE)),
        (common_name(b"A  Vendor "), common_name(b"A Vendor")),
    ],
)
def test_an_issuer_may_be_named_with_other_kinds_of_text_capitals_and_blanks(
    subject: bytes, issuer: bytes
) -> None:
    ek = Parts(subject=common_name(b"ek"), issuer=issuer)
    found = verdict(Parts(subject=subject, issuer=subject), ek)
    assert found.trusted, found.reason
    assert not verdict(Parts(subject=common_name(b"A Vendor 2")), ek).trusted


@pytest.mark.parametrize("order", list(itertools.permutations(ATTRIBUTES)))
def test_the_attributes_of_a_relative_name_come_in_any_order(order: tuple[bytes, ...]) -> None:
    issuer, other = name(order), name(ATTRIBUTES)
    inside = extension(ALTERNATIVE_NAME, directory_name(name(order)))
    ek = Parts(subject=common_name(b"ek"), issuer=issuer, extensions=(inside,))
    assert verdict(Parts(subject=other, issuer=other), ek).trusted
    assert verdict(Parts(subject=issuer, issuer=issuer), ek).trusted


IRREGULAR = {
    "negative serial number": Parts(subject=PLAIN.subject, serial=b"\x02\x01\x85"),
    "serial number 0": Parts(subject=PLAIN.subject, serial=b"\x02\x01\x00"),
    "serial number with zeros before it": Parts(subject=PLAIN.subject, serial=b"\x02\x03\x00\x00\x05"),
    "version of two bytes": Parts(subject=PLAIN.subject, version=b"\xa0\x04\x02\x02\x00\x02"),
    "name of 300 letters": Parts(subject=common_name(b"n" * 300)),
    "empty name": Parts(subject=common_name(b"")),
    "country of ten letters": Parts(subject=name([attribute("550406", b"Neverlands", 0x13)])),
    "text that is not printable": Parts(subject=common_name(b"id:49465800_x@y", 0x13)),
    "text that is not UTF-8": Parts(subject=common_name(b"M\xfcnchen")),
    "long country in an extension": Parts(
        subject=PLAIN.subject,
        extensions=(
            extension(ALTERNATIVE_NAME, directory_name(name([attribute("550406", b"Neverlands", 0x13)]))),
        ),
    ),
    "not printable in an extension": Parts(
        subject=PLAIN.subject,
        extensions=(extension(ALTERNATIVE_NAME, directory_name(common_name(b"a_b", 0x13))),),
    ),
    "boolean of 1, default written out": Parts(
        subject=PLAIN.subject,
        extensions=(
            extension("551d13", encoded(0x30, FALSE), b"\x01\x01\x01"),
            extension(ALTERNATIVE_NAME, directory_name(common_name(b"tpm")), FALSE),
        ),
    ),
    "negative number in the issuer's key identifier": Parts(
        subject=PLAIN.subject,
        extensions=(
            extension(
                AUTHORITY_KEY,
                encoded(0x30, encoded(0xA1, encoded(0xA4, common_name(b"vendor"))) + b"\x82\x01\x85"),
            ),
        ),
    ),
    "NULL beside an ECDSA algorithm": Parts(
        subject=PLAIN.subject, algorithm=bytes.fromhex("300c06082a8648ce3d0403020500")
    ),
}


@pytest.mark.parametrize("kind", IRREGULAR)
def test_an_irregular_certificate_is_believed_for_its_signature(kind: str) -> None:
    assert verdict(Parts(), IRREGULAR[kind]).trusted, verdict(Parts(), IRREGULAR[kind]).reason
    data = bytearray(ek_certificate(IRREGULAR[kind]))
    data[data.index(b"200101000000Z") + 1] ^= 1  # another year: still well-formed, and not what was signed
    store = trust_store([read_certificate(ca_certificate(Parts()))])
    assert not check_ek_certificate(bytes(data), EK_KEY.public_key(), store, NOW).trusted


@pytest.mark.parametrize("kind", [kind for kind in IRREGULAR if IRREGULAR[kind].subject != PLAIN.subject])
def test_the_name_of_an_issuer_may_be_irregular_as_well(kind: str) -> None:
    odd = IRREGULAR[kind].subject
    ca, ek = Parts(subject=odd, issuer=odd), Parts(subject=common_name(b"ek"), issuer=odd)
    found = verdict(ca, ek)
    assert found.trusted, found.reason


@pytest.mark.parametrize("before", [b"", FULL_CERT_HEADER])
@pytest.mark.parametrize("kind", ["serial number 0", "name of 300 letters", "text that is not printable"])
def test_an_agent_finds_an_irregular_certificate_in_nv_memory(before: bytes, kind: str) -> None:
    certificate = ek_certificate(IRREGULAR[kind])
    stored = before + certificate + b"\xff" * 20
    found = choose_certificates(default_ek(EK_KEY.public_key()), [b"", b"\xff" * 9, stored], b"")
    assert found.certificate == certificate


@pytest.mark.parametrize("before", [FULL_CERT_HEADER, b"\x02\x00", b"\0" * 16, b"\xff" * 7])
@pytest.mark.parametrize("after", [b"", b"\xff" * 40, b"\0" * 3])
def test_what_nv_memory_has_around_a_certificate_is_passed_over(before: bytes, after: bytes) -> None:
    plain = ek_certificate(PLAIN)
    item = read_certificate(before + plain + after)
    assert item.normalised
    assert item.certificate.public_bytes(Encoding.DER) == plain
    store = trust_store([read_certificate(ca_certificate(Parts()))])
    assert check_ek_certificate(before + plain + after, EK_KEY.public_key(), store, NOW).trusted


def test_an_rsa_key_may_lack_the_zero_byte_of_its_modulus_or_have_too_many() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    modulus = key.public_numbers().n.to_bytes(256)
    strict = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    certificate = ek_certificate(PLAIN)
    for written in (modulus, b"\0\0\0" + modulus):
        numbers = encoded(0x30, encoded(0x02, written) + b"\x02\x03\x01\x00\x01")
        spki = encoded(0x30, bytes.fromhex("300d06092a864886f70d0101010500") + encoded(0x03, b"\0" + numbers))
        parts = read_certificate(certificate)
        ec_key = EK_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        signed = parts.signed_bytes[parts.signed_bytes.index(PLAIN.version) :].replace(ec_key, spki)
        tail = certificate[certificate.index(parts.signed_bytes) + len(parts.signed_bytes) :]
        found = read_certificate(encoded(0x30, encoded(0x30, signed) + tail)).certificate.public_key()
        assert found.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == strict


@given(st.integers(1, 2**256 - 1), st.integers(1, 2**256 - 1), st.integers(0, 3))
def test_the_numbers_of_an_ecdsa_signature_are_written_anew(r: int, s: int, zeros: int) -> None:
    def number(value: int, *, loose: bool) -> bytes:
        size = (value.bit_length() + 7) // 8 if loose else value.bit_length() // 8 + 1
        return encoded(0x02, b"\0" * (zeros if loose else 0) + value.to_bytes(size))

    loose = encoded(0x30, number(r, loose=True) + number(s, loose=True))
    assert strict_ecdsa_signature(loose) == encoded(0x30, number(r, loose=False) + number(s, loose=False))


@given(st.binary(max_size=80))
def test_what_is_no_ecdsa_signature_stays_what_it_is_or_becomes_two_numbers(data: bytes) -> None:
    again = strict_ecdsa_signature(data)
    assert strict_ecdsa_signature(again) == again


_TEXT = st.tuples(
    st.sampled_from(["550403", "55040a", "550406", "550405", "0992268993f22c640119"]),
    st.binary(max_size=90),
    st.sampled_from([0x0C, 0x13, 0x14, 0x16, 0x1E]),
)


@given(st.lists(_TEXT, min_size=1, max_size=5), st.binary(max_size=24), st.booleans())
def test_no_certificate_makes_the_library_warn_or_raise(
    texts: list[tuple[str, bytes, int]], serial: bytes, inside: bool
) -> None:
    """Warnings are errors in all these tests; what cannot be read is MalformedEvidence, and nothing else."""
    odd = name([attribute(oid, text, tag) for oid, text, tag in texts])
    parts = Parts(subject=common_name(b"ek"), serial=encoded(0x02, serial))
    if inside:
        data = ek_certificate(
            Parts(subject=parts.subject, extensions=(extension(ALTERNATIVE_NAME, directory_name(odd)),))
        )
    else:
        data = ek_certificate(Parts(subject=odd, serial=parts.serial))
    store = trust_store([read_certificate(ca_certificate(Parts()))])
    check_ek_certificate(data, EK_KEY.public_key(), store, NOW)
    try:
        item = read_certificate(data)
    except MalformedEvidence:
        pass
    else:
        assert item.signed_bytes in data
        again = read_certificate(item.certificate.public_bytes(Encoding.DER))
        assert again.certificate == item.certificate
        assert not again.normalised
    with suppress(CredentialError):
        parse_certificate(data)


def test_nothing_is_written_to_stderr_about_a_certificate_of_a_vendor(tmp_path: Path) -> None:
    (tmp_path / "ek.der").write_bytes(ek_certificate(IRREGULAR["country of ten letters"]))
    (tmp_path / "zero.der").write_bytes(ek_certificate(IRREGULAR["serial number 0"]))
    program = (
        "import sys; from pathlib import Path; from keylime.pki.tpm_cert_store import load_trust_store;"
        "from keylime.pki.library_warnings import ignore_library_warnings; ignore_library_warnings();"
        "store = load_trust_store(Path(sys.argv[1])); assert not store.unreadable, store.unreadable;"
        "print([one.certificate.subject for group in store.by_subject.values() for one in group])"
    )
    for flags in ((), ("-W", "error")):
        done = subprocess.run(  # noqa: S603  # our own program
            [sys.executable, *flags, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
        )
        assert done.stderr == ""


def test_one_unreadable_file_names_itself_and_takes_only_its_own_issuers_down(tmp_path: Path) -> None:
    (tmp_path / "good.der").write_bytes(ca_certificate(Parts()))
    (tmp_path / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
    (tmp_path / "notes.cer").write_text("hello")
    (tmp_path / "folder.pem").mkdir()
    store = load_trust_store(tmp_path)
    found = check_ek_certificate(ek_certificate(PLAIN), EK_KEY.public_key(), store, NOW)
    assert found.trusted
    assert len(store.unreadable) == len(found.warnings) == 3
    for each in ("broken.pem", "notes.cer", "folder.pem"):
        assert any(each in sentence for sentence in store.unreadable)


def test_a_refusal_names_the_issuer_to_look_for_and_where_it_is_published() -> None:
    address = b"http://ca.vendor.example/root.cer"
    access = encoded(
        0x30, encoded(0x30, encoded(0x06, bytes.fromhex("2b06010505073002")) + encoded(0x86, address))
    )
    ek = Parts(subject=common_name(b"ek"), extensions=(extension("2b06010505070101", access),))
    other = common_name(b"someone else")
    found = verdict(Parts(subject=other, issuer=other), ek)
    assert not found.trusted
    assert "'CN=vendor'" in found.reason
    assert found.missing is not None
    assert found.missing.addresses == (address.decode(),)
