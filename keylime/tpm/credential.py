"""Credential activation: the proof that an AK lives in the TPM of an EK (TPM 2.0 Library, Part 1).

The registrar makes a credential that only the EK's TPM can open, and only while it holds the AK of the given
name. Pure: what it looks like, and how its secret is answered. Sealing is in `sealing`, opening in `device`.
"""

import base64
import hmac
import struct

from keylime.errors import MalformedEvidence
from keylime.tpm.structures import StructureReader

_HEADER = struct.Struct(">II")  # of tpm2-tools' credential file: magic and version
_MAGIC = 0xBADCC0DE
_VERSION = 1
_MAX_ID_OBJECT_SIZE = 132  # two TPM2B_DIGESTs
_MAX_SECRET_SIZE = 512  # RSA-4096


def credential_blob(sealed: bytes) -> bytes:
    """The file that `tpm2_makecredential` writes, around a marshalled ID object and encrypted secret."""
    return _HEADER.pack(_MAGIC, _VERSION) + sealed


def parse_credential_blob(blob: bytes) -> tuple[bytes, bytes]:
    """The contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET in `blob`. Raises MalformedEvidence."""
    reader = StructureReader(blob, "credential")
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
