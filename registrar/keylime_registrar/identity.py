"""What a registration must prove before it is answered with a challenge: rules about keys and certificates.

Pure. A registration is judged twice: here by what it says, and at its activation by what its TPM can do.
Texts of errors are for the registrar's log; the agent only learns that its data are invalid.
"""

import enum
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from keylime.errors import KeylimeError, MalformedEvidence, UnsuitableKey
from keylime.identifiers import AgentId
from keylime.pki.der import read_certificate
from keylime.tpm.credential import activation_tag, make_credential
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
    """A registration whose data contradict themselves or the rules; its text says how, for the log."""


class IdentityChanged(KeylimeError):
    """A registration under the id of an active agent, but with another EK, AK or EK certificate."""


class TpmIdentity(enum.Enum):
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
class Challenge:
    """The credential to send to an agent, and the SHA-256 of the tag that only its TPM can answer with."""

    blob: bytes
    tag_hash: bytes


def check_unchanged(new: Registration, active: Registration) -> None:
    """Returns when `new` is from the TPM of the `active` record of that id. Raises IdentityChanged.

    An id stays with its TPM until an administrator deletes the record. What the record lacks may be added.
    """
    for name in ("ek_tpm", "aik_tpm", "ekcert"):
        stored = getattr(active, name)
        if stored is not None and getattr(new, name) != stored:
            raise IdentityChanged(f"{name} differs from that of the active registration")


def challenge(
    registration: Registration,
    certification: Certification | None,
    *,
    demanded: TpmIdentity,
    anchors: Sequence[x509.Certificate],
    secret: bytes,
) -> Challenge:
    """The challenge for a registration that is in order, sealing `secret`. Raises RegistrationRefused.

    `anchors` are the certificates that IAK and IDevID certificates must be issued by.
    """
    try:
        ek = parse_endorsement_key(registration.ek_tpm)
        ak = parse_attestation_key(registration.aik_tpm)
        _check_ek(registration, ek)
        _check_device_identity(registration, ak, certification, anchors)
    except (MalformedEvidence, UnsuitableKey, SignatureInvalid) as error:
        raise RegistrationRefused(str(error)) from error
    _check_demands(registration, demanded)
    return Challenge(
        blob=make_credential(ek, ak.name, secret),
        tag_hash=hash_tag(activation_tag(secret, registration.agent_id)),
    )


def hash_tag(tag: str) -> bytes:
    """The form in which tags are stored and compared: equality of hashes takes the same time for all tags."""
    return hashlib.sha256(tag.encode("utf-8", "surrogatepass")).digest()


def _check_ek(registration: Registration, ek: EndorsementKey) -> None:
    if registration.ekcert is not None:
        _demand_same_key("ek_tpm", ek.public_key, "ekcert", registration.ekcert)
    # Such an id says which EK it belongs to (agent option uuid = hash_ek).
    if _EK_HASH_ID.fullmatch(registration.agent_id):
        digest = hashlib.sha256(ek.pem.encode()).hexdigest()
        if digest != registration.agent_id:
            raise RegistrationRefused(
                "the agent id has the form of an EK's hash, but is not the hash of this EK"
            )


def _check_device_identity(
    registration: Registration,
    ak: AttestationKey,
    certification: Certification | None,
    anchors: Sequence[x509.Certificate],
) -> None:
    parts = (registration.iak_tpm, registration.iak_cert, registration.idevid_tpm, registration.idevid_cert)
    iak_tpm, iak_cert, idevid_tpm, idevid_cert = parts
    if iak_tpm is None or iak_cert is None or idevid_tpm is None or idevid_cert is None:
        if any(part is not None for part in parts):
            raise RegistrationRefused("IAK and IDevID need each other, both with key and certificate")
        return
    iak = parse_attestation_key(iak_tpm)
    _demand_same_key("iak_tpm", iak.public_key, "iak_cert", iak_cert)
    _demand_same_key("idevid_tpm", parse_device_key(idevid_tpm), "idevid_cert", idevid_cert)
    _demand_issuer("iak_cert", iak_cert, anchors)
    _demand_issuer("idevid_cert", idevid_cert, anchors)
    # Always, also when the AK is the known one: else another device's IAK could be put beside it.
    if certification is None:
        raise RegistrationRefused("iak_attest and iak_sign are missing, so nothing ties the IAK to the AK")
    _check_certification(registration.agent_id, ak, iak, certification)


def _check_certification(
    agent_id: AgentId, ak: AttestationKey, iak: AttestationKey, certification: Certification
) -> None:
    attest = parse_attest(certification.attest)
    if not isinstance(attest.attested, CertifyInfo):
        raise RegistrationRefused("iak_attest is not of TPM2_Certify")
    # Agents before API 2.6 qualify with the id itself.
    qualifying = (hashlib.sha256(agent_id.encode()).digest(), agent_id.encode())
    if not any(hmac.compare_digest(attest.extra_data, expected) for expected in qualifying):
        raise RegistrationRefused("iak_attest is not qualified with this agent's id")
    if not hmac.compare_digest(attest.attested.name, ak.name):
        raise RegistrationRefused("iak_attest is about another key than this AK")
    verify_signature(iak, parse_signature(certification.signature), certification.attest)


def _check_demands(registration: Registration, demanded: TpmIdentity) -> None:
    has_ek_cert, has_iak = registration.ekcert is not None, registration.iak_tpm is not None
    match demanded:
        case TpmIdentity.EK_CERT_OR_IAK_IDEVID:
            pass  # the EK is always there; its certificate is the tenant's business
        case TpmIdentity.EK_CERT if not has_ek_cert:
            raise RegistrationRefused("tpm_identity = ek_cert demands an EK certificate")
        case TpmIdentity.IAK_IDEVID if not has_iak:
            raise RegistrationRefused("tpm_identity = iak_idevid demands IAK and IDevID")
        case _:
            pass


def _demand_same_key(key_name: str, key: PublicKey, certificate_name: str, der: bytes) -> None:
    certified = read_certificate(der).certificate.public_key()
    if not isinstance(certified, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) or certified != key:
        raise RegistrationRefused(f"{key_name} is not the key in {certificate_name}")


def _demand_issuer(name: str, der: bytes, anchors: Sequence[x509.Certificate]) -> None:
    certificate = read_certificate(der).certificate
    if not any(_is_issued_by(certificate, anchor) for anchor in anchors):
        raise RegistrationRefused(f"{name} is not issued by a certificate in the TPM certificate store")


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
