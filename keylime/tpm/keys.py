"""TPM keys, parsed and judged for their role: attestation keys (AK) and endorsement keys (EK).

Pure. A key that parses is not yet trusted: the EK needs its certificate, the AK the activation of a
credential.
"""

import enum
from dataclasses import dataclass
from typing import TypeAlias

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from keylime.errors import MalformedEvidence, UnsuitableKey
from keylime.hashes import HashAlgorithm
from keylime.tpm.public_area import (
    EccParameters,
    ObjectAttributes,
    PublicArea,
    RsaParameters,
    parse_public_area,
)

PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class SignatureScheme(enum.IntEnum):
    """The signature schemes that can be verified here; the value is the TPM_ALG_ID."""

    RSASSA = 0x0014
    RSAPSS = 0x0016
    ECDSA = 0x0018

    @property
    def label(self) -> str:
        """The name on the wire and in configuration: "rsassa", "rsapss", "ecdsa"."""
        return _SCHEME_LABELS[self]


_SCHEME_LABELS = {scheme: scheme.name.lower() for scheme in SignatureScheme}

RSA_SCHEMES = frozenset({SignatureScheme.RSASSA, SignatureScheme.RSAPSS})

_RSA_EXPONENT = 65537
RSA_SIZES = (2048, 3072, 4096)  # bits
CURVES: dict[int, ec.EllipticCurve] = {  # by TPM_ECC_CURVE
    0x0003: ec.SECP256R1(),
    0x0004: ec.SECP384R1(),
    0x0005: ec.SECP521R1(),
}
# The orders of the curves' base points (NIST SP 800-186, section 3.2.1), by the curves' names.
_GROUP_ORDERS = {
    "secp256r1": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "secp384r1": int(
        "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
        16,
    ),
    "secp521r1": int(
        "01fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffa"
        "51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409",
        16,
    ),
}
# SHA-1 would let two different public areas share one name. As the hash of a *signature* scheme it is read:
# the operator's accept list decides about it.
_NAME_HASHES = frozenset({HashAlgorithm.SHA256, HashAlgorithm.SHA384, HashAlgorithm.SHA512})
_SIGNATURE_HASHES = _NAME_HASHES | {HashAlgorithm.SHA1}

_AK_ATTRIBUTES = (
    ObjectAttributes.RESTRICTED
    | ObjectAttributes.SIGN_ENCRYPT
    | ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.USER_WITH_AUTH
)
_EK_ATTRIBUTES = (
    ObjectAttributes.RESTRICTED
    | ObjectAttributes.DECRYPT
    | ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
)
_AES = 0x0006
_CFB = 0x0043


@dataclass(frozen=True, slots=True)
class AttestationKey:
    """An AK: a key that signs only what its own TPM made, so its signature under a quote means something."""

    public_key: PublicKey
    scheme: SignatureScheme
    scheme_hash: HashAlgorithm
    name: bytes  # name algorithm (two bytes) and hash of the public area: what a credential is bound to
    tpm2b_public: bytes

    @property
    def encryption_label(self) -> str:
        """The kind of key as agents announce it: "rsa2048", "ecc256"."""
        return encryption_label(self.public_key)

    @property
    def pem(self) -> str:
        """The public key in SubjectPublicKeyInfo PEM."""
        return public_key_pem(self.public_key)


@dataclass(frozen=True, slots=True)
class EndorsementKey:
    """An EK: a decryption key that never leaves its TPM and that the TPM's maker certifies."""

    public_key: PublicKey
    name_alg: HashAlgorithm
    name: bytes
    symmetric_bits: int  # of the AES-CFB cipher with which the EK wraps credentials
    tpm2b_public: bytes

    @property
    def encryption_label(self) -> str:
        """The kind of key: "rsa2048", "ecc384"."""
        return encryption_label(self.public_key)

    @property
    def pem(self) -> str:
        """The public key in SubjectPublicKeyInfo PEM, from which `hash_ek` ids are made."""
        return public_key_pem(self.public_key)


def parse_attestation_key(tpm2b_public: bytes) -> AttestationKey:
    """The AK in a TPM2B_PUBLIC.

    Raises MalformedEvidence for bytes that are no public area, and UnsuitableKey, naming the attribute, for
    a key whose signature under a quote would prove nothing.
    """
    area = parse_public_area(tpm2b_public)
    _demand_attributes("AK", area.attributes, required=_AK_ATTRIBUTES, forbidden=ObjectAttributes.DECRYPT)
    public_key = _public_key_of("AK", area)
    scheme = _signature_scheme(area)
    scheme_hash = area.parameters.scheme_hash
    if scheme_hash not in _SIGNATURE_HASHES:
        raise UnsuitableKey(
            f"AK signs with hash {scheme_hash and scheme_hash.label}, expected sha256, sha384 or sha512"
        )
    return AttestationKey(
        public_key=public_key,
        scheme=scheme,
        scheme_hash=scheme_hash,
        name=_name_of("AK", area),
        tpm2b_public=tpm2b_public,
    )


def parse_endorsement_key(tpm2b_public: bytes) -> EndorsementKey:
    """The EK in a TPM2B_PUBLIC. Raises MalformedEvidence, or UnsuitableKey that names what the EK lacks."""
    area = parse_public_area(tpm2b_public)
    _demand_attributes(
        "EK", area.attributes, required=_EK_ATTRIBUTES, forbidden=ObjectAttributes.SIGN_ENCRYPT
    )
    symmetric = area.parameters.symmetric
    if symmetric is None or symmetric.algorithm != _AES or symmetric.mode != _CFB:
        raise UnsuitableKey("EK has a symmetric algorithm other than AES in CFB mode")
    if symmetric.key_bits not in (128, 192, 256):
        raise UnsuitableKey(f"EK has an AES key of {symmetric.key_bits} bits, expected 128, 192 or 256")
    return EndorsementKey(
        public_key=_public_key_of("EK", area),
        name_alg=area.name_alg,
        name=_name_of("EK", area),
        symmetric_bits=symmetric.key_bits,
        tpm2b_public=tpm2b_public,
    )


def parse_device_key(tpm2b_public: bytes) -> PublicKey:
    """The public key in the TPM2B_PUBLIC of an IDevID, of which no attributes are demanded.

    Raises MalformedEvidence, or UnsuitableKey for a kind of key that is not used here.
    """
    return _public_key_of("IDevID", parse_public_area(tpm2b_public))


def encryption_label(public_key: PublicKey) -> str:
    """The kind of key in Keylime's terms, size included: "rsa2048", "ecc256"."""
    family = "rsa" if isinstance(public_key, rsa.RSAPublicKey) else "ecc"
    return f"{family}{public_key.key_size}"


def public_key_pem(public_key: PublicKey) -> str:
    """`public_key` in SubjectPublicKeyInfo PEM."""
    return public_key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def coordinate_size(curve: ec.EllipticCurve) -> int:
    """Bytes of a coordinate or signature number of `curve`: 32, 48 or 66."""
    return (curve.key_size + 7) // 8


def group_order(curve: ec.EllipticCurve) -> int:
    """The order of the base point of P-256, P-384 or P-521. Raises KeyError for other curves."""
    return _GROUP_ORDERS[curve.name]


def _demand_attributes(
    role: str, attributes: ObjectAttributes, *, required: ObjectAttributes, forbidden: ObjectAttributes
) -> None:
    if missing := required & ~attributes:
        raise UnsuitableKey(f"{role} lacks the attribute {missing.labels}")
    if excess := forbidden & attributes:
        raise UnsuitableKey(f"{role} has the attribute {excess.labels}")


def _name_of(role: str, area: PublicArea) -> bytes:
    if area.name_alg not in _NAME_HASHES:
        raise UnsuitableKey(
            f"{role} has name algorithm {area.name_alg.label}, expected sha256, sha384 or sha512: with a "
            "weak hash two different keys can have one name"
        )
    return area.name


def _signature_scheme(area: PublicArea) -> SignatureScheme:
    try:
        scheme = SignatureScheme(area.parameters.scheme)
    except ValueError:
        raise UnsuitableKey(
            f"AK has signature scheme {_scheme_label(area.parameters.scheme)}, "
            "expected rsassa, rsapss or ecdsa, which verifiers can check"
        ) from None
    if (scheme in RSA_SCHEMES) is not isinstance(area.parameters, RsaParameters):
        raise MalformedEvidence(f"public area has scheme {scheme.label}, which is not for its type of key")
    return scheme


def _scheme_label(scheme: int) -> str:
    known = {0x001A: "ecdaa", 0x001B: "sm2", 0x001C: "ecschnorr", 0x0010: "null"}
    return f"{known[scheme]} ({scheme:#06x})" if scheme in known else f"{scheme:#06x}"


def _public_key_of(role: str, area: PublicArea) -> PublicKey:
    match area.parameters:
        case RsaParameters() as parameters:
            return _rsa_key(role, parameters)
        case EccParameters() as parameters:
            return _ecc_key(role, parameters)


def _rsa_key(role: str, parameters: RsaParameters) -> rsa.RSAPublicKey:
    if parameters.key_bits not in RSA_SIZES:
        raise UnsuitableKey(
            f"{role} is an RSA key of {parameters.key_bits} bits, expected 2048, 3072 or 4096"
        )
    exponent = parameters.exponent or _RSA_EXPONENT  # zero stands for the default, 2^16 + 1
    if exponent != _RSA_EXPONENT:
        raise UnsuitableKey(f"{role} has RSA exponent {exponent}, expected {_RSA_EXPONENT}")
    number = int.from_bytes(parameters.modulus, "big")
    if len(parameters.modulus) * 8 != parameters.key_bits or number.bit_length() != parameters.key_bits:
        raise MalformedEvidence(
            f"RSA modulus does not have the {parameters.key_bits} bits that the key claims"
        )
    if number % 2 == 0:
        raise MalformedEvidence("RSA modulus is even")
    return rsa.RSAPublicNumbers(exponent, number).public_key()  # refuses nothing that got this far


def _ecc_key(role: str, parameters: EccParameters) -> ec.EllipticCurvePublicKey:
    curve = CURVES.get(parameters.curve)
    if curve is None:
        raise UnsuitableKey(f"{role} is on curve {parameters.curve:#06x}, expected P-256, P-384 or P-521")
    size, point = coordinate_size(curve), parameters.point
    if len(point.x) > size or len(point.y) > size:
        raise MalformedEvidence(f"ECC point has coordinates longer than the curve's {size} bytes")
    # Read as numbers, since some TPMs leave out leading zeros; the name stays that of the bytes as they are.
    x, y = int.from_bytes(point.x, "big"), int.from_bytes(point.y, "big")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    except ValueError as error:
        raise MalformedEvidence(f"ECC point is not on its curve: {error}") from error
