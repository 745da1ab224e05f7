"""IMA file signatures: the extended attribute's format, versions 2 and 3, and their verification.

Version 2 signs the file digest. Version 3 (fs-verity since Linux 5.19, ordinary files later) signs the hash
of type, algorithm and digest, so that one kind of digest cannot pass for another (kernel: `struct
ima_file_id`).
"""

import enum
import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from keylime.ima.keyrings import ImaKey, Keyring
from keylime.ima.measurement_list import Entry

_HEADER = struct.Struct(">BBBIH")  # type, version, hash algorithm, key id, signature length: big-endian

TYPE_IMA = 3
TYPE_EVM_PORTABLE = 5
TYPE_VERITY = 6

# Hash ids of the format that can be verified: the name that digest fields use, and the library's class.
_HASHES: dict[int, tuple[str, hashes.HashAlgorithm]] = {
    1: ("md5", hashes.MD5()),  # noqa: S303 - what is weak is for the policy's keys to decide
    2: ("sha1", hashes.SHA1()),  # noqa: S303
    4: ("sha256", hashes.SHA256()),
    5: ("sha384", hashes.SHA384()),
    6: ("sha512", hashes.SHA512()),
    7: ("sha224", hashes.SHA224()),
}
_VERSIONS = {(TYPE_IMA, 2), (TYPE_EVM_PORTABLE, 2), (TYPE_IMA, 3), (TYPE_VERITY, 3)}
_KINDS = {TYPE_IMA: "ima", TYPE_VERITY: "verity"}


@dataclass(frozen=True, slots=True)
class FileSignature:
    """A well-formed signature field; `algorithm` is the format's hash id."""

    type: int
    version: int
    algorithm: int
    key_id: int
    value: bytes


def parse_file_signature(field: bytes) -> FileSignature | None:
    """The signature in a `sig` field, or None when its header or declared length does not fit."""
    if len(field) < _HEADER.size:
        return None
    kind, version, algorithm, key_id, size = _HEADER.unpack_from(field)
    if size != len(field) - _HEADER.size:
        return None
    return FileSignature(kind, version, algorithm, key_id, field[_HEADER.size :])


class Misfit(enum.Enum):
    """Why a well-formed signature does not vouch for a file."""

    UNKNOWN_KEY = "unknown key"
    OTHER_CONTENT = "does not fit the file"
    UNSUPPORTED = "of a kind that is not checked"


def check_signature(entry: Entry, keyrings: Iterable[Keyring]) -> ImaKey | Misfit | None:
    """The key whose signature over the entry's file digest verifies, else what is wrong with the signature.

    None where there is none. Keyrings are searched in order; the first key with the signature's id counts.
    """
    signature = parse_file_signature(entry.signature) if entry.signature else None
    if signature is None:
        return None
    if (signature.type, signature.version) not in _VERSIONS:
        return Misfit.UNSUPPORTED
    key = next((key for keyring in keyrings if (key := keyring.find(signature.key_id)) is not None), None)
    if key is None:
        return Misfit.UNKNOWN_KEY
    known = _HASHES.get(signature.algorithm)
    if known is None or known[0] != entry.digest_algorithm:
        return Misfit.UNSUPPORTED
    digest = _signed_digest(entry, signature, known[0])
    if digest is None:
        return Misfit.UNSUPPORTED
    return key if _verifies(key, signature.value, digest, known[1]) else Misfit.OTHER_CONTENT


def _signed_digest(entry: Entry, signature: FileSignature, algorithm: str) -> bytes | None:
    kind = _KINDS.get(signature.type, "")
    if entry.digest_kind and kind and kind != entry.digest_kind:
        return None
    if signature.version == 2:
        return None if entry.digest_kind == "verity" else entry.digest
    return hashlib.new(
        algorithm, bytes((signature.type, signature.algorithm)) + entry.digest, usedforsecurity=False
    ).digest()


def _verifies(key: ImaKey, signature: bytes, digest: bytes, algorithm: hashes.HashAlgorithm) -> bool:
    try:
        if isinstance(key.public_key, RSAPublicKey):
            key.public_key.verify(signature, digest, PKCS1v15(), Prehashed(algorithm))
        else:
            key.public_key.verify(signature, digest, ECDSA(Prehashed(algorithm)))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True
