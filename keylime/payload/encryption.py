"""The payload on its way, encrypted under K. Pure, but for a fresh initialisation vector."""

import base64
import binascii
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keylime.errors import CredentialError

IV_SIZE = 16  # bytes; the protocol's, not the 12 usual with GCM
TAG_SIZE = 16


def encrypt_payload(k: bytes, data: bytes) -> str:
    """`data` encrypted with AES-GCM under `k` (16 or 32 bytes): base64 of IV, ciphertext and tag."""
    iv = secrets.token_bytes(IV_SIZE)
    return base64.b64encode(iv + AESGCM(k).encrypt(iv, data, None)).decode("ascii")


def decrypt_payload(k: bytes, text: str) -> bytes:
    """What `encrypt_payload` encrypted. Raises CredentialError, the same for wrong keys and altered bytes."""
    try:
        sealed = base64.b64decode(text.strip().encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise CredentialError("the payload is not base64") from error
    if len(sealed) < IV_SIZE + TAG_SIZE:
        raise CredentialError("the payload is too short to be encrypted")
    try:
        return AESGCM(k).decrypt(sealed[:IV_SIZE], sealed[IV_SIZE:], None)
    except (InvalidTag, ValueError) as error:
        raise CredentialError("the payload cannot be decrypted") from error
