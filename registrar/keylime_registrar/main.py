"""The registrar's start and end: the only place that knows all its parts."""

import argparse
import asyncio
import functools
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import uvloop
from cryptography import x509

from keylime import keylime_logging
from keylime.database.migrate import prepare_schema
from keylime.database.transactions import open_database
from keylime.errors import ConfigError, KeylimeError
from keylime.http import server as http
from keylime.http.server import reserved_port
from keylime.messages.versions import CURRENT_VERSION, SUPPORTED_VERSIONS
from keylime.pki.authority import ensure_service_certificates, server_names
from keylime.pki.ek import load_trust_store
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
# For each address. A site behind one address may restart thousands of agents at once.
_REGISTRATIONS_PER_S = 100.0
_REGISTRATION_BURST = 4_000


def main() -> None:
    """Runs until SIGTERM or SIGINT. Exit status: 0 after a clean stop, 1 when it cannot start."""
    argparse.ArgumentParser(
        prog="keylime_registrar",
        description="Keeps the public keys of agents whose TPM has proven them. Configured by "
        "registrar.conf, registrar.conf.d/ and KEYLIME_REGISTRAR_* variables.",
    ).parse_args()
    os.umask(0o077)
    try:
        keylime_logging.setup("registrar", os.environ)
        config = load_config(os.environ)
        for warning in config.warnings:
            log.warning("%s", warning)
        log.info("Starting Keylime registrar...")
        log.info("Current API version: %s", CURRENT_VERSION)
        log.info("Other supported API versions: %s", ", ".join(SUPPORTED_VERSIONS[:-1]))
        if not _run(prepare(config)):
            return
        if config.workers == 1:
            _run(_serve(config, None, functools.partial(_log_listening, config)))
        else:
            _serve_with_workers(config)
    except KeylimeError as error:
        sys.exit(f"keylime_registrar: error: {error}")


def _run(work: Coroutine[None, None, ResultT]) -> ResultT:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _serve_with_workers(config: RegistrarConfig) -> None:
    with reserved_port(config.ip, config.port) as port, reserved_port(config.ip, config.tls_port) as tls_port:
        bound = replace(config, port=port, tls_port=tls_port)

        def work(worker: Worker) -> None:
            _run(_serve(bound, worker.lifeline, lambda _: worker.ready()))

        run_workers(config.workers, work, functools.partial(_log_listening, config, (port, tls_port)))


def _log_listening(config: RegistrarConfig, ports: tuple[int, int]) -> None:
    number = "" if config.workers == 1 else f" with {config.workers} worker processes"
    log.info("Listening on %s:%d/%d (HTTP/S)%s ...", config.ip, *ports, number)


async def _serve(
    config: RegistrarConfig, lifeline: int | None, on_ready: Callable[[tuple[int, int]], None]
) -> None:
    """Serves until a stop signal, or until the supervisor's end of the lifeline is closed."""
    stop = stop_event(lifeline)
    async with running(config) as ports:
        on_ready(ports)
        await stop.wait()
        log.info("Stopping")


async def prepare(config: RegistrarConfig) -> bool:
    """Makes what must exist before the start: tables and certificates. False when a stop signal came first.

    Raises ConfigError or DatabaseUnavailable.
    """
    stop = stop_event()
    database = open_database(config.database_url, config.database_pool)
    try:
        await prepare_schema(database, SCHEMA, migrate=config.auto_migrate)
    finally:
        await database.close()
    if config.tls.generate:
        _ensure_certificates(config)
    elif config.tls.directory != config.work_dir / "cv_ca" and not config.tls.directory.is_dir():
        raise ConfigError(f"It appears that the specified tls_dir does not exist: {config.tls.directory}")
    return await _certificates_appear(config, stop)


@asynccontextmanager
async def running(config: RegistrarConfig) -> AsyncIterator[tuple[int, int]]:
    """The registrar at work, when all is prepared; yields the ports it listens on, plain and TLS.

    Raises ConfigError when it cannot start.
    """
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
        server = http.Server(
            Handlers(registrations, max_body=config.max_upload).routes(),
            limits=http.Limits(max_body=config.max_upload),
        )
        stack.push_async_callback(server.stop, _DRAIN_S)
        shared = config.workers > 1
        yield (
            server.listen(config.ip, config.port, reuse_port=shared),
            server.listen(config.ip, config.tls_port, context, reuse_port=shared),
        )


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


async def _certificates_appear(config: RegistrarConfig, stop: asyncio.Event) -> bool:
    """Waits a moment for the files that a verifier starting at the same time is about to make."""
    files = _files_of_verifier(config)
    deadline = time.monotonic() + _CERTIFICATE_WAIT_S
    missing = [path for path in files if not path.exists()]
    if missing:
        log.info("Waiting for keylime_verifier to create %s", missing[0])
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
