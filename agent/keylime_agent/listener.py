"""The TLS side of the agent's listener: its own certificate, and whose clients may connect."""

import logging
import ssl
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from keylime.errors import ConfigError
from keylime.identifiers import AgentId
from keylime.pki.agent_certificate import key_pin
from keylime.pki.agent_identity import load_or_create_identity
from keylime.pki.tls import load_trusted_certificates, server_context
from keylime.safe_paths import Owners
from keylime_agent.config import TlsOptions

log = logging.getLogger(__name__)


def trusted_clients(tls: TlsOptions | None, owners: Owners | None = None) -> tuple[x509.Certificate, ...]:
    """The authorities of the agent's callers. Raises ConfigError naming file and remedy.

    `owners` may change the files, by default those of a service.
    """
    if tls is None:
        log.warning("enable_agent_mtls is off: everybody who reaches the agent can talk to it")
        return ()
    found: list[x509.Certificate] = []
    for path in tls.trusted_clients:
        try:
            found += load_trusted_certificates(path, owners)
        except ConfigError as error:
            remedy = (
                "; copy it from the verifier, which makes it at its first start" if not path.exists() else ""
            )
            raise ConfigError(f"[agent] trusted_client_ca: {error}{remedy}") from error
    return tuple(found)


@dataclass(frozen=True, slots=True)
class ListenerIdentity:
    """The certificate that the registrar is told, and the files that it came from."""

    tls: TlsOptions
    agent_id: AgentId
    contact: str
    certificate_pem: str
    remark: str | None = None  # for the log

    def context(self, clients: tuple[x509.Certificate, ...]) -> ssl.SSLContext:
        """What to listen with, for the clients of these authorities. Raises ConfigError."""
        context = server_context(
            certificate=self.tls.certificate,
            key=self.tls.key,
            key_password=self.tls.key_password,
            client_ca=(),
            require_client=True,
        )
        # Their files may have been readable to root only, so they are here as certificates.
        for certificate in clients:
            context.load_verify_locations(cadata=certificate.public_bytes(Encoding.DER))
        return context

    def refreshed(self, now: datetime | None = None) -> Self:
        """The certificate for the same key as it is in its file now, made anew if it was time for that.

        Raises ConfigError for another key: who calls the agent knows it by the one that is registered.
        """
        if not self.tls.key.exists():
            raise ConfigError(
                f"{self.tls.key} is gone: put it back, for with a new key verifiers do not know the agent"
            )
        found = own_identity(self.tls, self.agent_id, self.contact, now)
        if key_pin(found.certificate_pem) != key_pin(self.certificate_pem):
            raise ConfigError(
                f"{self.tls.certificate} is for another key, which must be registered first: restart the "
                f"agent, and have its verifier told (keylime_tenant -c update -u {self.agent_id})"
            )
        return replace(self, certificate_pem=found.certificate_pem, remark=found.remark)


def own_identity(
    tls: TlsOptions, agent_id: AgentId, contact: str, now: datetime | None = None
) -> ListenerIdentity:
    """The agent's certificate, made where it is missing or about to end. Raises ConfigError."""
    found = load_or_create_identity(
        tls.certificate, tls.key, agent=agent_id, contact=contact, key_password=tls.key_password, now=now
    )
    return ListenerIdentity(tls, agent_id, contact, found.certificate_pem, found.remark)
