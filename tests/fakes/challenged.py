"""A registration judged and challenged in one step, from nothing but its bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

from keylime.errors import MalformedEvidence
from keylime.pki.der import TolerantCertificate, read_certificate
from keylime.tpm.sealing import make_credential
from keylime_registrar.identity import (
    Certification,
    IdentityDemand,
    RegisteredCertificates,
    Registration,
    RegistrationRefused,
    judge,
    tag_hash,
)


@dataclass(frozen=True, slots=True)
class CredentialChallenge:
    """The credential to send to an agent, and the SHA-256 of the tag that only its TPM can answer with."""

    blob: bytes
    tag_hash: bytes


def challenge(
    registration: Registration,
    certification: Certification | None,
    *,
    demanded: IdentityDemand,
    anchors: Sequence[TolerantCertificate],
    secret: bytes,
) -> CredentialChallenge:
    """All at once, for a registration of which there is nothing but the bytes. Raises RegistrationRefused."""
    try:
        certificates = RegisteredCertificates(
            *(
                None if der is None else read_certificate(der)
                for der in (registration.ekcert, registration.iak_cert, registration.idevid_cert)
            )
        )
    except MalformedEvidence as error:
        raise RegistrationRefused(str(error)) from error
    tpm = judge(registration, certificates, certification, demanded=demanded, load_anchors=lambda: anchors)
    return CredentialChallenge(
        make_credential(tpm.ek, tpm.ak_name, secret), tag_hash(secret, registration.agent_id)
    )
