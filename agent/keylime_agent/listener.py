"""The TLS side of the agent's listener: its own certificate, and whose clients may connect."""

import logging
import ssl
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from keylime.errors import ConfigError
from keylime.identifiers import AgentId
from keylime.pki.certificates import load_or_create_identity, parse_certificate
from keylime.pki.tls import load_trusted_certificates, server_context
from keylime_agent.config import TlsOptions

log = logging.getLogger(__name__)


def trusted_clients(tls: TlsOptions | None) -> tuple[x509.Certificate, ...]:
    """The authorities of the agent's callers. Raises ConfigError naming file and remedy."""
    if tls is None:
        log.warning("enable_agent_mtls is off: everybody who reaches the agent can talk to it")
        return ()
    found: list[x509.Certificate] = []
    for path in tls.trusted_clients:
        try:
            found += load_trusted_certificates(path)
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
    certificate_pem: str

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

    def check_unchanged(self) -> None:
        """Raises ConfigError when the file holds another certificate than the one that is registered."""
        if load_trusted_certificates(self.tls.certificate)[0] != parse_certificate(
            self.certificate_pem.encode()
        ):
            raise ConfigError(
                f"{self.tls.certificate} has changed and must be registered first: restart the agent"
            )


def own_identity(tls: TlsOptions, agent_id: AgentId, contact: str) -> ListenerIdentity:
    """The agent's certificate, made where it is missing. Raises ConfigError."""
    identity = load_or_create_identity(
        tls.certificate, tls.key, agent=agent_id, contact=contact, key_password=tls.key_password
    )
    return ListenerIdentity(tls, identity.certificate_pem)
