"""The secret that a credential seals: derived from a key of the registrars, so that nobody keeps it. Pure.

An agent that repeats its registration while the first one waits gets a credential with the same secret, from
whichever process or registrar answers, and either credential proves it. What makes each registration's secret
fresh is its salt: a registration that was proven or has expired comes back with another one.
"""

import hashlib
import hmac
import string
from dataclasses import dataclass, field, fields

from keylime_registrar.identity import Registration

KEY_SIZE = 32
SALT_SIZE = 16
_ALPHABET = (string.ascii_letters + string.digits).encode()
# Characters, 190 bits: as long as the digest of every EK's name (docs/reference/rest-api.md, 2.3).
_LENGTH = 32
_PURPOSE = b"keylime registrar, secret of a challenge, 1\0"


@dataclass(frozen=True, slots=True)
class ChallengeKey:
    """A key that all registrars on one database share; `secret` is shown nowhere."""

    key_id: int
    secret: bytes = field(repr=False)


def submission_digest(registration: Registration) -> bytes:
    """SHA-256 of all that a registration says, field by field with its length."""
    digest = hashlib.sha256()
    for item in fields(Registration):
        value = getattr(registration, item.name)
        if value is None:
            digest.update(b"\0")
            continue
        content = value if isinstance(value, bytes) else str(value).encode()
        digest.update(b"\1" + len(content).to_bytes(8) + content)
    return digest.digest()


def derive_secret(key: ChallengeKey, salt: bytes, submission: bytes) -> bytes:
    """The secret for a submission with this digest: 32 letters and digits."""
    number = int.from_bytes(hmac.digest(key.secret, _PURPOSE + salt + submission, "sha512"))
    characters = bytearray()
    for _ in range(_LENGTH):  # of 512 bits no more than 191 are used, so that no letter is likelier
        number, index = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[index])
    return bytes(characters)
