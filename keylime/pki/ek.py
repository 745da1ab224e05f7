"""Whether an endorsement key is that of a TPM whose vendor the operator trusts (rest-api 6.6).

The EK certificate must hold this very EK, and must be signed by a certificate of the operator's trust store.
`check_ek_certificate` is pure; `load_trust_store` reads the directory.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeAlias, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtensionOID, ObjectIdentifier

from keylime.errors import ConfigError, MalformedEvidence
from keylime.pki.certificates import PublicKey
from keylime.pki.der import TolerantCertificate, read_certificate, read_pem_certificates
from keylime.pki.files import read_file
from keylime.pki.name_constraints import violated_constraint
from keylime.pki.weak_keys import key_weaknesses

_ExtensionT = TypeVar("_ExtensionT", bound=x509.ExtensionType)

TRUST_STORE_SUFFIXES = frozenset({".pem", ".crt", ".cer", ".der"})
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
    """The certificates of TPM vendors that an operator trusts: roots, intermediates or both."""

    by_subject: Mapping[bytes, tuple[TolerantCertificate, ...]]

    def issuers_of(self, certificate: x509.Certificate) -> tuple[TolerantCertificate, ...]:
        """Those whose subject is the issuer of `certificate`."""
        return self.by_subject.get(certificate.issuer.public_bytes(), ())


@dataclass(frozen=True, slots=True)
class EkVerdict:
    """`reason` says why the EK is not trusted ("" when it is); `warnings` are what an operator should know.

    `chain` has the subjects from the EK certificate to the last certificate of the store.
    """

    trusted: bool
    reason: str = ""
    chain: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def load_trust_store(directory: Path) -> TrustStore:
    """All certificates in the .pem, .crt, .cer and .der files of `directory`, each PEM (of several) or DER.

    Raises ConfigError naming the directory or file that cannot be read or holds no certificate.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix.lower() in TRUST_STORE_SUFFIXES)
    except OSError as error:
        raise ConfigError(
            f"the TPM certificate store {directory} cannot be read: {error.strerror}"
        ) from error
    return trust_store([certificate for path in paths for certificate in _load_certificates(path)])


def trust_store(certificates: Iterable[TolerantCertificate]) -> TrustStore:
    """A store of `certificates`."""
    by_subject: dict[bytes, tuple[TolerantCertificate, ...]] = {}
    for item in certificates:
        subject = item.certificate.subject.public_bytes()
        by_subject[subject] = (*by_subject.get(subject, ()), item)
    return TrustStore(by_subject)


def _load_certificates(path: Path) -> tuple[TolerantCertificate, ...]:
    data = read_file(path)
    try:
        return read_pem_certificates(data) if b"-----BEGIN" in data else (read_certificate(data),)
    except MalformedEvidence as error:
        raise ConfigError(f"{path} in the TPM certificate store cannot be used: {error}") from error


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
        warnings.append("the EK certificate is not strict DER, or something follows it")
    if leaf.certificate.public_key() != ek_public_key:
        reason: str | None = "the EK certificate is for another key than the EK"
    else:
        reason = _problem_of_leaf(leaf.certificate, now)
    if reason:
        return EkVerdict(trusted=False, reason=reason, warnings=tuple(warnings))
    found = _find_chain((leaf,), store, now)
    if isinstance(found, str):
        return EkVerdict(trusted=False, reason=found, warnings=tuple(warnings))
    if any(isinstance(item.certificate.signature_hash_algorithm, hashes.SHA1) for item in found[:-1]):
        warnings.append("the EK certificate's chain has a SHA-1 signature")
    subjects = tuple(_subject(item.certificate) for item in found)
    return EkVerdict(trusted=True, chain=subjects, warnings=tuple(warnings))


_Chain: TypeAlias = tuple[TolerantCertificate, ...]


def _find_chain(chain: _Chain, store: TrustStore, now: datetime) -> _Chain | str:
    """`chain` (EK certificate first) led as far up as the store goes, or why that fails.

    Every certificate of the store is an anchor. One whose own issuer is in the store too must be fit to be
    issued by it, so that an expired root or a path length is not passed over.
    """
    last = chain[-1]
    candidates = store.issuers_of(last.certificate)
    issuers = [item for item in candidates if item not in chain and _is_signed_by(last, item)]
    if len(chain) > 1 and not issuers:
        return chain
    reason = f"no certificate in the TPM certificate store signed {_subject(last.certificate)!r}"
    for issuer in issuers:
        problem = _problem_of_issuer(issuer.certificate, chain, now)
        if problem is None:
            longer = _find_chain((*chain, issuer), store, now)
            if not isinstance(longer, str):
                return longer
            problem = longer
        reason = problem
    return reason


def _is_signed_by(item: TolerantCertificate, issuer: TolerantCertificate) -> bool:
    certificate = item.certificate
    try:
        key, algorithm = issuer.certificate.public_key(), certificate.signature_hash_algorithm
        parameters = certificate.signature_algorithm_parameters
        if not isinstance(algorithm, _ACCEPTED_HASHES):
            return False
        if isinstance(key, rsa.RSAPublicKey) and isinstance(parameters, padding.PKCS1v15 | padding.PSS):
            key.verify(item.signature, item.signed_bytes, parameters, algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
            key.verify(item.signature, item.signed_bytes, parameters)
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
