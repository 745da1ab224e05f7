"""What a runtime policy is signed with, and where the results go."""

from dataclasses import dataclass
from enum import StrEnum


class Backend(StrEnum):
    """What the envelope of a signed policy says about its key."""

    ECDSA = "ecdsa"
    X509 = "x509"


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningOrder:
    """What to sign with what, and where the results go; one of the two key files is used."""

    policy: str
    output: str | None
    key_file: str | None  # an existing key
    new_key_file: str  # where a new key is written otherwise
    backend: Backend
    certificate_file: str | None  # with Backend.X509
    validate: bool = True
    public_key_file: str | None = None  # for whoever verifies
