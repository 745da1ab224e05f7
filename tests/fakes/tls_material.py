"""Certificates of every sort a server meets, made with `cryptography` alone, and contexts with them."""

import datetime
import hashlib
import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from keylime.pki.asn1 import Pass
from keylime.pki.der import OPERATORS

CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
IPSEC_IKE = ObjectIdentifier("1.3.6.1.5.5.7.3.17")
NETSCAPE_COMMENT = ObjectIdentifier("2.16.840.1.113730.1.13")
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Issued:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        """The certificate's DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        """The certificate's PEM."""
        return ssl.DER_cert_to_PEM_cert(self.der)

    @property
    def key_pin(self) -> bytes:
        """The SHA-256 of its SubjectPublicKeyInfo."""
        info = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(info).digest()

    def load_into(self, context: ssl.SSLContext) -> None:
        """Makes `context` present this certificate."""
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with tempfile.NamedTemporaryFile() as file:
            file.write(key + self.pem.encode())
            file.flush()
            context.load_cert_chain(file.name)


_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class WithSerial0(Issued):
    """The same certificate with serial number 0, as Rust agents make theirs; its signature fits no more."""

    @property
    def der(self) -> bytes:
        """The certificate's DER."""
        whole = super().der
        contents, *rest = Pass(whole, OPERATORS).outermost().children
        fields = [whole[field.start : field.end] for field in contents.children]
        fields[1] = b"\x02\x01\x00"
        return _sequence(
            _sequence(b"".join(fields)) + b"".join(whole[part.start : part.end] for part in rest)
        )


def _sequence(contents: bytes) -> bytes:
    size = len(contents)
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return b"\x30" + (bytes([size]) if size < 128 else bytes([128 | len(length)]) + length) + contents


class Authority:
    """A certificate authority for tests."""

    def __init__(self, name: str = "Test CA") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        public_key = self.key.public_key()
        builder = _build(self.name, self.name, public_key, days=(-1, 30), ca=True)
        # Strict clients, as Python's from 3.13 on, want both.
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        builder = builder.add_extension(_SIGNS_CERTIFICATES, critical=True)
        self.certificate = builder.sign(self.key, hashes.SHA256())

    def issue(
        self,
        common_name: str | None,
        *,
        usages: tuple[ObjectIdentifier, ...] = (),
        days: tuple[int, int] = (-1, 30),
        ca: bool = False,
        comment: bytes = b"",
        names: Sequence[x509.GeneralName] | None = None,
    ) -> Issued:
        """A certificate valid between the two days counted from now; without `usages` it has no EKU.

        `comment` is the value of the Netscape comment that our authorities write; `names` take the place
        of 127.0.0.1.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
            if common_name is not None
            else [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "nobody")]
        )
        builder = _build(subject, self.name, key.public_key(), days=days, ca=ca, names=names)
        if comment:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(NETSCAPE_COMMENT, comment), critical=False
            )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
        # Strict clients, as Python's from 3.13 on, want it.
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        return Issued(builder.sign(self.key, hashes.SHA256()), key)

    def write(self, path: Path) -> Path:
        """The CA certificate in a PEM file."""
        path.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        return path

    def trusted_by(self, context: ssl.SSLContext) -> None:
        """Makes `context` trust this authority."""
        context.load_verify_locations(cadata=self.certificate.public_bytes(Encoding.DER))


def unmarked_node(authority: Authority, name: str) -> Issued:
    """A machine's certificate as this project's authorities made it before there were markers."""
    usages = (SERVER_AUTH, CLIENT_AUTH, IPSEC_IKE)
    return authority.issue(name, usages=usages, comment=b"\x16\x0aSSL Server", names=[x509.DNSName(name)])


def plain_leaf(authority: Authority, name: str) -> Issued:
    """A certificate as other releases' authorities make it for everybody: no usages, an untyped comment."""
    return authority.issue(name, comment=b"SSL Server", names=[x509.DNSName(name)])


def self_signed(
    common_name: str, key: ec.EllipticCurvePrivateKey | None = None, days: tuple[int, int] = (-1, 30)
) -> Issued:
    """A certificate like those that agents make for themselves, for a new key unless one is given."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    return Issued(_build(name, name, key.public_key(), days=days, ca=None).sign(key, hashes.SHA256()), key)


def server_context(authority: Authority, *, clients: ssl.VerifyMode = ssl.CERT_OPTIONAL) -> ssl.SSLContext:
    """A server's context with a certificate of `authority`, which also vouches for clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue("server", usages=(SERVER_AUTH,)).load_into(context)
    authority.trusted_by(context)
    context.verify_mode = clients
    return context


def client_context(authority: Authority, identity: Issued | None = None) -> ssl.SSLContext:
    """A client's context that trusts `authority` and presents `identity`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    authority.trusted_by(context)
    if identity is not None:
        identity.load_into(context)
    return context


def _build(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    days: tuple[int, int],
    ca: bool | None,
    names: Sequence[x509.GeneralName] | None = None,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * _DAY)
        .not_valid_after(now + days[1] * _DAY)
    )
    if names is None:
        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder if ca is None else builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
