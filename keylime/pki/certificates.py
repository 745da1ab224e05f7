"""Private keys and certificates as values, and the self-signed identity with which an agent serves HTTPS.

Which certificates a certificate authority issues is the subject of `authority`.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from keylime.errors import ConfigError, CredentialError
from keylime.identifiers import AgentId
from keylime.pki.files import read_private_key_file, read_service_file, write_atomically

PrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

AGENT_CERTIFICATE_DAYS = 365  # rest-api 3.1
RENEWAL_MARGIN = timedelta(days=30)  # a certificate nearer to its end is made anew at start
CLOCK_SKEW = timedelta(minutes=5)  # fresh certificates are valid for peers whose clock is this late
MAX_COMMON_NAME = 64  # characters, X.520 ub-common-name

_RSA_BITS = 2048


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """The files an agent serves HTTPS with; `certificate_pem` is what it registers as `mtls_cert`."""

    certificate: Path
    key: Path
    certificate_pem: str


def parse_certificate(data: bytes) -> x509.Certificate:
    """The certificate in `data`, PEM or DER. Raises CredentialError."""
    try:
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise CredentialError(f"not an X.509 certificate: {error}") from error


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


def parse_private_key(data: bytes, password: str | None) -> PrivateKey:
    """The RSA or EC key in the PEM text `data`. Raises CredentialError.

    A password for a key that is not encrypted is not an error: one password option serves a whole directory.
    """
    try:
        encrypted = b"ENCRYPTED" in data
        key = serialization.load_pem_private_key(data, (password or "").encode() if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CredentialError("not a private key in PEM, or not the password it is encrypted with") from error
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise CredentialError("not an RSA or elliptic-curve private key")
    return key


def load_private_key(path: Path, password: str | None) -> PrivateKey:
    """The private key in the file `path`. Raises ConfigError, also when other users can touch the file."""
    try:
        return parse_private_key(read_private_key_file(path), password)
    except CredentialError as error:
        raise ConfigError(f"{path}: {error}") from error


def load_or_create_ecc_key(path: Path, password: str | None) -> PrivateKey:
    """The key in `path`, of any type, or a new P-256 key saved there with mode 0600. Raises ConfigError."""
    if path.exists():
        return load_private_key(path, password)
    key = ec.generate_private_key(ec.SECP256R1())
    write_atomically(path, encode_private_key(key, password), 0o600)
    return key


def load_or_create_rsa_key(path: Path, password: str | None) -> rsa.RSAPrivateKey:
    """The RSA key in `path`, or a new RSA-2048 key saved there with mode 0600. Raises ConfigError."""
    if not path.exists():
        fresh = rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
        write_atomically(path, encode_private_key(fresh, password), 0o600)
        return fresh
    key = load_private_key(path, password)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ConfigError(
            f"{path} holds no RSA key, and shares are encrypted with RSA; delete it to get a new one"
        )
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
    """The certificate an agent registers, per rest-api 3.1: CN = id, names of the host, 365 days from `now`.

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


def load_or_create_identity(
    certificate: Path,
    key: Path,
    *,
    agent: AgentId,
    contact: str | None = None,
    key_password: str | None = None,
    now: datetime | None = None,
) -> AgentIdentity:
    """The agent's key and self-signed certificate, made where missing. Raises ConfigError.

    The certificate is made anew, with the same key, when it names another agent or is about to expire.
    One that somebody else issued stays as it is: the operator put it there.
    """
    moment = now or datetime.now(UTC)
    private_key = load_or_create_ecc_key(key, key_password)
    existing = _load_own_certificate(certificate) if certificate.exists() else None
    if existing is None or _is_outdated(existing, agent, moment):
        existing = self_signed_certificate(private_key, agent, contact, moment)
        write_atomically(certificate, certificate_text(existing).encode("ascii"), 0o600)
    elif existing.public_key() != private_key.public_key():
        raise ConfigError(
            f"{certificate} does not belong to the key in {key}; delete the certificate to renew it"
        )
    return AgentIdentity(certificate, key, certificate_text(existing))


def _load_own_certificate(path: Path) -> x509.Certificate:
    try:
        return parse_certificate(read_service_file(path))
    except CredentialError as error:
        raise ConfigError(f"{path}: {error}") from error


def _is_outdated(certificate: x509.Certificate, agent: AgentId, now: datetime) -> bool:
    if certificate.issuer != certificate.subject:
        return False
    if certificate.subject != x509.Name([common_name(agent)]):
        return True
    return certificate.not_valid_after_utc - RENEWAL_MARGIN <= now
