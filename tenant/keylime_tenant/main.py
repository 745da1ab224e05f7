"""`keylime_tenant`: reads flags and configuration, connects everybody, runs one command."""

import asyncio
import functools
import logging
import os
import ssl
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keylime import keylime_logging
from keylime.config.loader import load_settings
from keylime.errors import ConfigError, CredentialError, KeylimeError
from keylime.file_errors import file_errors_explained
from keylime.http.agent_connection import AgentConnection
from keylime.identifiers import AgentId, parse_agent_id
from keylime.interruption import end_interrupted
from keylime.pki.agent_certificate import PinnedKey
from keylime.pki.library_warnings import ignore_library_warnings
from keylime.pki.server_names import NameCheck
from keylime.pki.tls import TlsFiles, resolve_tls_files
from keylime.request_id import begin_errand
from keylime.safe_paths import require_safe_directory
from keylime.service.core_dumps import forbid_core_dumps
from keylime_tenant.arguments import (
    DEFAULT_AGENT_ID,
    Arguments,
    deprecations,
    overview,
    parse_arguments,
    unknown_command,
)
from keylime_tenant.catalogue import COMMANDS, DOCTOR, Command
from keylime_tenant.client import AgentApi, Doing, RegistrarClient, VerifierClient
from keylime_tenant.commands import run_of
from keylime_tenant.config import (
    Address,
    TenantConfig,
    pointless_algorithms,
    tenant_config,
)
from keylime_tenant.connection import Connection
from keylime_tenant.doing import doing
from keylime_tenant.errors import CommandFailed, Unjudged
from keylime_tenant.forms import Form
from keylime_tenant.quiet_loop import be_quiet_when_interrupted
from keylime_tenant.render import Output, OutputHandler
from keylime_tenant.session import Session

if TYPE_CHECKING:  # what only some commands need is imported when it is used
    from keylime.http.event_source import EventSource
    from keylime.pki.authority import Authority
    from keylime_tenant.enrolment import Candidate
    from keylime_tenant.payload import PayloadDelivery
    from keylime_tenant.policies import PolicyDocuments

_UNJUDGED = 3
_MAX_ANSWER = 128 << 20  # bytes: verifiers take, and show, policies of 100 MiB


def main(arguments: Arguments | None = None) -> None:
    """Exits with 0 for success, 1 for a failure told in one line, 2 for wrong usage.

    3 stands for an agent that is not judged yet, where that was asked.
    """
    if arguments is None:
        arguments = parse_arguments(sys.argv[1:])
    forbid_core_dumps()
    ignore_library_warnings()
    try:
        with file_errors_explained():
            run(arguments, os.environ)
    except KeylimeError as error:
        print(f"keylime_tenant: error: {error}", file=sys.stderr)
        sys.exit(_UNJUDGED if isinstance(error, Unjudged) else 1)
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        end_interrupted("keylime_tenant")


def run(arguments: Arguments, environ: Mapping[str, str]) -> None:
    """Runs the command of `arguments`. Raises KeylimeError."""
    if not arguments.names_command and _is_conversation():
        if arguments == Arguments():
            print(overview(), end="")
            return
        _demand_add(arguments)
    command = COMMANDS.get(arguments.command)
    if command is None:
        raise ConfigError(unknown_command(arguments.command, COMMANDS))
    form = arguments.form or (Form.TABLE if sys.stdout.isatty() else Form.SCRIPT)
    output = _output(form, environ)
    try:
        asyncio.run(_run(command, arguments, output, environ))
    except KeylimeError as error:
        output.failed(str(error))
        # Monitors match it in the log; who sees stderr anyway, or reads a document, has the line from there.
        if form is Form.SCRIPT:
            output.error("%s", error)
        raise
    finally:
        output.finish()


def _output(form: Form, environ: Mapping[str, str]) -> Output:
    if form.is_for_people:
        output = Output(logging.getLogger("keylime.tenant"), form, environ=environ)
        logging.getLogger().addHandler(OutputHandler(output))
        return output
    # stdout belongs to the document when there is one.
    stream = sys.stderr if form.is_document else None
    log = keylime_logging.setup("tenant", environ, stream=stream, is_result=stream is None)
    return Output(log, form, environ=environ)


def _is_conversation() -> bool:
    """Whether a person has typed the command line, and reads what comes of it."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def _demand_add(arguments: Arguments) -> None:
    """Scripts that name no command mean `add`; a person may have forgotten another. Raises CommandFailed."""
    agent = arguments.agent_uuid or DEFAULT_AGENT_ID
    if _ask(f"No command is given. Add agent {agent} to the verifier (yes/no)? ").strip().lower() != "yes":
        raise CommandFailed("nothing was done: name a command, of which `keylime_tenant --help` has the list")


async def _run(command: Command, arguments: Arguments, output: Output, environ: Mapping[str, str]) -> None:
    be_quiet_when_interrupted()
    if command.place == DOCTOR:
        await _examine(arguments, output, environ)
        return
    begin_errand()  # whatever this command asks for, at whichever peer, is found under one id
    settings = load_settings("tenant", environ=environ)
    keylime_logging.log_sources(settings)
    config = tenant_config(settings, arguments, environ)
    for warning in (
        *settings.warnings,
        *pointless_algorithms(settings),
        *deprecations(arguments),
        *_old_command(arguments, command),
    ):
        output.warning("%s", warning)
    agent_id = _agent_id(arguments, command, output)
    if command.needs_agent:
        output.about(agent_id)
    require_safe_directory(config.work_dir)
    output.info("Setting up client TLS...")
    connections = _connections(
        config, resolve_tls_files(settings, "tenant", config.work_dir), output, arguments.typed
    )
    output.info("TLS is enabled.")
    session = _session(arguments, config, agent_id, output, connections, environ)
    try:
        await run_of(command)(session)
    finally:
        await session.registrar.close()
        await session.verifier.close()


async def _examine(arguments: Arguments, output: Output, environ: Mapping[str, str]) -> None:
    from keylime_tenant.commands.doctor import Reach, doctor

    def connect() -> Reach:
        settings = load_settings("tenant", environ=environ)
        config = tenant_config(settings, arguments, environ)
        files = resolve_tls_files(settings, "tenant", config.work_dir)
        connections = _connections(config, files, output, arguments.typed)
        return Reach(
            config,
            connections.registrar(config.registrar),
            connections.verifier(config.verifier),
            connections.services,
        )

    await doctor(output, environ, connect)


@dataclass(frozen=True, slots=True)
class _Connections:
    """The two contexts of this run: one for services with a trusted CA, one for agents with a pin."""

    files: TlsFiles
    services: ssl.SSLContext
    names: NameCheck
    timeout_s: float
    connect_timeout_s: float
    typed: Mapping[str, str]  # flags by what they set, as they were typed
    doing: Doing

    def service(self, address: Address) -> Connection:
        connection = AgentConnection(
            address.host,
            address.port,
            tls=self.services,
            names=self.names,
            timeout_s=self.timeout_s,
            connect_timeout_s=self.connect_timeout_s,
            max_body=_MAX_ANSWER,
        )
        return Connection(address, connection, asks_plainly=True)

    def registrar(self, address: Address) -> RegistrarClient:
        return RegistrarClient(address, self.service(address), self._typed("registrar"), self.doing)

    def verifier(self, address: Address) -> VerifierClient:
        return VerifierClient(address, self.service(address), self._typed("verifier"), self.doing)

    def events(self, address: Address) -> "EventSource":
        from keylime.http.event_source import EventSource

        return EventSource(
            address.url(), tls=self.services, names=self.names, connect_timeout_s=self.timeout_s
        )

    def _typed(self, name: str) -> tuple[str, ...]:
        return tuple(self.typed[one] for one in (f"{name}_ip", f"{name}_port") if one in self.typed)

    def agent(self, candidate: "Candidate") -> AgentApi:
        place = candidate.contact.host, candidate.contact.port
        try:
            tls = candidate.tls
        except CredentialError as error:
            raise ConfigError(
                f"the certificate that agent {candidate.agent_id} registered: {error}"
            ) from error
        if not isinstance(tls, PinnedKey):
            connection = AgentConnection(
                *place, tls=None, timeout_s=self.timeout_s, connect_timeout_s=self.connect_timeout_s
            )
            peer = Connection(candidate.contact, connection, asks_plainly=False)
            return AgentApi(candidate.contact, peer, scheme="http", doing=self.doing)
        connection = AgentConnection(
            *place,
            tls=self.files.pinned_client_context(),
            pin=tls.pin,
            timeout_s=self.timeout_s,
            connect_timeout_s=self.connect_timeout_s,
        )
        peer = Connection(candidate.contact, connection, asks_plainly=False)
        return AgentApi(candidate.contact, peer, doing=self.doing)


def _connections(
    config: TenantConfig, files: TlsFiles, output: Output, typed: Mapping[str, str]
) -> _Connections:
    for warning in files.warnings:
        output.warning("%s", warning)
    if files.client is not None and not files.client.verify_peer:
        raise ConfigError("[tenant] trusted_server_ca = all would send orders to anybody: name the CA files")
    return _Connections(
        files,
        files.client_context(),
        files.name_check,
        config.request_timeout_s,
        config.connect_timeout_s,
        typed,
        functools.partial(doing, output),
    )


def _session(
    arguments: Arguments,
    config: TenantConfig,
    agent_id: AgentId,
    output: Output,
    connections: _Connections,
    environ: Mapping[str, str],
) -> Session:
    async def read_policies() -> "PolicyDocuments":
        from keylime_tenant.documents import read_documents

        return await read_documents(arguments, config, connections.services, connections.names)

    def deliver(agent: AgentId, take_back: Callable[[], None]) -> "PayloadDelivery":
        from keylime_tenant.ca.authorities import authority_directory, load_ca_settings, open_or_create
        from keylime_tenant.payload_sources import prepare_delivery

        def open_authority() -> "Authority":
            directory = authority_directory(arguments.ca_dir, environ)
            return open_or_create(directory, load_ca_settings(environ), output.said)

        return prepare_delivery(
            arguments,
            agent,
            max_size=config.max_payload_size,
            open_authority=open_authority,
            take_back=take_back,
        )

    def revoke_certificate(agent: AgentId, serial: int) -> None:
        from keylime_tenant.ca.certificate_revocation import authority_of_run

        authority_of_run(arguments, environ, output).revoke(agent, serial)

    async def check_ek(candidate: "Candidate") -> tuple[str, ...]:
        from keylime_tenant.ek_check import EkCheck

        return await EkCheck(config.ek, config.work_dir, environ)(candidate)

    async def download(address: str) -> bytes:
        from keylime_tenant.issuer_download import IssuerDownload

        return await IssuerDownload()(address)

    return Session(
        arguments=arguments,
        config=config,
        agent_id=agent_id,
        output=output,
        registrar=connections.registrar(config.registrar),
        verifier=connections.verifier(config.verifier),
        connect_verifier=connections.verifier,
        open_events=functools.partial(connections.events, config.verifier),
        connect_agent=connections.agent,
        read_policies=read_policies,
        prepare_delivery=deliver,
        revoke_certificate=revoke_certificate,
        check_ek=check_ek,
        download=download,
        ask=_ask if sys.stdin is not None and sys.stdin.isatty() and not output.form.is_document else None,
        sleep=asyncio.sleep,
        now=time.monotonic,
    )


def _ask(question: str) -> str:
    """The answer on the terminal, empty when it was closed."""
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


def _agent_id(arguments: Arguments, command: Command, output: Output) -> AgentId:
    if arguments.agent_uuid is None and command.asks_who:
        raise ConfigError("which agent? give -u ID, of which `keylime_tenant cvlist` and `reglist` list all")
    if arguments.agent_uuid is None and command.needs_agent and arguments.state is None:
        output.warning("Using default UUID %s", DEFAULT_AGENT_ID)
    try:
        return parse_agent_id(DEFAULT_AGENT_ID if arguments.agent_uuid is None else arguments.agent_uuid)
    except KeylimeError as error:
        raise ConfigError(f"{arguments.flag('agent_uuid', '-u')}: {error}") from error


def _old_command(arguments: Arguments, command: Command) -> Sequence[str]:
    if command.replacement is None:
        return ()
    return (f"command {arguments.command} is deprecated, use {command.replacement}",)


if __name__ == "__main__":
    main()
