"""The key and the self-signed certificate in files with which an agent serves HTTPS."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from keylime.errors import ConfigError, CredentialError
from keylime.identifiers import AgentId
from keylime.pki.agent_certificate import AgentCertificate, read_agent_certificate
from keylime.pki.certificates import certificate_text, common_name, public_key_info, self_signed_certificate
from keylime.pki.files import read_service_file, write_atomically
from keylime.pki.key_files import load_or_create_ecc_key


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """The files an agent serves HTTPS with; `certificate_pem` is what it registers as `mtls_cert`.

    `remark` is for the log: what of the certificate could be better.
    """

    certificate: Path
    key: Path
    certificate_pem: str
    remark: str | None = None


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

    The certificate is made anew, with the same key, when it names another agent or is about to expire; where
    it cannot be written, the one that is there goes on to serve, and `remark` tells. One that somebody else
    issued stays as it is: the operator put it there.
    """
    moment = now or datetime.now(UTC)
    private_key = load_or_create_ecc_key(key, key_password)
    existing = _load_own_certificate(certificate) if certificate.exists() else None
    fits = existing is not None and existing.public_key == public_key_info(private_key)
    if existing is None or _is_outdated(existing, agent, moment):
        fresh = certificate_text(self_signed_certificate(private_key, agent, contact, moment))
        try:
            write_atomically(certificate, fresh.encode("ascii"), 0o600)
        except ConfigError as error:
            if existing is None or not fits:
                raise
            remark = f"the agent's certificate cannot be made anew and stays as it is: {error}"
            return AgentIdentity(certificate, key, existing.pem, remark)
        return AgentIdentity(certificate, key, fresh)
    if not fits:
        raise ConfigError(
            f"{certificate} does not belong to the key in {key}; delete the certificate to renew it"
        )
    return AgentIdentity(certificate, key, existing.pem, _remark(certificate, existing, moment))


def _load_own_certificate(path: Path) -> AgentCertificate:
    try:
        return read_agent_certificate(read_service_file(path))
    except CredentialError as error:
        raise ConfigError(f"{path}: {error}") from error


def _is_outdated(certificate: AgentCertificate, agent: AgentId, now: datetime) -> bool:
    if not certificate.is_self_signed:
        return False
    if certificate.subject != x509.Name([common_name(agent)]).public_bytes():
        return True
    # What libraries warn of today they refuse one day.
    return certificate.serial <= 0 or certificate.ends_soon(now)


def _remark(path: Path, certificate: AgentCertificate, now: datetime) -> str | None:
    """What an operator should know about a certificate that stays as it is."""
    if certificate.begins_later(now):
        return f"{path} begins only later: the machine's clock is wrong, or was when it was made"
    if certificate.ends_soon(now):
        return (
            f"{path} was issued by somebody else and ends soon, or has ended: put another one for the same "
            "key there, and reload the agent"
        )
    return None
