"""The verifier's own certificates: made and renewed where it has an authority, and the contexts with them."""

import ssl
from dataclasses import dataclass
from typing import Self

from keylime.pki.service_certificates import Done, ensure_service_certificates, server_names
from keylime.pki.tls import TlsFiles
from keylime_verifier.config import VerifierConfig


@dataclass(frozen=True, slots=True)
class Contexts:
    """What TLS is spoken with: as a server, to agents, and to the webhook if it is secure."""

    server: ssl.SSLContext
    agents: ssl.SSLContext
    webhook: ssl.SSLContext | None

    @classmethod
    def load(cls, config: VerifierConfig, files: TlsFiles | None = None) -> Self:
        """The contexts of files as they are now, by default those of `config`. Raises ConfigError."""
        is_secure = config.webhook is not None and config.webhook.is_secure
        tls = config.tls if files is None else files
        return cls(
            agents=tls.pinned_client_context(),
            server=tls.server_context(require_client=False),
            webhook=tls.client_context() if is_secure else None,
        )


@dataclass(slots=True)
class Tls:
    """The contexts in use."""

    contexts: Contexts


def ensure_certificates(config: VerifierConfig) -> Done:
    """Makes what is missing in the directory of the verifier's own authority, and renews what is due.

    Raises ConfigError, and RenewalImpossible when nothing is missing.
    """
    server, client = config.tls.server, config.tls.client
    return ensure_service_certificates(
        config.tls.directory,
        config.ca.password,
        config.ca.subject,
        server_sans=server_names(config.ip, config.server_names),
        client=True,
        server_key_password=None if server is None else server.key_password,
        client_key_password=None if client is None else client.key_password,
    )
