"""TPMT_PUBLIC: the public area of an RSA or ECC key (TPM 2.0 Library, Part 2, section 12.2).

Pure, and without judgement: what a key must have for its role is decided in `keys`.
"""

import enum
from dataclasses import dataclass
from typing import TypeAlias

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.tpm.pcr import parse_bank
from keylime.tpm.structures import MAX_DIGEST_SIZE, StructureReader

TPM_ALG_NULL = 0x0010
_TPM_ALG_RSA = 0x0001
_TPM_ALG_ECC = 0x0023
_TPM_ALG_RSAES = 0x0015  # the one scheme without a hash
_TPM_ALG_ECDAA = 0x001A  # the one scheme with a counter behind its hash
_BLOCK_CIPHERS = frozenset({0x0006, 0x0013, 0x0026})  # AES, SM4, Camellia
_MAX_MODULUS_SIZE = 512
_MAX_COORDINATE_SIZE = 66


class ObjectAttributes(enum.IntFlag):
    """TPMA_OBJECT; bits without a name here are kept as they are."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN_ENCRYPT = 1 << 18
    X509_SIGN = 1 << 19

    @property
    def labels(self) -> str:
        """The names of the set bits as the specification writes them, e.g. "fixedTPM, restricted"."""
        return ", ".join(_ATTRIBUTE_LABELS.get(bit, f"{int(bit):#x}") for bit in self)


_ATTRIBUTE_LABELS = {
    ObjectAttributes.FIXED_TPM: "fixedTPM",
    ObjectAttributes.ST_CLEAR: "stClear",
    ObjectAttributes.FIXED_PARENT: "fixedParent",
    ObjectAttributes.SENSITIVE_DATA_ORIGIN: "sensitiveDataOrigin",
    ObjectAttributes.USER_WITH_AUTH: "userWithAuth",
    ObjectAttributes.ADMIN_WITH_POLICY: "adminWithPolicy",
    ObjectAttributes.NO_DA: "noDA",
    ObjectAttributes.ENCRYPTED_DUPLICATION: "encryptedDuplication",
    ObjectAttributes.RESTRICTED: "restricted",
    ObjectAttributes.DECRYPT: "decrypt",
    ObjectAttributes.SIGN_ENCRYPT: "sign",
    ObjectAttributes.X509_SIGN: "x509sign",
}


@dataclass(frozen=True, slots=True)
class SymmetricCipher:
    """TPMT_SYM_DEF_OBJECT other than NULL: TPM_ALG_IDs of cipher and mode, and the key's bits."""

    algorithm: int
    key_bits: int
    mode: int


@dataclass(frozen=True, slots=True)
class RsaParameters:
    """TPMS_RSA_PARMS, and the modulus."""

    symmetric: SymmetricCipher | None
    scheme: int  # TPM_ALG_ID, TPM_ALG_NULL for none
    scheme_hash: HashAlgorithm | None
    key_bits: int
    exponent: int  # 0 stands for 65537
    modulus: bytes  # big-endian


@dataclass(frozen=True, slots=True)
class EccPoint:
    """TPMS_ECC_POINT: coordinates, big-endian, perhaps without leading zeros."""

    x: bytes
    y: bytes


@dataclass(frozen=True, slots=True)
class EccParameters:
    """TPMS_ECC_PARMS, without the key derivation that no TPM supports there, and the point."""

    symmetric: SymmetricCipher | None
    scheme: int
    scheme_hash: HashAlgorithm | None
    curve: int  # TPM_ECC_CURVE
    point: EccPoint


Parameters: TypeAlias = RsaParameters | EccParameters


@dataclass(frozen=True, slots=True)
class PublicArea:
    """TPMT_PUBLIC of an RSA or ECC key."""

    name_alg: HashAlgorithm
    attributes: ObjectAttributes
    auth_policy: bytes
    parameters: Parameters
    encoded: bytes  # the bytes that the name is a hash of

    @property
    def name(self) -> bytes:
        """The object's name: name algorithm in two bytes, then the hash of the area.

        Raises ValueError for SM3 on a machine that lacks it.
        """
        return int(self.name_alg).to_bytes(2, "big") + self.name_alg.digest(self.encoded)


def parse_public_area(tpm2b_public: bytes) -> PublicArea:
    """The content of a TPM2B_PUBLIC of an RSA or ECC key. Raises MalformedEvidence."""
    reader = StructureReader(tpm2b_public, "TPM2B_PUBLIC")
    size = reader.u16()
    if size != reader.remaining:
        raise MalformedEvidence(f"TPM2B_PUBLIC claims {size} bytes, {reader.remaining} follow")
    encoded = reader.rest
    kind = reader.u16()
    name_alg = parse_bank(reader.u16())
    attributes = ObjectAttributes(reader.u32())
    auth_policy = reader.sized(MAX_DIGEST_SIZE)
    parameters: Parameters
    if kind == _TPM_ALG_RSA:
        parameters = _parse_rsa_parameters(reader)
    elif kind == _TPM_ALG_ECC:
        parameters = _parse_ecc_parameters(reader)
    else:
        raise MalformedEvidence(f"TPM2B_PUBLIC is of type {kind:#06x}, expected an RSA or ECC key")
    reader.finish()
    return PublicArea(name_alg, attributes, auth_policy, parameters, encoded)


def _parse_rsa_parameters(reader: StructureReader) -> RsaParameters:
    symmetric = _parse_symmetric(reader)
    scheme, scheme_hash = _parse_scheme(reader)
    return RsaParameters(
        symmetric,
        scheme,
        scheme_hash,
        key_bits=reader.u16(),
        exponent=reader.u32(),
        modulus=reader.sized(_MAX_MODULUS_SIZE),
    )


def _parse_ecc_parameters(reader: StructureReader) -> EccParameters:
    symmetric = _parse_symmetric(reader)
    scheme, scheme_hash = _parse_scheme(reader)
    curve = reader.u16()
    if (kdf := reader.u16()) != TPM_ALG_NULL:
        raise MalformedEvidence(f"TPM2B_PUBLIC has key derivation {kdf:#06x}, expected none")
    point = EccPoint(reader.sized(_MAX_COORDINATE_SIZE), reader.sized(_MAX_COORDINATE_SIZE))
    return EccParameters(symmetric, scheme, scheme_hash, curve, point)


def _parse_symmetric(reader: StructureReader) -> SymmetricCipher | None:
    algorithm = reader.u16()
    if algorithm == TPM_ALG_NULL:
        return None
    if algorithm not in _BLOCK_CIPHERS:
        raise MalformedEvidence(
            f"TPM2B_PUBLIC has symmetric algorithm {algorithm:#06x}, expected a block cipher"
        )
    return SymmetricCipher(algorithm, key_bits=reader.u16(), mode=reader.u16())


def _parse_scheme(reader: StructureReader) -> tuple[int, HashAlgorithm | None]:
    scheme = reader.u16()
    if scheme in (TPM_ALG_NULL, _TPM_ALG_RSAES):
        return scheme, None
    scheme_hash = parse_bank(reader.u16())
    if scheme == _TPM_ALG_ECDAA:
        reader.u16()
    return scheme, scheme_hash
