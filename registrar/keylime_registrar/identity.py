"""What a registration must prove before it is answered with a challenge: rules about keys and certificates.

Pure. A registration is judged twice: here by what it says, and at its activation by what its TPM can do.
Texts of errors name the field of the registration: the agent is told them, and its operator reads them.
"""

import enum
import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from keylime.errors import CredentialError, KeylimeError, MalformedEvidence, UnsuitableKey
from keylime.identifiers import AgentId
from keylime.pki.agent_certificate import PinnedKey, read_agent_tls
from keylime.pki.der import TolerantCertificate
from keylime.pki.ek import is_signed_by, names_issuer
from keylime.tpm.credential import activation_tag
from keylime.tpm.keys import (
    AttestationKey,
    EndorsementKey,
    PublicKey,
    parse_attestation_key,
    parse_device_key,
    parse_endorsement_key,
)
from keylime.tpm.signature import SignatureInvalid, parse_signature, verify_signature
from keylime.tpm.structures import CertifyInfo, parse_attest

_EK_HASH_ID = re.compile(r"[0-9a-f]{64}")


class RegistrationRefused(KeylimeError):
    """A registration whose data contradict themselves or the rules; its text names the field and says how."""


class UnknownIssuer(RegistrationRefused):
    """A certificate of the device whose issuer is not among the trusted ones."""


class IdentityChanged(KeylimeError):
    """A registration under the id of an active agent, but with another EK, AK or EK certificate."""


class IdentityDemand(enum.Enum):
    """What the operator accepts as the identity of a TPM (option `tpm_identity`)."""

    EK_CERT_OR_IAK_IDEVID = "ek_cert_or_iak_idevid"
    EK_CERT = "ek_cert"
    IAK_IDEVID = "iak_idevid"


@dataclass(frozen=True, slots=True)
class Registration:
    """What an agent says about its TPM and where to reach it: TPM2B_PUBLICs, DER certificates."""

    agent_id: AgentId
    ek_tpm: bytes
    aik_tpm: bytes
    ekcert: bytes | None = None
    iak_tpm: bytes | None = None
    iak_cert: bytes | None = None
    idevid_tpm: bytes | None = None
    idevid_cert: bytes | None = None
    ip: str | None = None
    port: int | None = None
    mtls_cert: str | None = None  # PEM, or "disabled"


@dataclass(frozen=True, slots=True)
class Certification:
    """TPM2_Certify of the AK by the IAK: TPMS_ATTEST and TPMT_SIGNATURE."""

    attest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class RegisteredCertificates:
    """The certificates of a registration, as read."""

    ekcert: TolerantCertificate | None = None
    iak_cert: TolerantCertificate | None = None
    idevid_cert: TolerantCertificate | None = None

    @property
    def irregular(self) -> tuple[str, ...]:
        """The names of those that are not strict DER."""
        named = (("ekcert", self.ekcert), ("iak_cert", self.iak_cert), ("idevid_cert", self.idevid_cert))
        return tuple(name for name, read in named if read is not None and read.normalised)


@dataclass(frozen=True, slots=True)
class ChallengedTpm:
    """What a registration that is in order is challenged with: the EK, and the AK's name."""

    agent_id: AgentId
    ek: EndorsementKey
    ak_name: bytes


def check_unchanged(new: Registration, active: Registration) -> None:
    """Returns when `new` is from the TPM of the `active` record of that id. Raises IdentityChanged.

    An id stays with its TPM until an administrator deletes the record. What the record lacks may be added.
    """
    for name in ("ek_tpm", "aik_tpm", "ekcert"):
        stored = getattr(active, name)
        if stored is not None and getattr(new, name) != stored:
            raise IdentityChanged(f"{name} differs from that of the active registration")


def tls_key_of(registration: Registration) -> str | None:
    """What callers of the agent pin, in hexadecimal; None where there is nothing to pin."""
    try:
        tls = read_agent_tls(registration.mtls_cert)
    except CredentialError:
        return None
    return tls.pin.hex() if isinstance(tls, PinnedKey) else None


def judge(
    registration: Registration,
    certificates: RegisteredCertificates,
    certification: Certification | None,
    *,
    demanded: IdentityDemand,
    load_anchors: Callable[[], Sequence[TolerantCertificate]],
) -> ChallengedTpm:
    """The TPM of a registration that is in order. Raises RegistrationRefused.

    `load_anchors` gives the certificates that IAK and IDevID certificates must be issued by.
    """
    try:
        with _about("ek_tpm"):
            ek = parse_endorsement_key(registration.ek_tpm)
        with _about("aik_tpm"):
            ak = parse_attestation_key(registration.aik_tpm)
        _check_ek(registration, certificates.ekcert, ek)
        _check_device_identity(registration, certificates, ak, certification, load_anchors)
    except MalformedEvidence as error:
        raise RegistrationRefused(str(error)) from error
    _check_demands(registration, demanded)
    return ChallengedTpm(registration.agent_id, ek, ak.name)


def tag_hash(secret: bytes, agent_id: AgentId) -> bytes:
    """The hash of the tag that only who knows `secret` can answer with."""
    return hash_tag(activation_tag(secret, agent_id))


def hash_tag(tag: str) -> bytes:
    """The form in which tags are stored and compared: equality of hashes takes the same time for all tags."""
    return hashlib.sha256(tag.encode("utf-8", "surrogatepass")).digest()


@contextmanager
def _about(field: str) -> Iterator[None]:
    """What is wrong with a TPM structure is a refusal that names the field it came in."""
    try:
        yield
    except (MalformedEvidence, UnsuitableKey, SignatureInvalid) as error:
        raise RegistrationRefused(f"{field}: {error}") from error


def _check_ek(
    registration: Registration, certificate: TolerantCertificate | None, ek: EndorsementKey
) -> None:
    if certificate is not None:
        _demand_same_key("ek_tpm", ek.public_key, "ekcert", certificate)
    # Such an id says which EK it belongs to (agent option uuid = hash_ek).
    if _EK_HASH_ID.fullmatch(registration.agent_id):
        digest = hashlib.sha256(ek.pem.encode()).hexdigest()
        if digest != registration.agent_id:
            raise RegistrationRefused("agent_id has the form of an EK's hash, but is not the hash of ek_tpm")


def _check_device_identity(
    registration: Registration,
    certificates: RegisteredCertificates,
    ak: AttestationKey,
    certification: Certification | None,
    load_anchors: Callable[[], Sequence[TolerantCertificate]],
) -> None:
    iak_tpm, iak_cert = registration.iak_tpm, certificates.iak_cert
    idevid_tpm, idevid_cert = registration.idevid_tpm, certificates.idevid_cert
    if iak_tpm is None or iak_cert is None or idevid_tpm is None or idevid_cert is None:
        parts = {"iak_tpm": iak_tpm, "iak_cert": iak_cert}
        parts |= {"idevid_tpm": idevid_tpm, "idevid_cert": idevid_cert}
        missing = [name for name, part in parts.items() if part is None]
        if len(missing) < len(parts):
            raise RegistrationRefused(
                f"{', '.join(missing)} missing: IAK and IDevID need each other, both with key and certificate"
            )
        return
    with _about("iak_tpm"):
        iak = parse_attestation_key(iak_tpm)
    with _about("idevid_tpm"):
        idevid = parse_device_key(idevid_tpm)
    _demand_same_key("iak_tpm", iak.public_key, "iak_cert", iak_cert)
    _demand_same_key("idevid_tpm", idevid, "idevid_cert", idevid_cert)
    # Always, also when the AK is the known one: else another device's IAK could be put beside it.
    if certification is None:
        raise RegistrationRefused("iak_attest and iak_sign are missing, so nothing ties the IAK to the AK")
    _check_certification(registration.agent_id, ak, iak, certification)
    anchors = load_anchors()
    _demand_issuer("idevid_cert", idevid_cert, anchors)  # the first: monitors look for its words
    _demand_issuer("iak_cert", iak_cert, anchors)


def _check_certification(
    agent_id: AgentId, ak: AttestationKey, iak: AttestationKey, certification: Certification
) -> None:
    with _about("iak_attest"):
        attest = parse_attest(certification.attest)
    if not isinstance(attest.attested, CertifyInfo):
        raise RegistrationRefused("iak_attest is not of TPM2_Certify")
    # Agents before API 2.6 qualify with the id itself.
    qualifying = (hashlib.sha256(agent_id.encode()).digest(), agent_id.encode())
    if not any(hmac.compare_digest(attest.extra_data, expected) for expected in qualifying):
        raise RegistrationRefused("iak_attest is not qualified with this agent's id")
    if not hmac.compare_digest(attest.attested.name, ak.name):
        raise RegistrationRefused("iak_attest is about another key than this AK")
    with _about("iak_sign"):
        verify_signature(iak, parse_signature(certification.signature), certification.attest)


def _check_demands(registration: Registration, demanded: IdentityDemand) -> None:
    has_ek_cert, has_iak = registration.ekcert is not None, registration.iak_tpm is not None
    match demanded:
        case IdentityDemand.EK_CERT_OR_IAK_IDEVID:
            pass  # the EK is always there; its certificate is the tenant's business
        case IdentityDemand.EK_CERT if not has_ek_cert:
            raise RegistrationRefused("ekcert is missing: tpm_identity = ek_cert demands an EK certificate")
        case IdentityDemand.IAK_IDEVID if not has_iak:
            raise RegistrationRefused("iak_tpm is missing: tpm_identity = iak_idevid demands IAK and IDevID")
        case _:
            pass


def _demand_same_key(
    key_name: str, key: PublicKey, certificate_name: str, certificate: TolerantCertificate
) -> None:
    certified = certificate.certificate.public_key()
    if not isinstance(certified, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) or certified != key:
        raise RegistrationRefused(f"{key_name} is not the key in {certificate_name}")


_WORDS = {"iak_cert": "IAK", "idevid_cert": "IDevID"}


def _demand_issuer(
    name: str, certificate: TolerantCertificate, anchors: Sequence[TolerantCertificate]
) -> None:
    if not any(_is_issued_by(certificate, anchor) for anchor in anchors):
        raise UnknownIssuer(
            f"No Root CA matched {_WORDS[name]} Certificate: {name} is not issued by a certificate in the "
            "TPM certificate store ([tenant] tpm_cert_store)"
        )


def _is_issued_by(certificate: TolerantCertificate, issuer: TolerantCertificate) -> bool:
    return names_issuer(certificate.certificate, issuer.certificate) and is_signed_by(certificate, issuer)
