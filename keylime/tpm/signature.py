"""TPMT_SIGNATURE, and whether one was made by an attestation key over given bytes.

Pure. Understood are the schemes that attestation keys may have here: RSASSA, RSAPSS and ECDSA.
"""

from typing import TypeAlias

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from keylime.errors import KeylimeError, MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import RSA_SCHEMES, AttestationKey, SignatureScheme, coordinate_size, group_order
from keylime.tpm.pcr import parse_bank
from keylime.tpm.structures import StructureReader

_SCHEMES = {int(scheme): scheme for scheme in SignatureScheme}
_MAX_RSA_SIZE = 512  # bytes of a 4096-bit modulus
_MAX_COORDINATE_SIZE = 66  # bytes of a P-521 number

_HASHES: dict[HashAlgorithm, hashes.HashAlgorithm] = {  # those that an AK may sign with
    HashAlgorithm.SHA1: hashes.SHA1(),  # noqa: S303 - which hashes are acceptable is the caller's configuration
    HashAlgorithm.SHA256: hashes.SHA256(),
    HashAlgorithm.SHA384: hashes.SHA384(),
    HashAlgorithm.SHA512: hashes.SHA512(),
}
_ECDSA = {algorithm: ec.ECDSA(known) for algorithm, known in _HASHES.items()}


class SignatureInvalid(KeylimeError):
    """A signature that the key did not make, or not in its own way. Becomes a finding, never trust."""


class RsaValue(msgspec.Struct, frozen=True):
    """The number of an RSA signature, big-endian, as long as the modulus."""

    signature: bytes


class EcdsaValue(msgspec.Struct, frozen=True):
    """The numbers of an ECDSA signature, big-endian; the TPM may or may not pad them to the curve's size."""

    r: bytes
    s: bytes


SignatureValue: TypeAlias = RsaValue | EcdsaValue


class Signature(msgspec.Struct, frozen=True):
    """TPMT_SIGNATURE, well-formed but not yet verified."""

    scheme: SignatureScheme
    hash_algorithm: HashAlgorithm
    value: SignatureValue


def parse_signature(data: bytes) -> Signature:
    """`data` as TPMT_SIGNATURE of scheme RSASSA, RSAPSS or ECDSA. Raises MalformedEvidence."""
    reader = StructureReader(data, "TPMT_SIGNATURE")
    number = reader.u16()
    scheme = _SCHEMES.get(number)
    if scheme is None:
        raise MalformedEvidence(f"signature scheme {number:#06x} is not rsassa, rsapss or ecdsa")
    algorithm = parse_bank(reader.u16())
    value: SignatureValue
    if scheme in RSA_SCHEMES:
        value = RsaValue(reader.sized(_MAX_RSA_SIZE))
    else:
        value = EcdsaValue(reader.sized(_MAX_COORDINATE_SIZE), reader.sized(_MAX_COORDINATE_SIZE))
    reader.finish()
    return Signature(scheme, algorithm, value)


def verify_signature(key: AttestationKey, signature: Signature, message: bytes) -> None:
    """Returns when `key` signed `message`, with exactly its own scheme and hash. Raises SignatureInvalid."""
    if signature.scheme is not key.scheme:
        raise SignatureInvalid(
            f"signature scheme is {signature.scheme.label}, the AK's is {key.scheme.label}"
        )
    if signature.hash_algorithm is not key.scheme_hash:
        raise SignatureInvalid(
            f"signature hash is {signature.hash_algorithm.label}, the AK's is {key.scheme_hash.label}"
        )
    try:
        match signature.value, key.public_key:
            case RsaValue() as value, rsa.RSAPublicKey() as public_key:
                _verify_rsa(public_key, signature, value, message)
            case EcdsaValue() as value, ec.EllipticCurvePublicKey() as public_key:
                _verify_ecdsa(public_key, signature, value, message)
            case _:
                raise SignatureInvalid(
                    f"a {key.encryption_label} key cannot sign as {signature.scheme.label}"
                )
    except InvalidSignature:
        raise SignatureInvalid("signature does not verify under the AK") from None
    except UnsupportedAlgorithm:
        # The crypto library decides what it still offers (SHA-1 may be switched off): unverified is refused.
        raise SignatureInvalid(
            f"{signature.scheme.label} with {signature.hash_algorithm.label} cannot be verified here"
        ) from None


def _verify_rsa(public_key: rsa.RSAPublicKey, signature: Signature, value: RsaValue, message: bytes) -> None:
    size = public_key.key_size // 8
    if len(value.signature) != size:
        raise SignatureInvalid(f"RSA signature has {len(value.signature)} bytes, expected {size}")
    # TPMs differ in the length of the PSS salt, by revision of their specification and by FIPS mode: the
    # largest that fits, or the digest's. The salt's length makes no signature forgeable, so any is taken.
    scheme: padding.AsymmetricPadding = (
        padding.PKCS1v15()
        if signature.scheme is SignatureScheme.RSASSA
        else padding.PSS(padding.MGF1(_HASHES[signature.hash_algorithm]), padding.PSS.AUTO)
    )
    public_key.verify(value.signature, message, scheme, _HASHES[signature.hash_algorithm])


def _verify_ecdsa(
    public_key: ec.EllipticCurvePublicKey, signature: Signature, value: EcdsaValue, message: bytes
) -> None:
    curve = public_key.curve
    size = coordinate_size(curve)
    if len(value.r) > size or len(value.s) > size:
        raise SignatureInvalid(f"ECDSA signature has numbers longer than the curve's {size} bytes")
    r, s = int.from_bytes(value.r, "big"), int.from_bytes(value.s, "big")
    order = group_order(curve)
    if not (0 < r < order and 0 < s < order):
        raise SignatureInvalid("ECDSA signature has a number outside 1 to the order of the curve")
    public_key.verify(encode_dss_signature(r, s), message, _ECDSA[signature.hash_algorithm])
