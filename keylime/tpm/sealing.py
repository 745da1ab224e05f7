"""A secret sealed into a credential, with fresh randomness (TPM 2.0 Library, Part 1, 24 and Annexes B and C).

This is TPM2_MakeCredential, which needs no TPM. That TPMs open what it makes is tested with TPMs.
"""

import hmac
import secrets
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from keylime.hashes import HashAlgorithm
from keylime.tpm.credential import credential_blob
from keylime.tpm.keys import EndorsementKey, coordinate_size

_IDENTITY, _STORAGE, _INTEGRITY = b"IDENTITY\0", b"STORAGE\0", b"INTEGRITY\0"
_FIRST = struct.pack(">I", 1)  # the counter of a key derivation that gives no more than one digest
_BLOCK_SIZE = 16
# Those that the name of an EK may have.
_OAEP_HASHES: dict[HashAlgorithm, hashes.HashAlgorithm] = {
    HashAlgorithm.SHA256: hashes.SHA256(),
    HashAlgorithm.SHA384: hashes.SHA384(),
    HashAlgorithm.SHA512: hashes.SHA512(),
}


def make_credential(ek: EndorsementKey, ak_name: bytes, secret: bytes) -> bytes:
    """`secret` sealed to the TPM of `ek` and the key named `ak_name`, as a `tpm2_makecredential` file.

    Raises ValueError for an empty secret or one longer than the EK's name hash: TPMs refuse to hold it.
    """
    if not 0 < len(secret) <= ek.name_alg.size:
        raise ValueError(f"a credential for this EK has 1 to {ek.name_alg.size} bytes, not {len(secret)}")
    seed, encrypted_seed = _new_seed(ek)
    key = _derive(ek.name_alg, seed, _STORAGE + ak_name, ek.symmetric_bits)
    encrypted = _encrypt_cfb(key, _sized(secret))
    integrity_key = _derive(ek.name_alg, seed, _INTEGRITY, 8 * ek.name_alg.size)
    integrity = hmac.digest(integrity_key, encrypted + ak_name, ek.name_alg.label)
    return credential_blob(_sized(_sized(integrity) + encrypted) + _sized(encrypted_seed))


def _new_seed(ek: EndorsementKey) -> tuple[bytes, bytes]:
    """A random seed, and what the EK's TPM finds it in."""
    if isinstance(ek.public_key, rsa.RSAPublicKey):
        seed, algorithm = secrets.token_bytes(ek.name_alg.size), _OAEP_HASHES[ek.name_alg]
        return seed, ek.public_key.encrypt(seed, OAEP(MGF1(algorithm), algorithm, _IDENTITY))
    size = coordinate_size(ek.public_key.curve)
    ephemeral = ec.generate_private_key(ek.public_key.curve)
    point = ephemeral.public_key().public_numbers()
    x, y = point.x.to_bytes(size), point.y.to_bytes(size)
    shared = ephemeral.exchange(ec.ECDH(), ek.public_key)
    parties = x + ek.public_key.public_numbers().x.to_bytes(size)
    return ek.name_alg.digest(_FIRST + shared + _IDENTITY + parties), _sized(x) + _sized(y)  # KDFe


def _derive(algorithm: HashAlgorithm, seed: bytes, label_and_context: bytes, bits: int) -> bytes:
    """KDFa (Part 1, 11.4.10.2) for a key that is no longer than a digest."""
    message = _FIRST + label_and_context + struct.pack(">I", bits)
    return hmac.digest(seed, message, algorithm.label)[: bits // 8]


def _encrypt_cfb(key: bytes, plain: bytes) -> bytes:
    """AES-CFB with full blocks and an initial vector of zeros: each key encrypts one text."""
    encrypt_block = Cipher(AES(key), ECB()).encryptor().update  # noqa: S305  # a block at a time makes CFB
    encrypted, block = b"", bytes(_BLOCK_SIZE)
    for start in range(0, len(plain), _BLOCK_SIZE):
        part = plain[start : start + _BLOCK_SIZE]
        block = bytes(one ^ other for one, other in zip(part, encrypt_block(block), strict=False))
        encrypted += block
    return encrypted


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data
