"""What an agent that is polled takes of its machine: a port, a secure directory; its certificate and keys."""

import logging
import socket
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from keylime.errors import ConfigError
from keylime.http.server import bound_port
from keylime.identifiers import AgentId
from keylime.pki.key_files import load_or_create_rsa_key
from keylime.safe_paths import require_safe_file, require_safe_store
from keylime.secure_mount import Owner, SecureDirectory, ensure_secure_directory
from keylime_agent.config import AgentConfig, contact_remark
from keylime_agent.listener import ListenerIdentity, own_identity, trusted_clients
from keylime_agent.preparation import Rights

log = logging.getLogger("keylime_agent.main")


@dataclass(frozen=True, slots=True)
class Premises:
    """What is taken while the agent may still have root's rights."""

    port: Sequence[socket.socket]  # bound, not yet listening
    trusted_clients: tuple[x509.Certificate, ...]
    secure: SecureDirectory

    @classmethod
    def take(
        cls, config: AgentConfig, rights: Rights, environ: Mapping[str, str], stack: AsyncExitStack
    ) -> Self:
        """Raises ConfigError, also when others may change what the agent trusts or runs."""
        remark = contact_remark(config)
        if remark is not None:
            log.warning("%s", remark)
        if config.revocation_certificate is not None:
            require_safe_file(config.revocation_certificate, rights.owners)
        try:
            require_safe_store(config.work_dir / config.actions.directory, rights.owners)
        except ConfigError as error:
            raise ConfigError(f"[agent] revocation_actions_dir: {error}") from error
        port = stack.enter_context(bound_port(config.ip, config.port))
        clients = trusted_clients(config.tls, rights.owners)
        owner = None if rights.account is None else Owner(rights.account.uid, rights.account.gid)
        secure = ensure_secure_directory(config.work_dir, config.secure_size, owner=owner, environ=environ)
        log.info("secure directory: %s", secure.path)
        return cls(port, clients, secure)


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that callers know the agent by, beside those in its TPM."""

    payload_key: RSAPrivateKey
    listener: ListenerIdentity | None  # None: plain HTTP

    @classmethod
    def load(cls, config: AgentConfig, agent_id: AgentId) -> Self:
        """They are made where they are missing. Raises ConfigError."""
        payload_key = load_or_create_rsa_key(config.work_dir / "payload-private.pem", None)
        listener = None if config.tls is None else own_identity(config.tls, agent_id, config.contact_ip)
        return cls(payload_key, listener)
