"""The program keylime_verifier: what must exist before it starts, and the processes that serve."""

import argparse
import asyncio
import functools
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace

import uvloop

from keylime import keylime_logging
from keylime.errors import ConfigError, KeylimeError
from keylime.http.server import reserved_port
from keylime.messages.versions import CURRENT_VERSION, SUPPORTED_VERSIONS
from keylime.pki.authority import ensure_service_certificates, server_names
from keylime.supervisor import Worker, run_workers, stop_event
from keylime_verifier.assembly import Place, prepare_database, running
from keylime_verifier.config import VerifierConfig, load_config

log = logging.getLogger("keylime.verifier")


def main() -> None:
    """Runs until SIGTERM or SIGINT. Exit status: 0 after a clean stop, 1 when it cannot start."""
    _parse_arguments()
    try:
        keylime_logging.setup("verifier", os.environ)
        config = load_config(os.environ)
        for warning in config.warnings:
            log.warning("%s", warning)
        _prepare(config)
        if config.workers == 1:
            _run(_serve(config, Place(), None, functools.partial(_log_listening, config)))
        else:
            _serve_with_workers(config)
    except KeylimeError as error:
        sys.exit(f"keylime_verifier: error: {error}")


def _parse_arguments() -> None:
    parser = argparse.ArgumentParser(
        prog="keylime_verifier",
        description="Attests machines continuously and tells the others when one falls from grace. "
        "Configured by verifier.conf, verifier.conf.d/ and KEYLIME_VERIFIER_* variables.",
    )
    parser.parse_args()


def _prepare(config: VerifierConfig) -> None:
    """What must exist before the first request: CA, certificates and tables."""
    log.info("Starting Keylime verifier in PULL mode...")
    log.info("Current API version: %s", CURRENT_VERSION)
    log.info("Other supported API versions: %s", ", ".join(SUPPORTED_VERSIONS[:-1]))
    os.umask(0o077)
    try:
        config.work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"{config.work_dir} cannot be made: {error.strerror}") from error
    if config.tls.generate:
        _ensure_certificates(config)
    _run(prepare_database(config))


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


def _run(work: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def _serve_with_workers(config: VerifierConfig) -> None:
    with reserved_port(config.ip, config.port) as port:
        bound = replace(config, port=port)

        def work(worker: Worker) -> None:
            place = Place(worker.number, worker.count)
            _run(_serve(bound, place, worker.lifeline, lambda _: worker.ready()))

        run_workers(config.workers, work, functools.partial(_log_listening, config, port))


def _log_listening(config: VerifierConfig, port: int) -> None:
    number = "" if config.workers == 1 else f" with {config.workers} worker processes"
    log.info("Listening on %s:%d (HTTPS)%s", config.ip, port, number)


async def _serve(
    config: VerifierConfig, place: Place, lifeline: int | None, on_ready: Callable[[int], None]
) -> None:
    """Serves until a stop signal, or until the supervisor's end of the lifeline is closed."""
    stop = stop_event(lifeline)
    async with running(config, place) as port:
        on_ready(port)
        await stop.wait()
        log.info("Stopping")
