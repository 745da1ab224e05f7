"""CA certificates of TPM makers, in files of any form: found, checked, named and described. Pure."""

import base64
import re
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from cryptography import x509
from cryptography.x509.oid import NameOID

from keylime.errors import MalformedEvidence
from keylime.pki.der import OPERATORS, read_certificate

_PEM = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----([^-]*)-----END ")
_NO_NAME = re.compile(r"[^A-Za-z0-9]+")


@dataclass(frozen=True, slots=True)
class VendorCertificate:
    """A CA certificate, its bytes as its maker signed them."""

    certificate: x509.Certificate
    encoded: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the bytes, as makers publish it beside them."""
        return sha256(self.encoded).hexdigest()

    @property
    def file_name(self) -> str:
        """A name for people, and unique for machines."""
        names = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        name = _NO_NAME.sub("-", str(names[0].value) if names else "").strip("-")[:60] or "unnamed"
        return f"{name}-{self.fingerprint[:16]}.pem"

    @property
    def pem(self) -> bytes:
        """The bytes in PEM; not what the library would make of them, which need not be the same."""
        body = base64.b64encode(self.encoded).decode()
        lines = "\n".join(body[at : at + 64] for at in range(0, len(body), 64))
        return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n".encode()


def ca_certificate(encoded: bytes) -> VendorCertificate:
    """The CA certificate in `encoded`. Raises MalformedEvidence, also for one that is not of a CA."""
    read = read_certificate(encoded, OPERATORS)
    try:
        constraints = read.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        constraints = None
    if constraints is None or not constraints.ca:
        raise MalformedEvidence(f"{read.certificate.subject.rfc4514_string()!r} is not that of a CA")
    return VendorCertificate(read.certificate, encoded)


def certificates_in(data: bytes) -> list[bytes]:
    """The certificates in a file, PEM or DER, each as its bytes."""
    if b"-----BEGIN" in data:
        return [decoded for block in _PEM.findall(data) if (decoded := _decoded(block))]
    return [data] if data[:1] == b"\x30" else []


def _decoded(block: bytes) -> bytes:
    try:
        return base64.b64decode(block)
    except ValueError:
        return b""


def described(item: VendorCertificate, now: datetime) -> str:
    """A certificate for the comparison with what its maker publishes."""
    until = item.certificate.not_valid_after_utc
    validity = (
        f"until {until:%Y-%m-%d}" if until > now else f"EXPIRED {until:%Y-%m-%d}: it vouches for nobody"
    )
    return f"{item.certificate.subject.rfc4514_string()!a}, {validity}, SHA-256 {item.fingerprint}"
