"""The public area of an EK that only its certificate tells of.

Agents before Keylime 7 leave `ek_tpm` out when they have a certificate. Such an EK was made from the
default template of its kind (TCG EK Credential Profile, L-1 and L-2), so that its public area follows from
the key. If that is not so, the credential that is made for it cannot be opened, and the agent does not become
active. Pure.
"""

import struct

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from keylime.errors import UnsuitableKey
from keylime.hashes import HashAlgorithm
from keylime.tpm.public_area import TPM_ALG_NULL, ObjectAttributes

_TPM_ALG_RSA, _TPM_ALG_ECC, _NIST_P256 = 0x0001, 0x0023, 0x0003
_AES_128_CFB = struct.pack(">HHH", 0x0006, 128, 0x0043)
_NULL = struct.pack(">H", TPM_ALG_NULL)
_ATTRIBUTES = (
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.ADMIN_WITH_POLICY
    | ObjectAttributes.RESTRICTED
    | ObjectAttributes.DECRYPT
)
# PolicySecret(TPM_RH_ENDORSEMENT) with SHA-256, "PolicyA" of the profile.
_POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")


def default_ek(key: object) -> bytes:
    """The TPM2B_PUBLIC of an EK with public `key`, RSA of 2048 bits or P-256. Raises UnsuitableKey."""
    if isinstance(key, rsa.RSAPublicKey) and key.key_size == 2048 and key.public_numbers().e == 65537:
        # Exponent 0 stands for 65537.
        special = _NULL + struct.pack(">HI", 2048, 0) + _sized(key.public_numbers().n.to_bytes(256))
        return _public(_TPM_ALG_RSA, special)
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        numbers = key.public_numbers()
        point = _sized(numbers.x.to_bytes(32)) + _sized(numbers.y.to_bytes(32))
        return _public(_TPM_ALG_ECC, _NULL + struct.pack(">H", _NIST_P256) + _NULL + point)
    raise UnsuitableKey("only EKs of RSA-2048 or P-256 have a template that goes without saying")


def _public(kind: int, special: bytes) -> bytes:
    head = struct.pack(">HHI", kind, HashAlgorithm.SHA256, _ATTRIBUTES)
    return _sized(head + _sized(_POLICY_A) + _AES_128_CFB + special)


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data
