"""Whether an endorsement key is that of a TPM whose vendor the operator trusts.

The EK certificate must hold this very EK, and must be signed by a certificate of the operator's trust store.
Pure: `tpm_cert_store` reads the directory.
"""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID, ObjectIdentifier

from keylime.errors import MalformedEvidence
from keylime.pki.certificates import PublicKey
from keylime.pki.der import (
    TolerantCertificate,
    read_certificate,
    strict_ecdsa_signature,
)
from keylime.pki.name_constraints import violated_constraint
from keylime.pki.weak_keys import key_weaknesses

_ExtensionT = TypeVar("_ExtensionT", bound=x509.ExtensionType)
ComparableName: TypeAlias = tuple[frozenset[tuple[str, str | bytes]], ...]

MAX_CHAIN = 8  # certificates, the EK's included

_EK_CERTIFICATE_USAGE = ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate
_ACCEPTED_HASHES = (hashes.SHA1, hashes.SHA256, hashes.SHA384, hashes.SHA512)
# Critical extensions that are looked at, or that say nothing about a certificate's authority.
_UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,  # the TPM's maker and model; critical by the TCG profile
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.SUBJECT_DIRECTORY_ATTRIBUTES,
        ExtensionOID.CERTIFICATE_POLICIES,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
        ExtensionOID.AUTHORITY_INFORMATION_ACCESS,
    }
)


@dataclass(frozen=True, slots=True)
class TrustStore:
    """The certificates of TPM vendors that an operator trusts: roots, intermediates or both.

    `unreadable` has a sentence about each file that could not be used: its certificates vouch for nobody.
    """

    by_subject: Mapping[ComparableName, tuple[TolerantCertificate, ...]]
    unreadable: tuple[str, ...] = ()

    def issuers_of(self, certificate: x509.Certificate) -> tuple[TolerantCertificate, ...]:
        """Those whose subject is the issuer of `certificate`."""
        return self.by_subject.get(comparable_name(certificate.issuer), ())


def names_issuer(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `certificate` says that `issuer` has issued it."""
    return comparable_name(certificate.issuer) == comparable_name(issuer.subject)


def comparable_name(name: x509.Name) -> ComparableName:
    """What is equal for equal names, by RFC 5280, 7.1: kinds of text, capitals and extra blanks do not count.

    Whether the bearer of a name has issued something is for its key to tell.
    """
    return tuple(
        frozenset((attribute.oid.dotted_string, _comparable_text(attribute.value)) for attribute in relative)
        for relative in name.rdns
    )


def _comparable_text(value: str | bytes) -> str | bytes:
    return " ".join(value.casefold().split()) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class EkVerdict:
    """`reason` says why the EK is not trusted ("" when it is); `warnings` are what an operator should know.

    `chain` has the subjects from the EK certificate to the last certificate of the store.
    """

    trusted: bool
    reason: str = ""
    chain: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    missing: "MissingIssuer | None" = None


@dataclass(frozen=True, slots=True)
class MissingIssuer:
    """The issuer that the store lacks, and where the certificate says that its certificate is published."""

    subject: str
    addresses: tuple[str, ...] = ()


def trust_store(certificates: Iterable[TolerantCertificate], unreadable: Iterable[str] = ()) -> TrustStore:
    """A store of `certificates`."""
    by_subject: dict[ComparableName, tuple[TolerantCertificate, ...]] = {}
    for item in certificates:
        subject = comparable_name(item.certificate.subject)
        by_subject[subject] = (*by_subject.get(subject, ()), item)
    return TrustStore(by_subject, tuple(unreadable))


def check_ek_certificate(
    ek_certificate: bytes, ek_public_key: PublicKey, store: TrustStore, now: datetime
) -> EkVerdict:
    """Whether `ek_certificate` (DER) proves that the EK is in a TPM of a trusted vendor. Never raises."""
    try:
        leaf = read_certificate(ek_certificate)
    except MalformedEvidence as error:
        return EkVerdict(trusted=False, reason=f"the EK certificate cannot be read: {error}")
    warnings = [f"the EK is {weakness}" for weakness in key_weaknesses(ek_public_key)]
    if leaf.normalised:
        warnings.append("the EK certificate is not strict DER, or something stands before or after it")
    warnings.extend(store.unreadable)
    if leaf.certificate.public_key() != ek_public_key:
        reason: str | None = "the EK certificate is for another key than the EK"
    else:
        reason = _problem_of_leaf(leaf.certificate, now)
    if reason:
        return EkVerdict(trusted=False, reason=reason, warnings=tuple(warnings))
    found = _find_chain((leaf,), store, now)
    if isinstance(found, _Failure):
        return EkVerdict(False, found.reason, warnings=tuple(warnings), missing=found.missing)
    if any(isinstance(item.certificate.signature_hash_algorithm, hashes.SHA1) for item in found[:-1]):
        warnings.append("the EK certificate's chain has a SHA-1 signature")
    subjects = tuple(_subject(item.certificate) for item in found)
    return EkVerdict(trusted=True, chain=subjects, warnings=tuple(warnings))


_Chain: TypeAlias = tuple[TolerantCertificate, ...]


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a chain does not reach the store."""

    reason: str
    missing: MissingIssuer | None = None


def _find_chain(chain: _Chain, store: TrustStore, now: datetime) -> _Chain | _Failure:
    """`chain` (EK certificate first) led as far up as the store goes, or why that fails.

    Every certificate of the store is an anchor. One whose own issuer is in the store too must be fit to be
    issued by it, so that an expired root or a path length is not passed over. A root has no issuer but
    itself: where it was renewed with its key, the older one beside it is of no matter.
    """
    last = chain[-1]
    if len(chain) > 1 and names_issuer(last.certificate, last.certificate) and is_signed_by(last, last):
        return chain
    candidates = store.issuers_of(last.certificate)
    issuers = [item for item in candidates if item not in chain and is_signed_by(last, item)]
    if len(chain) > 1 and not issuers:
        return chain
    failure = _no_issuer(last.certificate, candidates)
    for issuer in issuers:
        problem = _problem_of_issuer(issuer.certificate, chain, now)
        if problem is not None:
            failure = _Failure(problem)
            continue
        longer = _find_chain((*chain, issuer), store, now)
        if not isinstance(longer, _Failure):
            return longer
        failure = longer
    return failure


def _no_issuer(certificate: x509.Certificate, candidates: tuple[TolerantCertificate, ...]) -> _Failure:
    issuer = certificate.issuer.rfc4514_string()
    reason = f"no certificate in the TPM certificate store signed {_subject(certificate)!r}"
    reason += f": it was issued by {issuer!r}, "
    reason += "and the store has that name with other keys only" if candidates else "which the store lacks"
    return _Failure(reason, MissingIssuer(issuer, issuer_addresses(certificate)))


def issuer_addresses(certificate: x509.Certificate) -> tuple[str, ...]:
    """Where `certificate` says that its issuer's is published (authority information access)."""
    access = _extension(certificate, x509.AuthorityInformationAccess)
    if access is None:
        return ()
    return tuple(
        one.access_location.value
        for one in access
        if one.access_method == AuthorityInformationAccessOID.CA_ISSUERS
        and isinstance(one.access_location, x509.UniformResourceIdentifier)
    )


def is_signed_by(item: TolerantCertificate, issuer: TolerantCertificate) -> bool:
    """Whether the key of `issuer` signed the bytes of `item` as its maker wrote them."""
    certificate = item.certificate
    try:
        key, algorithm = issuer.certificate.public_key(), certificate.signature_hash_algorithm
        parameters = certificate.signature_algorithm_parameters
        if not isinstance(algorithm, _ACCEPTED_HASHES):
            return False
        if isinstance(key, rsa.RSAPublicKey) and isinstance(parameters, padding.PKCS1v15 | padding.PSS):
            key.verify(item.signature, item.signed_bytes, parameters, algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
            key.verify(strict_ecdsa_signature(item.signature), item.signed_bytes, parameters)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _problem_of_leaf(certificate: x509.Certificate, now: datetime) -> str | None:
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        return "the EK certificate is that of a CA"
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not (usage.key_encipherment or usage.key_agreement):
        return "the EK certificate's key usage allows neither key encipherment nor key agreement"
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    if purposes is not None and _EK_CERTIFICATE_USAGE not in purposes:
        return "the EK certificate is for another purpose (its extended key usage lacks tcg-kp-EKCertificate)"
    return _problem_of_any(certificate, now, "the EK certificate")


def _problem_of_issuer(certificate: x509.Certificate, below: _Chain, now: datetime) -> str | None:
    what = f"CA certificate {_subject(certificate)!r}"
    if len(below) >= MAX_CHAIN:
        return f"the EK certificate's chain is longer than {MAX_CHAIN}"
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        return f"{what} lacks the CA flag"
    if constraints.path_length is not None and len(below) - 1 > constraints.path_length:
        return f"{what} has more CA certificates below it than its path length allows"
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        return f"{what} may not sign certificates"
    names = _extension(certificate, x509.NameConstraints)
    if names is not None:
        violations = (violated_constraint(names, item.certificate) for item in below)
        if violation := next(filter(None, violations), None):
            return f"{what} has a name constraint: {violation}"
    return _problem_of_any(certificate, now, what)


def _problem_of_any(certificate: x509.Certificate, now: datetime, what: str) -> str | None:
    if now < certificate.not_valid_before_utc:
        return f"{what} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}"
    if now > certificate.not_valid_after_utc:
        return f"{what} expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            return f"{what} has the critical extension {extension.oid.dotted_string}, which is not understood"
    return None


def _extension(certificate: x509.Certificate, kind: type[_ExtensionT]) -> _ExtensionT | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()


def __getattr__(name: str) -> object:
    """What reads the store was here until 8.0; scripts that look for it in this place find it."""
    if name in ("load_trust_store", "_load_certificates"):
        return getattr(importlib.import_module("keylime.pki.tpm_cert_store"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
