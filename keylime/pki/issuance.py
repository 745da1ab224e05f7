"""What a Keylime certificate authority signs: its own certificate, leaves, revocation lists.

Pure: keys (but for new ones), names and times come in as values. Where the files are is the
subject of `authority`.

Leaf certificates follow RFC 5280 strictly: not a CA, and each with the usages of its purpose only. A server
certificate cannot act as a client, so that the key of a registrar never is an administrator's key.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from keylime.errors import ConfigError
from keylime.pki.certificates import CLOCK_SKEW, MAX_COMMON_NAME, PrivateKey, PublicKey, alternative_names
from keylime.pki.roles import (
    ADMINISTRATOR,
    CLIENT,
    COMMENT,
    IPSEC_IKE,
    NETSCAPE_COMMENT,
    NODE,
    REVOCATION_NOTIFIER,
    SERVER,
    extended_usages,
)

_DOCUMENT_SIGNING = ObjectIdentifier("1.3.6.1.5.5.7.3.36")  # RFC 9336


@dataclass(frozen=True, slots=True)
class CertificateSubject:
    """What the options of `[ca]` say about certificates; empty name parts are left out."""

    country: str = "US"
    state: str = "MA"
    locality: str = "Lexington"
    organization: str = "Keylime"
    org_unit: str = "53"
    ca_name: str = "Keylime Certificate Authority"
    ca_lifetime_days: int = 3650
    lifetime_days: int = 365
    key_bits: int = 2048
    crl_url: str = "http://localhost:38080/crl"

    def name(self, common_name: str) -> x509.Name:
        """The distinguished name with this CN, in the order C, CN, ST, L, O, OU. Raises ConfigError."""
        parts = (
            (NameOID.COUNTRY_NAME, self.country, "cert_country"),
            (NameOID.COMMON_NAME, common_name[:MAX_COMMON_NAME], "cert_ca_name"),
            (NameOID.STATE_OR_PROVINCE_NAME, self.state, "cert_state"),
            (NameOID.LOCALITY_NAME, self.locality, "cert_locality"),
            (NameOID.ORGANIZATION_NAME, self.organization, "cert_organization"),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, self.org_unit, "cert_org_unit"),
        )
        return x509.Name([_attribute(oid, text, option) for oid, text, option in parts if text])


def new_key(subject: CertificateSubject) -> rsa.RSAPrivateKey:
    """A key of the size that `[ca] cert_bits` says. Raises ConfigError."""
    try:
        return rsa.generate_private_key(public_exponent=65537, key_size=subject.key_bits)
    except ValueError as error:
        raise ConfigError(f"[ca] cert_bits = {subject.key_bits} cannot be used: {error}") from error


def _attribute(oid: ObjectIdentifier, text: str, option: str) -> x509.NameAttribute[str]:
    try:
        return x509.NameAttribute(oid, text)
    except ValueError as error:
        raise ConfigError(f"[ca] {option} = {text!r} cannot be part of a certificate: {error}") from error


class Usage(enum.Enum):
    """What a certificate is for."""

    SERVER = enum.auto()  # a service listening with TLS
    CLIENT = enum.auto()  # an administrator's connection, and marked so
    # Delivered to a machine, for whatever its payload does with it: TLS both ways, IPsec. Marked, so that it
    # never is an administrator's or a server's, whatever else its authority has signed.
    NODE = enum.auto()
    NOTIFIER = enum.auto()  # signs revocation messages

    @classmethod
    def for_name(cls, name: str) -> "Usage":
        """The usage that goes with a certificate's well-known name."""
        return _USAGES_BY_NAME.get(name, cls.NODE)


_USAGES_BY_NAME = {SERVER: Usage.SERVER, CLIENT: Usage.CLIENT, REVOCATION_NOTIFIER: Usage.NOTIFIER}
_EXTENDED_USAGES = {
    Usage.SERVER: [ExtendedKeyUsageOID.SERVER_AUTH],
    Usage.CLIENT: [ExtendedKeyUsageOID.CLIENT_AUTH, ADMINISTRATOR],
    Usage.NODE: [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH, IPSEC_IKE, NODE],
    Usage.NOTIFIER: [_DOCUMENT_SIGNING],
}


def ca_certificate(key: PrivateKey, subject: CertificateSubject, now: datetime) -> x509.Certificate:
    """A new self-signed CA certificate with serial number 1. Raises ConfigError."""
    name = subject.name(subject.ca_name)
    public_key = key.public_key()
    builder = (
        _builder(name, name, public_key, 1, now, now + timedelta(days=subject.ca_lifetime_days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key), critical=False)
    )
    return _with_crl_url(builder, subject.crl_url).sign(key, hashes.SHA256())


def renewed_ca_certificate(
    old: x509.Certificate, key: PrivateKey, serial: int, subject: CertificateSubject, now: datetime
) -> x509.Certificate:
    """The CA certificate `old` with new dates: whatever it signed, or its `key` signs, fits both of them.

    Raises ConfigError for one that is not self-signed.
    """
    if old.issuer != old.subject:
        raise ConfigError(f"the CA certificate was issued by {old.issuer.rfc4514_string()}: renew it there")
    until = now + timedelta(days=subject.ca_lifetime_days)
    builder = _builder(old.subject, old.issuer, key.public_key(), serial, now, until)
    identifier = _authority_key_identifier(old)
    for extension in old.extensions:
        # Without the serial number of the old one, which some authorities write into it.
        is_own = extension.oid == identifier.oid
        builder = builder.add_extension(
            identifier if is_own else extension.value, critical=extension.critical
        )
    return builder.sign(key, hashes.SHA256())


def usage_of(name: str, certificate: x509.Certificate) -> Usage:
    """What an issued certificate is for. Raises ConfigError where it does not say so, as older ones."""
    if name in _USAGES_BY_NAME:
        return _USAGES_BY_NAME[name]
    try:
        usages = extended_usages(certificate)
    except ValueError as error:
        raise ConfigError(f"the certificate of {name} is damaged: {error}") from error
    if usages is not None:
        for usage, wanted in _EXTENDED_USAGES.items():
            if usages == frozenset(wanted):
                return usage
    raise ConfigError(
        f"the certificate of {name} does not say what it is for: make a new one with `keylime_ca -c create "
        f"-n {name} --role ROLE`"
    )


@dataclass(frozen=True, slots=True)
class LeafRequest:
    """A certificate to be issued; without `sans` its one alternative name is `name`."""

    name: str
    public_key: PublicKey
    serial: int
    usage: Usage
    sans: Sequence[str] = ()


def leaf_certificate(
    request: LeafRequest, ca: x509.Certificate, ca_key: PrivateKey, subject: CertificateSubject, now: datetime
) -> x509.Certificate:
    """The certificate asked for, valid `lifetime_days` but not longer than the CA. Raises ConfigError."""
    if ca.not_valid_after_utc <= now:
        raise ConfigError(f"the CA certificate expired on {ca.not_valid_after_utc:%Y-%m-%d}; make a new CA")
    until = min(now + timedelta(days=subject.lifetime_days), ca.not_valid_after_utc)
    if request.sans or request.usage is Usage.SERVER:
        names = alternative_names(request.sans or (request.name,))
    else:
        names = x509.SubjectAlternativeName([x509.DNSName(request.name)])
    # A comment that this CA's certificates have always had; a string in DER, which strict parsers demand.
    encoded_comment = bytes([0x16, len(COMMENT)]) + COMMENT
    builder = (
        _builder(subject.name(request.name), ca.subject, request.public_key, request.serial, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False, usage=request.usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_EXTENDED_USAGES[request.usage]), critical=False)
        .add_extension(x509.UnrecognizedExtension(NETSCAPE_COMMENT, encoded_comment), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(request.public_key), critical=False)
        .add_extension(_authority_key_identifier(ca), critical=False)
    )
    return _with_crl_url(builder, subject.crl_url).sign(ca_key, hashes.SHA256())


def revocation_list(
    serials: Iterable[int],
    ca: x509.Certificate,
    ca_key: PrivateKey,
    *,
    previous: x509.CertificateRevocationList | None,
    lifetime_days: int,
    now: datetime,
) -> x509.CertificateRevocationList:
    """The CRL with these serial numbers; dates of revocation known from `previous` are kept.

    It is valid for `lifetime_days`, as long as a certificate: nothing renews it in between, and a list that
    is out of date makes strict peers refuse every certificate.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(now - CLOCK_SKEW)
        .next_update(now + timedelta(days=lifetime_days))
        .add_extension(_authority_key_identifier(ca), critical=False)
        .add_extension(x509.CRLNumber(_crl_number(previous) + 1), critical=False)
    )
    for serial in serials:
        known = previous.get_revoked_certificate_by_serial_number(serial) if previous else None
        date = known.revocation_date_utc if known else now
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date).build()
        builder = builder.add_revoked_certificate(revoked)
    return builder.sign(ca_key, hashes.SHA256())


def _crl_number(crl: x509.CertificateRevocationList | None) -> int:
    if crl is None:
        return 0
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, serial: int, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
    )


def _key_usage(*, signs_certificates: bool, usage: Usage | None = None) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=usage in (Usage.SERVER, Usage.CLIENT, Usage.NODE),
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _with_crl_url(builder: x509.CertificateBuilder, url: str) -> x509.CertificateBuilder:
    if not url:
        return builder
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
    return builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
