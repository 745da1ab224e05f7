"""Credential activation: the proof that an AK lives in the TPM of an EK (TPM 2.0 Library, Part 1).

The registrar makes a credential that only the EK's TPM can open, and only while it holds the AK of the given
name. Opening it is the work of `device`. No TPM is needed here: tpm2-pytss computes and marshals in software.
"""

import base64
import hmac
import struct

from tpm2_pytss import TPM2B_PUBLIC  # type: ignore[import-untyped]  # the package has no type information
from tpm2_pytss.utils import make_credential as seal_credential  # type: ignore[import-untyped]

from keylime.errors import MalformedEvidence
from keylime.nonce import random_text
from keylime.tpm.keys import EndorsementKey
from keylime.tpm.structures import Reader

_HEADER = struct.Struct(">II")  # of tpm2-tools' credential file: magic and version
_MAGIC = 0xBADCC0DE
_VERSION = 1
_MAX_ID_OBJECT_SIZE = 132  # two TPM2B_DIGESTs
_MAX_SECRET_SIZE = 512  # RSA-4096
_CHALLENGE_SIZE = 32


def new_challenge() -> bytes:
    """A fresh secret for a credential: 32 letters and digits (190 bits) from the system's random source."""
    return random_text(_CHALLENGE_SIZE).encode()


def make_credential(ek: EndorsementKey, ak_name: bytes, secret: bytes) -> bytes:
    """`secret` sealed to the TPM of `ek` and the key named `ak_name`, as a `tpm2_makecredential` file.

    Raises ValueError for an empty secret or one longer than the EK's name hash: TPMs refuse to hold it.
    """
    if not 0 < len(secret) <= ek.name_alg.size:
        raise ValueError(f"a credential for this EK has 1 to {ek.name_alg.size} bytes, not {len(secret)}")
    public, _ = TPM2B_PUBLIC.unmarshal(ek.tpm2b_public)
    id_object, encrypted_secret = seal_credential(public, secret, ak_name)
    sealed: bytes = id_object.marshal() + encrypted_secret.marshal()
    return _HEADER.pack(_MAGIC, _VERSION) + sealed


def parse_credential_blob(blob: bytes) -> tuple[bytes, bytes]:
    """The contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET in `blob`. Raises MalformedEvidence."""
    reader = Reader(blob, "credential")
    if (header := reader.unpack(_HEADER)) != (_MAGIC, _VERSION):
        raise MalformedEvidence(
            f"credential starts with {header[0]:#010x} version {header[1]}, expected {_MAGIC:#010x} 1"
        )
    id_object = reader.sized(_MAX_ID_OBJECT_SIZE)
    encrypted_secret = reader.sized(_MAX_SECRET_SIZE)
    reader.finish()
    return id_object, encrypted_secret


def activation_tag(secret: bytes, agent_id: str) -> str:
    """What an agent answers to prove that it opened the credential: 96 hex digits.

    The HMAC key is the base64 *text* of the secret, not its bytes: agents and registrars in the
    field agree on that.
    """
    return hmac.digest(base64.b64encode(secret), agent_id.encode(), "sha384").hex()
