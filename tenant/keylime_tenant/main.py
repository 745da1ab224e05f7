"""`keylime_tenant`: reads flags and configuration, connects everybody, runs one command."""

import asyncio
import os
import ssl
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keylime import keylime_logging
from keylime.errors import ConfigError, CredentialError, KeylimeError
from keylime.http.client import Peer
from keylime.identifiers import AgentId, parse_agent_id
from keylime.pki.authority import Authority
from keylime.pki.tls import TlsFiles, peer_pin, resolve_tls_files
from keylime_tenant.arguments import (
    DEFAULT_AGENT_ID,
    Arguments,
    deprecations,
    parse_arguments,
    unknown_command,
)
from keylime_tenant.authorities import authority_directory, load_ca_settings, open_or_create
from keylime_tenant.certificate_revocation import CertificateRevocation
from keylime_tenant.client import AgentClient, Registrar, Verifier
from keylime_tenant.commands import COMMANDS, Command
from keylime_tenant.config import Address, TenantConfig, load_tenant_settings, tenant_config
from keylime_tenant.documents import read_documents
from keylime_tenant.ek_check import EkCheck
from keylime_tenant.enrolment import Candidate
from keylime_tenant.passwords import has_terminal, keystore_password
from keylime_tenant.payload import Delivery, prepare_delivery
from keylime_tenant.render import Output
from keylime_tenant.session import Session

_INTERRUPTED = 130
_MAX_ANSWER = 128 << 20  # bytes: verifiers take, and show, policies of 100 MiB


def main() -> None:
    """The console script: exits with 0 for success, 1 for a failure told in one line, 2 for wrong usage."""
    arguments = parse_arguments(sys.argv[1:])
    try:
        run(arguments, os.environ)
    except KeylimeError as error:
        print(f"keylime_tenant: error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def run(arguments: Arguments, environ: Mapping[str, str]) -> None:
    """Runs the command of `arguments`. Raises KeylimeError."""
    command = COMMANDS.get(arguments.command)
    if command is None:
        raise ConfigError(unknown_command(arguments.command, COMMANDS))
    # stdout belongs to the JSON document when there is one.
    log = keylime_logging.setup("tenant", environ, stream=sys.stderr if arguments.json else None)
    output = Output(log, as_json=arguments.json)
    try:
        asyncio.run(_run(command, arguments, output, environ))
    except KeylimeError as error:
        output.failed(str(error))
        raise
    finally:
        output.finish()


async def _run(command: Command, arguments: Arguments, output: Output, environ: Mapping[str, str]) -> None:
    settings = load_tenant_settings(environ)
    config = tenant_config(settings, arguments, environ)
    for warning in (*settings.warnings, *deprecations(arguments), *_old_command(arguments, command)):
        output.warning("%s", warning)
    agent_id = _agent_id(arguments, command, output)
    output.info("Setting up client TLS...")
    connections = _connections(config, resolve_tls_files(settings, "tenant", config.work_dir), output)
    output.info("TLS is enabled.")
    session = _session(arguments, config, agent_id, output, connections, environ)
    try:
        await command.run(session)
    finally:
        await session.registrar.close()
        await session.verifier.close()


@dataclass(frozen=True, slots=True)
class _Connections:
    """The two contexts of this run: one for services with a trusted CA, one for agents with a pin."""

    services: ssl.SSLContext
    agents: ssl.SSLContext
    timeout_s: float

    def service(self, address: Address) -> Peer:
        return Peer(address.url(), tls=self.services, timeout_s=self.timeout_s, max_body=_MAX_ANSWER)

    def registrar(self, address: Address) -> Registrar:
        return Registrar(address, self.service(address))

    def verifier(self, address: Address) -> Verifier:
        return Verifier(address, self.service(address))

    def agent(self, candidate: Candidate) -> AgentClient:
        if not candidate.serves_tls:
            url = candidate.contact.url("http")
            return AgentClient(
                candidate.contact, Peer(url, tls=None, timeout_s=self.timeout_s), scheme="http"
            )
        try:
            pin = peer_pin(candidate.mtls_certificate)
        except CredentialError as error:
            raise ConfigError(
                f"the certificate that agent {candidate.agent_id} registered: {error}"
            ) from error
        url = candidate.contact.url()
        return AgentClient(candidate.contact, Peer(url, tls=self.agents, pin=pin, timeout_s=self.timeout_s))


def _connections(config: TenantConfig, files: TlsFiles, output: Output) -> _Connections:
    for warning in files.warnings:
        output.warning("%s", warning)
    if files.client is not None and not files.client.verify_peer:
        raise ConfigError("[tenant] trusted_server_ca = all would send orders to anybody: name the CA files")
    return _Connections(files.client_context(), files.pinned_client_context(), config.request_timeout_s)


def _session(
    arguments: Arguments,
    config: TenantConfig,
    agent_id: AgentId,
    output: Output,
    connections: _Connections,
    environ: Mapping[str, str],
) -> Session:
    directory = authority_directory(arguments.ca_dir, environ)

    def open_authority() -> Authority:
        return open_or_create(directory, load_ca_settings(environ), output.info)

    def open_existing() -> Authority:
        settings = load_ca_settings(environ)
        # Nobody is asked for the password of an authority that was not mentioned.
        may_ask = arguments.ca_dir is not None and has_terminal()
        password = keystore_password(settings.password, is_terminal=lambda: may_ask)
        return Authority.open(directory, password, settings.subject)

    def deliver(agent: AgentId) -> Delivery:
        return prepare_delivery(
            arguments, agent, max_size=config.max_payload_size, open_authority=open_authority
        )

    return Session(
        arguments=arguments,
        config=config,
        agent_id=agent_id,
        output=output,
        registrar=connections.registrar(config.registrar),
        verifier=connections.verifier(config.verifier),
        connect_verifier=connections.verifier,
        connect_agent=connections.agent,
        read_policies=lambda: read_documents(arguments, config, connections.services),
        prepare_delivery=deliver,
        certificates=CertificateRevocation(directory, open_existing, output),
        check_ek=EkCheck(config.ek, config.work_dir, environ),
        sleep=asyncio.sleep,
    )


def _agent_id(arguments: Arguments, command: Command, output: Output) -> AgentId:
    if arguments.agent_uuid is None and command.needs_agent:
        output.warning("Using default UUID %s", DEFAULT_AGENT_ID)
    try:
        return parse_agent_id(DEFAULT_AGENT_ID if arguments.agent_uuid is None else arguments.agent_uuid)
    except KeylimeError as error:
        raise ConfigError(f"-u: {error}") from error


def _old_command(arguments: Arguments, command: Command) -> Sequence[str]:
    if command.replacement is None:
        return ()
    return (f"command {arguments.command} is deprecated, use {command.replacement}",)


if __name__ == "__main__":
    main()
