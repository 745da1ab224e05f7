"""The registrar's start and end: the only place that knows all its parts."""

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import uvloop
from cryptography import x509

from keylime import keylime_logging
from keylime.daemon import (
    TLS_OPTIONS,
    attend,
    ignore_reloads_for_now,
    log_reloaded,
    warn_of_restarts,
)
from keylime.database.migrate import Migration, prepare_schema
from keylime.database.readiness import database_check
from keylime.database.transactions import open_database
from keylime.errors import ConfigError, KeylimeError
from keylime.health import Health
from keylime.http import server as http
from keylime.http.probes import probe_routes
from keylime.http.server import reserved_port
from keylime.messages.versions import CURRENT_VERSION, SUPPORTED_VERSIONS
from keylime.pki.authority import ensure_service_certificates, server_names
from keylime.pki.ek import load_trust_store
from keylime.service_manager import ServiceManager
from keylime.supervisor import Worker, run_workers, stop_event
from keylime_registrar.config import RegistrarConfig, load_config
from keylime_registrar.handlers import Handlers
from keylime_registrar.registrations import Clocks, Registrations, Rules
from keylime_registrar.schema import SCHEMA
from keylime_registrar.store import Limits, Store
from keylime_registrar.throttle import Throttle

log = logging.getLogger("keylime.registrar")

ResultT = TypeVar("ResultT")

_CERTIFICATE_WAIT_S = 10.0
_CERTIFICATE_POLL_S = 0.1
_DRAIN_S = 3.0
_RELOADED = TLS_OPTIONS | {"max_upload_size"}
# For each address. A site behind one address may restart thousands of agents at once.
_REGISTRATIONS_PER_S = 100.0
_REGISTRATION_BURST = 4_000


def main() -> None:
    """Runs until SIGTERM or SIGINT. Exit status: 0 after a clean stop, 1 when it cannot start."""
    arguments = _parse_arguments()
    os.umask(0o077)
    ignore_reloads_for_now()
    try:
        keylime_logging.setup("registrar", os.environ)
        config = load_config(os.environ)
        for warning in config.warnings:
            log.warning("%s", warning)
        if arguments.migrate:
            print(_run(_prepare_database(config, migrate=True)))
        else:
            _start(config, ServiceManager.from_environment(os.environ))
    except KeylimeError as error:
        sys.exit(f"keylime_registrar: error: {error}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="keylime_registrar",
        allow_abbrev=False,  # a slip of the hand must not migrate anything
        description="Keeps the public keys of agents whose TPM has proven them. Configured by "
        "registrar.conf, registrar.conf.d/ and KEYLIME_REGISTRAR_* variables. SIGHUP reloads certificates, "
        "trusted_client_ca, max_upload_size and logging.conf.",
    )
    parser.add_argument(
        "--migrate",
        action="store_true",
        help="bring the tables of the database up to date, say from which schema to which, and end",
    )
    return parser.parse_args()


def _start(config: RegistrarConfig, manager: ServiceManager) -> None:
    log.info("Starting Keylime registrar...")
    log.info("Current API version: %s", CURRENT_VERSION)
    log.info("Other supported API versions: %s", ", ".join(SUPPORTED_VERSIONS[:-1]))
    if not _run(prepare(config, manager.status)):
        return
    if config.workers == 1:
        _run(_serve_alone(config, manager))
    else:
        _serve_with_workers(config, manager)


def _run(work: Coroutine[None, None, ResultT]) -> ResultT:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _serve_with_workers(config: RegistrarConfig, manager: ServiceManager) -> None:
    with reserved_port(config.ip, config.port) as port, reserved_port(config.ip, config.tls_port) as tls_port:
        bound = replace(config, port=port, tls_port=tls_port)

        def work(worker: Worker) -> None:
            _run(_serve_as_worker(bound, worker))

        run_workers(
            config.workers,
            work,
            check_reload=lambda: _check_reload(config),
            manager=manager,
            status=_status(config, (port, tls_port)),
        )


async def _serve_alone(config: RegistrarConfig, manager: ServiceManager) -> None:
    stop = stop_event()
    async with running(config) as registrar:

        def reload() -> None:
            _check_reload(config)
            registrar.reload(os.environ)
            log_reloaded()

        status = _status(config, registrar.ports)
        log.info("%s", status)
        await attend(stop, reload=reload, is_alive=registrar.is_alive, manager=manager, status=status)
        log.info("Stopping")


async def _serve_as_worker(config: RegistrarConfig, worker: Worker) -> None:
    """Serves until a stop signal, or until the supervisor's end of the lifeline is closed."""
    stop = stop_event(worker.lifeline)
    async with running(config) as registrar:
        await attend(
            stop,
            reload=lambda: registrar.reload(os.environ),
            is_alive=registrar.is_alive,
            manager=worker.manager(),
            status="",
        )


def _status(config: RegistrarConfig, ports: tuple[int, int]) -> str:
    number = "" if config.workers == 1 else f" with {config.workers} worker processes"
    return f"Listening on {config.ip}:{ports[0]}/{ports[1]} (HTTP/S){number} ..."


def _check_reload(config: RegistrarConfig) -> None:
    """Whether a reload can succeed, said once for all processes. Raises ConfigError."""
    fresh = load_config(os.environ)
    fresh.tls.server_context(require_client=False)
    keylime_logging.setup("registrar", os.environ)
    warn_of_restarts(config.settings, fresh.settings, _RELOADED)


async def _prepare_database(config: RegistrarConfig, *, migrate: bool) -> Migration:
    database = open_database(config.database_url, config.database_pool)
    try:
        return await prepare_schema(database, SCHEMA, migrate=migrate)
    finally:
        await database.close()


async def prepare(config: RegistrarConfig, tell: Callable[[str], None] = lambda _: None) -> bool:
    """Makes what must exist before the start: tables and certificates. False when a stop signal came first.

    `tell` learns what is waited for. Raises ConfigError or DatabaseUnavailable.
    """
    stop = stop_event()
    migration = await _prepare_database(config, migrate=config.auto_migrate)
    if migration.has_changed:
        log.info("%s", migration)
    if config.tls.generate:
        _ensure_certificates(config)
    elif config.tls.directory != config.work_dir / "cv_ca" and not config.tls.directory.is_dir():
        raise ConfigError(f"It appears that the specified tls_dir does not exist: {config.tls.directory}")
    return await _certificates_appear(config, stop, tell)


@dataclass(frozen=True, slots=True)
class Registrar:
    """The registrar at work; `ports` are those it listens on, plain and TLS."""

    ports: tuple[int, int]
    health: Health
    server: http.Server

    async def is_alive(self) -> bool:
        """False when only a new start would help."""
        return (await self.health.alive()).is_good

    def reload(self, environ: Mapping[str, str]) -> None:
        """Takes up certificates, limit and log levels as they are now. Raises ConfigError, unchanged."""
        fresh = load_config(environ)
        context = fresh.tls.server_context(require_client=False)
        keylime_logging.setup("registrar", environ)
        self.server.renew(tls=context, max_body=fresh.max_upload)


@asynccontextmanager
async def running(config: RegistrarConfig) -> AsyncIterator[Registrar]:
    """The registrar at work, when all is prepared. Raises ConfigError when it cannot start."""
    async with AsyncExitStack() as stack:
        database = open_database(config.database_url, config.database_pool)
        stack.push_async_callback(database.close)
        context = config.tls.server_context(require_client=False)
        registrations = Registrations(
            Store(database, Limits()),
            _rules(config),
            Throttle(rate=_REGISTRATIONS_PER_S, burst=_REGISTRATION_BURST),
            Clocks(wall=time.time, steady=time.monotonic),
        )
        health = Health()
        health.add("database", database_check(database, SCHEMA))
        server = http.Server(
            [*Handlers(registrations).routes(), *probe_routes(health, plain_http=True)],
            limits=http.Limits(max_body=config.max_upload),
        )
        stack.push_async_callback(server.stop, _DRAIN_S)
        shared = config.workers > 1
        port = server.listen(config.ip, config.port, reuse_port=shared)
        tls_port = server.listen(config.ip, config.tls_port, context, reuse_port=shared)
        yield Registrar((port, tls_port), health, server)


def _rules(config: RegistrarConfig) -> Rules:
    def load_anchors() -> Sequence[x509.Certificate]:
        try:
            groups = load_trust_store(config.certificate_store).by_subject.values()
        except ConfigError as error:
            log.error("%s", error)
            return ()
        return [entry.certificate for group in groups for entry in group]

    return Rules(
        tpm_identity=config.tpm_identity,
        reject_irregular=config.malformed_cert_action == "reject",
        warn_of_irregular=config.malformed_cert_action == "warn",
        load_anchors=load_anchors,
    )


def _ensure_certificates(config: RegistrarConfig) -> None:
    side = config.tls.server
    made = ensure_service_certificates(
        config.tls.directory,
        config.ca.password,
        config.ca.subject,
        server_sans=server_names(config.ip, config.server_names),
        client=False,
        server_key_password=None if side is None else side.key_password,
    )
    if made:
        log.info("Created in %s: %s", config.tls.directory, ", ".join(made))


async def _certificates_appear(
    config: RegistrarConfig, stop: asyncio.Event, tell: Callable[[str], None]
) -> bool:
    """Waits a moment for the files that a verifier starting at the same time is about to make."""
    files = _files_of_verifier(config)
    deadline = time.monotonic() + _CERTIFICATE_WAIT_S
    missing = [path for path in files if not path.exists()]
    if missing:
        what = f"Waiting for keylime_verifier to create {missing[0]}"
        log.warning("%s; giving up in %.0f s", what, _CERTIFICATE_WAIT_S)
        tell(what)
    while missing and not stop.is_set():
        if time.monotonic() > deadline:
            directory = missing[0].parent
            if not directory.is_dir():
                raise ConfigError(
                    f"It appears that the specified tls_dir does not exist: {directory} - start "
                    "keylime_verifier first, which creates it, or set [registrar] tls_dir"
                )
            raise ConfigError(f"{missing[0]} does not exist: start keylime_verifier first, which creates it")
        await asyncio.sleep(_CERTIFICATE_POLL_S)
        missing = [path for path in files if not path.exists()]
    return not stop.is_set()


def _files_of_verifier(config: RegistrarConfig) -> list[Path]:
    side = config.tls.server
    if side is None:
        return []
    directory = config.work_dir / "cv_ca"
    return [path for path in (*side.trusted, side.certificate, side.key) if path.parent == directory]
