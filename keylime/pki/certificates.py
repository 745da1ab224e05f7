"""Private keys and certificates as values. Pure.

Which certificates a certificate authority issues is the subject of `authority`, what is in files that of
`key_files`.
"""

import ipaddress
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from keylime.errors import ConfigError, CredentialError
from keylime.identifiers import AgentId
from keylime.pki.der import PARSER_ERRORS, unreadable

PrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

AGENT_CERTIFICATE_DAYS = 365  # docs/reference/rest-api.md, 3.1
CLOCK_SKEW = timedelta(minutes=5)  # fresh certificates are valid for peers whose clock is this late
MAX_COMMON_NAME = 64  # characters, X.520 ub-common-name


def parse_certificate(data: bytes) -> x509.Certificate:
    """The certificate in `data`, PEM or DER. Raises CredentialError."""
    is_pem = b"-----BEGIN" in data
    try:
        certificate = (x509.load_pem_x509_certificate if is_pem else x509.load_der_x509_certificate)(data)
        _ = certificate.issuer, certificate.subject, certificate.extensions, certificate.public_key()
    except PARSER_ERRORS as error:
        raise CredentialError(f"not an X.509 certificate: {unreadable(data, error)}") from error
    return certificate


def certificate_text(certificate: x509.Certificate) -> str:
    """`certificate` as PEM with a final newline."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def public_key_text(key: PublicKey) -> str:
    """`key` as SubjectPublicKeyInfo PEM with a final newline."""
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(encoding, form).decode("ascii")


def encode_private_key(key: PrivateKey, password: str | None) -> bytes:
    """`key` as PKCS#8 PEM, encrypted when `password` is neither None nor empty."""
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        protection = serialization.BestAvailableEncryption(password.encode("utf-8"))
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def parse_private_key(data: bytes, password: str | None, *, is_tried: bool = False) -> PrivateKey:
    """The RSA or EC key in the PEM text `data`. Raises CredentialError.

    One that `is_tried` afterwards is taken without looking for mistakes in its numbers, which for RSA takes
    longer than all else that a client does.
    A password for a key that is not encrypted is not an error: one password option serves a whole directory.
    """
    try:
        encrypted = b"ENCRYPTED" in data
        key = serialization.load_pem_private_key(
            data,
            (password or "").encode() if encrypted else None,
            unsafe_skip_rsa_key_validation=is_tried,
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CredentialError("not a private key in PEM, or not the password it is encrypted with") from error
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise CredentialError("not an RSA or elliptic-curve private key")
    return key


def alternative_names(texts: Iterable[str]) -> x509.SubjectAlternativeName:
    """A SubjectAlternativeName, sorted, without duplicates: IP addresses as such, the rest as DNS names.

    Names that are not ASCII raise ConfigError.
    """
    names: list[x509.GeneralName] = []
    for text in sorted({text.strip() for text in texts} - {""}):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(text)))
        except ValueError:
            try:
                names.append(x509.DNSName(text))
            except ValueError as error:
                raise ConfigError(f"{text!r} cannot be a name in a certificate: {error}") from error
    return x509.SubjectAlternativeName(names)


def common_name(text: str) -> x509.NameAttribute[str]:
    """A CN attribute; X.520 allows 64 characters, so a longer agent id is cut (the SAN has all of it)."""
    return x509.NameAttribute(NameOID.COMMON_NAME, text[:MAX_COMMON_NAME])


def self_signed_certificate(
    key: PrivateKey, agent: AgentId, contact: str | None, now: datetime
) -> x509.Certificate:
    """The certificate an agent registers: CN = id, names of the host, 365 days from `now`.

    It has no basicConstraints and no keyUsage on purpose: peers put it in their trust list, and OpenSSL
    does not take a self-signed certificate whose keyUsage lacks keyCertSign for its own issuer.
    """
    subject = x509.Name([common_name(agent)])
    names = {"localhost", "localhost.domain", "127.0.0.1", "::1"} | ({contact} if contact else set())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=AGENT_CERTIFICATE_DAYS))
        .add_extension(alternative_names(names), critical=False)
    )
    return builder.sign(key, hashes.SHA256())


def public_key_info(key: PrivateKey) -> bytes:
    """The SubjectPublicKeyInfo of its public key, DER."""
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, form)
