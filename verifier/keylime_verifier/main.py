"""The program keylime_verifier: what must exist before it starts, and the processes that serve."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Coroutine
from dataclasses import replace
from typing import TypeVar

import uvloop

from keylime import keylime_logging
from keylime.daemon import (
    TLS_OPTIONS,
    attend,
    ignore_reloads_for_now,
    log_reloaded,
    warn_of_restarts,
)
from keylime.errors import ConfigError, KeylimeError
from keylime.http.server import reserved_port
from keylime.messages.versions import CURRENT_VERSION, SUPPORTED_VERSIONS
from keylime.pki.authority import ensure_service_certificates, server_names
from keylime.service_manager import ServiceManager
from keylime.supervisor import Worker, run_workers, stop_event
from keylime_verifier.assembly import Contexts, Place, prepare_database, running
from keylime_verifier.config import VerifierConfig, load_config

log = logging.getLogger("keylime.verifier")

ResultT = TypeVar("ResultT")

_RELOADED = TLS_OPTIONS | {
    "client_cert",
    "client_key",
    "client_key_password",
    "trusted_server_ca",
    "max_upload_size",
}


def main() -> None:
    """Runs until SIGTERM or SIGINT. Exit status: 0 after a clean stop, 1 when it cannot start."""
    arguments = _parse_arguments()
    os.umask(0o077)
    ignore_reloads_for_now()
    try:
        keylime_logging.setup("verifier", os.environ)
        config = load_config(os.environ)
        for warning in config.warnings:
            log.warning("%s", warning)
        if arguments.migrate:
            _make_work_dir(config)
            print(_run(prepare_database(config, migrate=True)))
        else:
            _start(config, ServiceManager.from_environment(os.environ))
    except KeylimeError as error:
        sys.exit(f"keylime_verifier: error: {error}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="keylime_verifier",
        allow_abbrev=False,  # a slip of the hand must not migrate anything
        description="Attests machines continuously and tells the others when one falls from grace. "
        "Configured by verifier.conf, verifier.conf.d/ and KEYLIME_VERIFIER_* variables. SIGHUP reloads "
        "certificates, trusted_client_ca, trusted_server_ca, max_upload_size and logging.conf.",
    )
    parser.add_argument(
        "--migrate",
        action="store_true",
        help="bring the tables of the database up to date, say from which schema to which, and end",
    )
    return parser.parse_args()


def _start(config: VerifierConfig, manager: ServiceManager) -> None:
    _prepare(config)
    if config.workers == 1:
        _run(_serve_alone(config, manager))
    else:
        _serve_with_workers(config, manager)


def _prepare(config: VerifierConfig) -> None:
    """What must exist before the first request: CA, certificates and tables."""
    log.info("Starting Keylime verifier in PULL mode...")
    log.info("Current API version: %s", CURRENT_VERSION)
    log.info("Other supported API versions: %s", ", ".join(SUPPORTED_VERSIONS[:-1]))
    _make_work_dir(config)
    if config.tls.generate:
        _ensure_certificates(config)
    migration = _run(prepare_database(config))
    if migration.has_changed:
        log.info("%s", migration)


def _make_work_dir(config: VerifierConfig) -> None:
    try:
        config.work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"{config.work_dir} cannot be made: {error.strerror}") from error


def _ensure_certificates(config: VerifierConfig) -> None:
    server, client = config.tls.server, config.tls.client
    made = ensure_service_certificates(
        config.tls.directory,
        config.ca.password,
        config.ca.subject,
        server_sans=server_names(config.ip, config.server_names),
        client=True,
        server_key_password=None if server is None else server.key_password,
        client_key_password=None if client is None else client.key_password,
    )
    if made:
        log.info("Created in %s: %s", config.tls.directory, ", ".join(made))


def _run(work: Coroutine[None, None, ResultT]) -> ResultT:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _serve_with_workers(config: VerifierConfig, manager: ServiceManager) -> None:
    with reserved_port(config.ip, config.port) as port:
        bound = replace(config, port=port)

        def work(worker: Worker) -> None:
            _run(_serve_as_worker(bound, worker))

        run_workers(
            config.workers,
            work,
            check_reload=lambda: _check_reload(config),
            manager=manager,
            status=_status(config, port),
        )


async def _serve_alone(config: VerifierConfig, manager: ServiceManager) -> None:
    stop = stop_event()
    async with running(config) as verifier:

        def reload() -> None:
            _check_reload(config)
            verifier.reload(os.environ)
            log_reloaded()

        status = _status(config, verifier.port)
        log.info("%s", status)
        await attend(stop, reload=reload, is_alive=verifier.is_alive, manager=manager, status=status)
        log.info("Stopping")


async def _serve_as_worker(config: VerifierConfig, worker: Worker) -> None:
    """Serves until a stop signal, or until the supervisor's end of the lifeline is closed."""
    stop = stop_event(worker.lifeline)
    async with running(config, Place(worker.number, worker.count)) as verifier:
        await attend(
            stop,
            reload=lambda: verifier.reload(os.environ),
            is_alive=verifier.is_alive,
            manager=worker.manager(),
            status="",
        )


def _status(config: VerifierConfig, port: int) -> str:
    number = "" if config.workers == 1 else f" with {config.workers} worker processes"
    return f"Listening on {config.ip}:{port} (HTTPS){number}"


def _check_reload(config: VerifierConfig) -> None:
    """Whether a reload can succeed, said once for all processes. Raises ConfigError."""
    fresh = load_config(os.environ)
    Contexts.load(fresh)
    keylime_logging.setup("verifier", os.environ)
    warn_of_restarts(config.settings, fresh.settings, _RELOADED)
