"""The program keylime_registrar: its start, and the processes that serve."""

import argparse
import logging
import os
import sys
from dataclasses import replace

from keylime import keylime_logging
from keylime.errors import KeylimeError
from keylime.file_errors import file_errors_explained
from keylime.http.server import reserved_port
from keylime.metrics.sharing import shared_metrics
from keylime.pki.library_warnings import ignore_library_warnings
from keylime.service.config_report import Components, config_report
from keylime.service.core_dumps import forbid_core_dumps
from keylime.service.daemon import TLS_OPTIONS, ignore_reloads_for_now, warn_of_restarts
from keylime.service.program import run
from keylime.service.service_manager import ServiceManager
from keylime.service.serving import serve_alone, serve_as_worker, with_workers
from keylime.service.start_up import configured, daemon_parser, log_versions
from keylime.service.supervisor import Worker, run_workers
from keylime.takeover.command import ImportRequest, add_import_flags, import_request
from keylime_registrar.assembly import import_database, prepare, prepare_database, running
from keylime_registrar.config import RegistrarConfig, load_config

log = logging.getLogger("keylime.registrar")
# What it reads, and of the tenant's options the one it shares.
_CONFIGURATION: Components = {"registrar": (), "ca": (), "tenant": ("tpm_cert_store",), "logging": ()}
_RELOADED = TLS_OPTIONS | {"max_upload_size"}


def main() -> None:
    """Runs until SIGTERM or SIGINT. Exit status: 0 after a clean stop, 1 when it cannot start."""
    arguments, request = _parse_arguments()
    os.umask(0o077)
    forbid_core_dumps()
    ignore_library_warnings()
    ignore_reloads_for_now()
    try:
        with file_errors_explained():
            _run_program(arguments, request)
    except KeylimeError as error:
        sys.exit(f"keylime_registrar: error: {error}")


def _run_program(arguments: argparse.Namespace, request: ImportRequest | None) -> None:
    if request is None and config_report(arguments, _CONFIGURATION, lambda: load_config(os.environ).warnings):
        return
    config = configured("registrar", load_config, log)
    if request is not None:
        print(request.shown(run(import_database(config, request))))
    elif arguments.migrate:
        print(run(prepare_database(config, migrate=True)))
    else:
        _start(config, ServiceManager.from_environment(os.environ))


def _parse_arguments() -> tuple[argparse.Namespace, ImportRequest | None]:
    parser = daemon_parser(
        "keylime_registrar",
        "Keeps the public keys of agents whose TPM has proven them. Configured by "
        "registrar.conf, registrar.conf.d/ and KEYLIME_REGISTRAR_* variables. SIGHUP reloads certificates, "
        "trusted_client_ca, max_upload_size and logging.conf.",
    )
    add_import_flags(parser)
    arguments = parser.parse_args()
    return arguments, import_request(parser, arguments)


def _start(config: RegistrarConfig, manager: ServiceManager) -> None:
    log.info("Starting Keylime registrar...")
    log_versions(log)
    if not run(prepare(config, manager.status)):
        return
    if config.workers == 1:
        run(
            serve_alone(
                running(config),
                check_reload=lambda: _check_reload(config),
                manager=manager,
                status=lambda registrar: _status(config, registrar.ports),
                log=log,
            )
        )
    else:
        _serve_with_workers(config, manager)


def _serve_with_workers(config: RegistrarConfig, manager: ServiceManager) -> None:
    with (
        reserved_port(config.ip, config.port) as port,
        reserved_port(config.ip, config.tls_port) as tls_port,
        shared_metrics(config.metrics),
    ):
        bound = replace(config, port=port, tls_port=tls_port)

        def work(worker: Worker) -> None:
            run(serve_as_worker(running(bound, worker.number), worker))

        run_workers(
            config.workers,
            work,
            check_reload=lambda: _check_reload(config),
            manager=manager,
            status=_status(config, (port, tls_port)),
        )


def _status(config: RegistrarConfig, ports: tuple[int, int]) -> str:
    return f"Listening on {config.ip}:{ports[0]}/{ports[1]} (HTTP/S){with_workers(config.workers)} ..."


def _check_reload(config: RegistrarConfig) -> None:
    """Whether a reload can succeed, said once for all processes. Raises ConfigError."""
    fresh = load_config(os.environ)
    fresh.tls.server_context(require_client=False)
    keylime_logging.setup("registrar", os.environ)
    warn_of_restarts(config.settings, fresh.settings, _RELOADED)
