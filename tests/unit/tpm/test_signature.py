import dataclasses
import struct

import msgspec
import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import AttestationKey, SignatureScheme, parse_attestation_key
from keylime.tpm.signature import (
    EcdsaValue,
    RsaValue,
    Signature,
    SignatureInvalid,
    parse_signature,
    verify_signature,
)
from tests.captures import CapturedQuote, captured_quotes
from tests.fakes.software_ak import HASHES, SoftwareAk, tpm2b

MESSAGE = b"\xffTCG and what follows"
SHA256 = HashAlgorithm.SHA256


def key_of(ak: SoftwareAk) -> AttestationKey:
    return parse_attestation_key(ak.tpm2b_public)


@pytest.fixture(scope="module")
def rsassa() -> SoftwareAk:
    return SoftwareAk.generate("rsa2048", SignatureScheme.RSASSA)


@pytest.fixture(scope="module")
def p521() -> SoftwareAk:
    return SoftwareAk.generate("ecc521", SignatureScheme.ECDSA, HashAlgorithm.SHA512)


@pytest.mark.parametrize("quote", captured_quotes(), ids=lambda quote: quote.id)
def test_captured_signatures_verify_under_their_own_key_only(quote: CapturedQuote) -> None:
    signature = parse_signature(quote.signature)
    assert (signature.scheme.label, signature.hash_algorithm) == (quote.ak, SHA256)
    verify_signature(parse_attestation_key(quote.ak_public), signature, quote.attest)
    other = next(one for one in captured_quotes() if one.ak == quote.ak and one.capture != quote.capture)
    with pytest.raises(SignatureInvalid, match="does not verify"):
        verify_signature(parse_attestation_key(other.ak_public), signature, quote.attest)


@pytest.mark.parametrize(
    ("kind", "scheme", "algorithm"),
    [
        ("rsa2048", SignatureScheme.RSASSA, HashAlgorithm.SHA384),
        ("rsa3072", SignatureScheme.RSAPSS, HashAlgorithm.SHA512),
        ("ecc256", SignatureScheme.ECDSA, HashAlgorithm.SHA256),
        ("ecc384", SignatureScheme.ECDSA, HashAlgorithm.SHA384),
        ("ecc521", SignatureScheme.ECDSA, HashAlgorithm.SHA512),
    ],
)
def test_every_kind_of_key_is_verified(kind: str, scheme: SignatureScheme, algorithm: HashAlgorithm) -> None:
    ak = SoftwareAk.generate(kind, scheme, algorithm)
    signature = parse_signature(ak.sign(MESSAGE))
    verify_signature(key_of(ak), signature, MESSAGE)
    with pytest.raises(SignatureInvalid, match="does not verify"):
        verify_signature(key_of(ak), signature, MESSAGE + b"\x00")


@pytest.mark.parametrize("salt_length", [None, 32, 20, 0])
def test_any_length_of_the_pss_salt_is_taken(salt_length: int | None, rsassa: SoftwareAk) -> None:
    ak = dataclasses.replace(rsassa, scheme=SignatureScheme.RSAPSS)
    verify_signature(key_of(ak), parse_signature(ak.sign(MESSAGE, salt_length=salt_length)), MESSAGE)


def test_ecdsa_numbers_without_leading_zeros_are_valid(p521: SoftwareAk) -> None:
    # Half of all P-521 numbers begin with a zero byte, since the field's top byte holds a single bit.
    key = key_of(p521)
    for _ in range(8):
        r, s = (number.to_bytes((number.bit_length() + 7) // 8, "big") for number in p521.sign_ecdsa(MESSAGE))
        header = struct.pack(">HH", SignatureScheme.ECDSA, HashAlgorithm.SHA512)
        verify_signature(key, parse_signature(header + tpm2b(r) + tpm2b(s)), MESSAGE)
        padded = tpm2b(r.rjust(66, b"\x00")) + tpm2b(s.rjust(66, b"\x00"))
        verify_signature(key, parse_signature(header + padded), MESSAGE)


def test_a_key_and_a_value_of_different_kinds_are_refused(rsassa: SoftwareAk) -> None:
    # No parser makes such a signature; the check stands for itself.
    mixed = Signature(SignatureScheme.RSASSA, SHA256, EcdsaValue(b"\x01", b"\x01"))
    with pytest.raises(SignatureInvalid, match="rsa2048 key cannot sign"):
        verify_signature(key_of(rsassa), mixed, MESSAGE)


def test_the_other_rsa_padding_is_refused_even_under_the_right_label(rsassa: SoftwareAk) -> None:
    pss = dataclasses.replace(rsassa, scheme=SignatureScheme.RSAPSS).sign(MESSAGE)
    relabelled = struct.pack(">H", SignatureScheme.RSASSA) + pss[2:]
    with pytest.raises(SignatureInvalid, match="does not verify"):
        verify_signature(key_of(rsassa), parse_signature(relabelled), MESSAGE)


def test_another_hash_inside_the_padding_is_refused(rsassa: SoftwareAk) -> None:
    private_key = rsassa.private_key
    assert isinstance(private_key, rsa.RSAPrivateKey)
    value = private_key.sign(MESSAGE, padding.PKCS1v15(), HASHES[HashAlgorithm.SHA1])
    with pytest.raises(SignatureInvalid, match="does not verify"):
        verify_signature(key_of(rsassa), Signature(SignatureScheme.RSASSA, SHA256, RsaValue(value)), MESSAGE)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "cut short"),
        (bytes.fromhex("0005 000b") + bytes(32), "scheme 0x0005"),  # HMAC
        (bytes.fromhex("001a 000b 0001 01 0001 01"), "scheme 0x001a"),  # ECDAA
        (bytes.fromhex("001c 000b 0001 01 0001 01"), "scheme 0x001c"),  # ECSCHNORR
        (bytes.fromhex("0010"), "scheme 0x0010"),
        (bytes.fromhex("0014 0099 0001 01"), "not a known hash"),
        (bytes.fromhex("0014 000b ffff 01"), "65535 bytes"),
        (bytes.fromhex("0014 000b 0002 01"), "cut short"),
        (bytes.fromhex("0014 000b 0001 01 00"), "1 unexpected"),
        (bytes.fromhex("0018 000b 0043") + bytes(67), "67 bytes"),
        (bytes.fromhex("0018 000b 0001 01"), "cut short"),
        (bytes.fromhex("0018 000b 0001 01 0001 01 ff"), "1 unexpected"),
    ],
)
def test_other_bytes_are_malformed_for_a_stated_reason(data: bytes, complaint: str) -> None:
    with pytest.raises(MalformedEvidence, match=complaint):
        parse_signature(data)


def encode(signature: Signature) -> bytes:
    header = struct.pack(">HH", signature.scheme, signature.hash_algorithm)
    match signature.value:
        case RsaValue(value):
            return header + tpm2b(value)
        case EcdsaValue(r, s):
            return header + tpm2b(r) + tpm2b(s)


@given(st.binary(max_size=200), st.sampled_from([0x14, 0x16, 0x18]), st.sampled_from(list(HashAlgorithm)))
def test_any_bytes_parse_canonically_or_are_malformed(data: bytes, scheme: int, algorithm: int) -> None:
    for candidate in (data, struct.pack(">HH", scheme, algorithm) + data):
        try:
            signature = parse_signature(candidate)
        except MalformedEvidence:
            continue
        assert encode(signature) == candidate


def unsupported(*_: object) -> None:
    raise UnsupportedAlgorithm("switched off on this machine")


def test_what_the_crypto_library_cannot_verify_is_refused(rsassa: SoftwareAk) -> None:
    """A library that follows a policy of its own may have SHA-1 switched off: that is no pass."""
    members = {**dict.fromkeys(rsa.RSAPublicKey.__abstractmethods__, unsupported), "key_size": 2048}
    strict_key = type("StrictKey", (rsa.RSAPublicKey,), members)()
    key = dataclasses.replace(key_of(rsassa), public_key=strict_key)
    with pytest.raises(SignatureInvalid, match="rsassa with sha256 cannot be verified here"):
        verify_signature(key, parse_signature(rsassa.sign(MESSAGE)), MESSAGE)


@pytest.mark.parametrize("longer", ["r", "s"])
def test_a_number_longer_than_the_curve_is_refused(p521: SoftwareAk, longer: str) -> None:
    signature = parse_signature(p521.sign(MESSAGE))
    assert isinstance(signature.value, EcdsaValue)
    number = b"\0" + getattr(signature.value, longer)
    value = msgspec.structs.replace(signature.value, **{longer: number})
    with pytest.raises(SignatureInvalid, match="longer than the curve's 66 bytes"):
        verify_signature(key_of(p521), msgspec.structs.replace(signature, value=value), MESSAGE)
