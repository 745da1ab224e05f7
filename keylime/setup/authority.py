"""Which authority a chain of certificates ends in, and its fingerprint. Pure."""

import itertools
import re
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes

from keylime.errors import CredentialError

_SHA256 = re.compile(r"[0-9A-F]{64}")


def authority_of(chain: Sequence[x509.Certificate]) -> x509.Certificate:
    """The self-signed authority at the end of what a server presents, leaf first. Raises CredentialError."""
    for issued, issuer in itertools.pairwise(chain):
        _demand_issued(issued, issuer)
    if not chain or not is_authority(chain[-1]):
        raise CredentialError("it does not send the certificate of its authority")
    return chain[-1]


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether it is the certificate of an authority that vouches for itself."""
    try:
        _demand_issued(certificate, certificate)
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (CredentialError, x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False


def _demand_issued(issued: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        issued.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CredentialError("its certificates do not vouch for each other") from error


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256, as `openssl x509 -fingerprint -sha256` prints it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def same_fingerprint(one: str, other: str) -> bool:
    """Whether both are the same, however they are written. False for what is no SHA-256."""
    plain = [text.upper().removeprefix("SHA256:").replace(":", "").replace(" ", "") for text in (one, other)]
    return plain[0] == plain[1] and _SHA256.fullmatch(plain[0]) is not None
