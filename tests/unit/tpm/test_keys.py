import contextlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import load_der_x509_certificate
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence, UnsuitableKey
from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import (
    SignatureScheme,
    coordinate_size,
    encryption_label,
    group_order,
    parse_attestation_key,
    parse_endorsement_key,
)
from keylime.tpm.public_area import ObjectAttributes
from tests.captures import AK_LABELS, Capture, captures
from tests.fakes.software_ak import AK_ATTRIBUTES, CURVES, SoftwareAk, ecc_public, rsa_public, tpm2b

CAPTURE = captures()[0]
RSA_PUBLIC = CAPTURE.ak_public("rsassa")
ECC_PUBLIC = CAPTURE.ak_public("ecdsa")
MODULUS = RSA_PUBLIC[-256:]
X, Y = ECC_PUBLIC[-66:-34], ECC_PUBLIC[-32:]
EK_ATTRIBUTES = 0x000300B2
AES_128_CFB = b"\x00\x06\x00\x80\x00\x43"


@pytest.mark.parametrize("capture", captures(), ids=lambda capture: capture.name)
@pytest.mark.parametrize("label", AK_LABELS)
def test_captured_aks_have_the_name_and_key_that_the_tpm_gave(capture: Capture, label: str) -> None:
    key = parse_attestation_key(capture.ak_public(label))
    assert key.name == capture.ak_name(label)
    assert key.pem.encode() == capture.read(f"ak_{label}.pem")
    assert key.scheme.label == label
    assert key.scheme_hash is HashAlgorithm.SHA256
    assert key.encryption_label == ("ecc256" if label == "ecdsa" else "rsa2048")
    assert key.tpm2b_public == capture.ak_public(label)


@pytest.mark.parametrize("capture", captures(), ids=lambda capture: capture.name)
def test_captured_eks_are_read_and_the_rsa_one_is_the_certified_key(capture: Capture) -> None:
    rsa_ek, ecc_ek = (parse_endorsement_key(capture.ek_public(kind)) for kind in ("rsa", "ecc"))
    assert rsa_ek.pem.encode() == capture.read("ek_rsa.pem")
    assert ecc_ek.pem.encode() == capture.read("ek_ecc.pem")
    assert (rsa_ek.encryption_label, ecc_ek.encryption_label) == ("rsa2048", "ecc256")
    assert (rsa_ek.name_alg, rsa_ek.symmetric_bits) == (HashAlgorithm.SHA256, 128)
    assert load_der_x509_certificate(capture.ek_certificate).public_key() == rsa_ek.public_key


def test_the_tests_own_public_areas_equal_those_of_the_tpm() -> None:
    assert rsa_public(MODULUS) == RSA_PUBLIC
    assert ecc_public(X, Y, 0x0003) == ECC_PUBLIC


@pytest.mark.parametrize(
    ("bit", "label"),
    [
        (ObjectAttributes.RESTRICTED, "restricted"),
        (ObjectAttributes.SIGN_ENCRYPT, "sign"),
        (ObjectAttributes.FIXED_TPM, "fixedTPM"),
        (ObjectAttributes.FIXED_PARENT, "fixedParent"),
        (ObjectAttributes.SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (ObjectAttributes.USER_WITH_AUTH, "userWithAuth"),
    ],
)
def test_an_ak_without_a_demanded_attribute_is_refused_by_its_name(bit: int, label: str) -> None:
    with pytest.raises(UnsuitableKey, match=f"AK lacks the attribute {label}$"):
        parse_attestation_key(rsa_public(MODULUS, attributes=AK_ATTRIBUTES & ~bit))
    with pytest.raises(UnsuitableKey, match=f"AK lacks the attribute {label}$"):
        parse_attestation_key(ecc_public(X, Y, 0x0003, attributes=AK_ATTRIBUTES & ~bit))


def test_an_ak_that_can_decrypt_is_refused() -> None:
    with pytest.raises(UnsuitableKey, match="AK has the attribute decrypt"):
        parse_attestation_key(rsa_public(MODULUS, attributes=AK_ATTRIBUTES | ObjectAttributes.DECRYPT))


def test_attributes_that_say_nothing_about_attestation_are_left_alone() -> None:
    allowed = (
        ObjectAttributes.NO_DA | ObjectAttributes.ADMIN_WITH_POLICY | ObjectAttributes.ST_CLEAR | 1 << 31
    )
    key = parse_attestation_key(rsa_public(MODULUS, attributes=AK_ATTRIBUTES | allowed))
    assert key.public_key == parse_attestation_key(RSA_PUBLIC).public_key


@pytest.mark.parametrize(
    ("public", "complaint"),
    [
        (rsa_public(MODULUS, exponent=1), "exponent 1,"),
        (rsa_public(MODULUS, exponent=3), "exponent 3,"),
        (rsa_public(MODULUS[:128]), "1024 bits"),
        (rsa_public(MODULUS[:255] + b"\x01", key_bits=2047), "2047 bits"),
        (rsa_public(MODULUS, scheme=b"\x00\x10"), r"scheme null \(0x0010\)"),
        (rsa_public(MODULUS, scheme=b"\x00\x15"), "scheme 0x0015"),
        (rsa_public(MODULUS, scheme=b"\x00\x17\x00\x0b"), "scheme 0x0017"),
        (rsa_public(MODULUS, scheme=b"\x00\x14\x00\x12"), "hash sm3_256"),
        (rsa_public(MODULUS, name_alg=HashAlgorithm.SHA1), "name algorithm sha1"),
        (rsa_public(MODULUS, name_alg=HashAlgorithm.SM3_256), "name algorithm sm3_256"),
        (ecc_public(X, Y, 0x0003, scheme=b"\x00\x1a\x00\x0b\x00\x00"), r"scheme ecdaa \(0x001a\)"),
        (ecc_public(X, Y, 0x0003, scheme=b"\x00\x1c\x00\x0b"), r"scheme ecschnorr \(0x001c\)"),
        (ecc_public(X, Y, 0x0010), "curve 0x0010"),
        (ecc_public(X, Y, 0x0001), "curve 0x0001"),
    ],
)
def test_an_ak_that_cannot_be_relied_on_is_unsuitable(public: bytes, complaint: str) -> None:
    with pytest.raises(UnsuitableKey, match=complaint):
        parse_attestation_key(public)


@pytest.mark.parametrize(
    ("public", "complaint"),
    [
        (b"", "cut short"),
        (RSA_PUBLIC + b"\x00", "claims 280 bytes, 281 follow"),
        (RSA_PUBLIC[:-1], "claims 280 bytes, 279 follow"),
        (tpm2b(RSA_PUBLIC[2:] + b"\x00"), "1 unexpected"),
        (tpm2b(b"\x00\x08" + RSA_PUBLIC[4:]), "type 0x0008"),
        (tpm2b(RSA_PUBLIC[2:4] + b"\x00\x99" + RSA_PUBLIC[6:]), "not a known hash"),
        (rsa_public(MODULUS, key_bits=3072), "3072 bits that the key claims"),
        (rsa_public(b"\x00" + MODULUS[1:]), "2048 bits that the key claims"),
        (rsa_public(b"\x00" + MODULUS, key_bits=2048), "2048 bits that the key claims"),
        (rsa_public(MODULUS, scheme=b"\x00\x18\x00\x0b"), "not for its type"),
        (ecc_public(X, Y, 0x0003, scheme=b"\x00\x14\x00\x0b"), "not for its type"),
        (rsa_public(MODULUS[:-1] + b"\x00"), "modulus is even"),
        (ecc_public(X, X, 0x0003), "not on its curve"),
        (ecc_public(b"\x00" + X, Y, 0x0003), "longer than the curve's 32 bytes"),
        (ecc_public(b"", b"", 0x0003), "not on its curve"),
        (rsa_public(MODULUS, symmetric=b"\x00\x0a"), "symmetric algorithm 0x000a"),
    ],
)
def test_bytes_that_are_no_public_area_are_malformed(public: bytes, complaint: str) -> None:
    with pytest.raises(MalformedEvidence, match=complaint):
        parse_attestation_key(public)


def test_an_explicit_default_exponent_is_the_default_exponent() -> None:
    written_out = parse_attestation_key(rsa_public(MODULUS, exponent=65537))
    assert written_out.public_key == parse_attestation_key(RSA_PUBLIC).public_key
    assert written_out.name != parse_attestation_key(RSA_PUBLIC).name


@pytest.mark.parametrize("label", CURVES)
def test_coordinates_without_leading_zeros_are_the_same_point(label: str) -> None:
    curve, number = CURVES[label]
    size = coordinate_size(curve)
    secret = next(  # small multiples of the base point, until one has a coordinate with a leading zero
        scalar
        for scalar in range(2, 4000)
        if ec.derive_private_key(scalar, curve).public_key().public_numbers().x >> 8 * (size - 1) == 0
    )
    point = ec.derive_private_key(secret, curve).public_key().public_numbers()
    x, y = point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big")
    short = parse_attestation_key(ecc_public(x.lstrip(b"\x00"), y.lstrip(b"\x00"), number))
    padded = parse_attestation_key(ecc_public(x, y, number))
    assert short.public_key == padded.public_key
    assert short.encryption_label == label


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda one: one.name)
def test_the_group_order_closes_the_circle(curve: ec.EllipticCurve) -> None:
    # (order - 1) * G is -G: the same x as G, and no larger scalar is a private key.
    base = ec.derive_private_key(1, curve).public_key().public_numbers()
    last = ec.derive_private_key(group_order(curve) - 1, curve).public_key().public_numbers()
    assert (last.x, last.y != base.y) == (base.x, True)
    with pytest.raises(ValueError, match=r".+"):
        ec.derive_private_key(group_order(curve), curve)


@pytest.mark.parametrize("kind", ["rsa2048", "rsa3072"])
def test_rsa_keys_of_tpm_sizes_are_labelled_by_size(kind: str) -> None:
    public = SoftwareAk.generate(kind, SignatureScheme.RSAPSS, HashAlgorithm.SHA384).tpm2b_public
    key = parse_attestation_key(public)
    assert isinstance(key.public_key, rsa.RSAPublicKey)
    assert (key.encryption_label, key.scheme_hash) == (kind, HashAlgorithm.SHA384)
    assert encryption_label(key.public_key) == kind


EK_MODULUS = CAPTURE.ek_public("rsa")[-256:]


def ek_public(
    attributes: int = EK_ATTRIBUTES, symmetric: bytes = AES_128_CFB, name_alg: int = 0x000B
) -> bytes:
    return rsa_public(
        EK_MODULUS, scheme=b"\x00\x10", attributes=attributes, symmetric=symmetric, name_alg=name_alg
    )


def test_the_tests_own_ek_is_a_good_one() -> None:
    assert parse_endorsement_key(ek_public()).pem == parse_endorsement_key(CAPTURE.ek_public("rsa")).pem


@pytest.mark.parametrize(
    ("public", "complaint"),
    [
        (ek_public(attributes=EK_ATTRIBUTES & ~0x00010000), "lacks the attribute restricted"),
        (ek_public(attributes=EK_ATTRIBUTES & ~0x00020000), "lacks the attribute decrypt"),
        (ek_public(attributes=EK_ATTRIBUTES & ~0x2), "lacks the attribute fixedTPM"),
        (ek_public(attributes=EK_ATTRIBUTES & ~0x12), "lacks the attribute fixedTPM, fixedParent"),
        (ek_public(attributes=EK_ATTRIBUTES | 0x00040000), "has the attribute sign"),
        (ek_public(symmetric=b"\x00\x10"), "other than AES"),
        (ek_public(symmetric=b"\x00\x26\x00\x80\x00\x43"), "other than AES"),
        (ek_public(symmetric=b"\x00\x06\x00\x80\x00\x42"), "other than AES in CFB"),
        (ek_public(symmetric=b"\x00\x06\x00\x40\x00\x43"), "64 bits"),
        (ek_public(name_alg=0x0004), "name algorithm sha1"),
        (RSA_PUBLIC, "lacks the attribute decrypt"),
    ],
)
def test_a_key_that_is_no_ek_is_unsuitable(public: bytes, complaint: str) -> None:
    with pytest.raises(UnsuitableKey, match=complaint):
        parse_endorsement_key(public)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_key_or_a_declared_error(data: bytes) -> None:
    for candidate in (
        data,
        tpm2b(data),
        tpm2b(b"\x00\x01\x00\x0b" + data),
        tpm2b(b"\x00\x23\x00\x0b" + data),
    ):
        for parse in (parse_attestation_key, parse_endorsement_key):
            with contextlib.suppress(MalformedEvidence, UnsuitableKey):
                parse(candidate)


@given(
    st.sampled_from([RSA_PUBLIC, ECC_PUBLIC, CAPTURE.ek_public("rsa"), CAPTURE.ek_public("ecc")]),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_an_altered_public_area_is_another_key_or_a_declared_error(
    public: bytes, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(public)
    for offset, value in changes:
        data[offset] = value
    for parse in (parse_attestation_key, parse_endorsement_key):
        try:
            key = parse(bytes(data))
        except (MalformedEvidence, UnsuitableKey):
            continue
        assert data == public or key.name not in (CAPTURE.ak_name("rsassa"), CAPTURE.ak_name("ecdsa"))


def test_claimed_sizes_are_checked_against_what_is_there() -> None:
    with pytest.raises(MalformedEvidence, match="claims 65535 bytes"):
        parse_attestation_key(struct.pack(">H", 0xFFFF) + RSA_PUBLIC[2:])


@pytest.mark.parametrize("longer", ["x", "y"])
def test_a_coordinate_longer_than_the_curve_is_malformed(longer: str) -> None:
    point = {"x": X, "y": Y, longer: b"\0" + {"x": X, "y": Y}[longer]}
    with pytest.raises(MalformedEvidence, match="longer than the curve's 32 bytes"):
        parse_attestation_key(ecc_public(point["x"], point["y"], 0x0003))
