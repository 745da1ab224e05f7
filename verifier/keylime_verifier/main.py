"""The program keylime_verifier: what must exist before it starts, and the processes that serve."""

import argparse
import functools
import logging
import os
import sys
from dataclasses import replace

from keylime import keylime_logging
from keylime.errors import ConfigError, KeylimeError
from keylime.file_errors import file_errors_explained
from keylime.http.server import reserved_port
from keylime.metrics.sharing import shared_metrics
from keylime.pki.library_warnings import ignore_library_warnings
from keylime.safe_paths import require_safe_directory
from keylime.service.certificates import ensure_at_start
from keylime.service.config_report import Components, config_report
from keylime.service.core_dumps import forbid_core_dumps
from keylime.service.daemon import TLS_OPTIONS, ignore_reloads_for_now, warn_of_restarts
from keylime.service.program import run
from keylime.service.service_manager import ServiceManager
from keylime.service.serving import serve_alone, serve_as_worker, with_workers
from keylime.service.start_up import configured, daemon_parser, log_versions
from keylime.service.supervisor import Worker, run_workers
from keylime.takeover.command import ImportRequest, add_import_flags, import_request
from keylime_verifier.agents.pushing import AttestationMode
from keylime_verifier.api.routes import boot_policies
from keylime_verifier.assembly.tables import import_database, prepare_database
from keylime_verifier.assembly.verifier import WorkerPlace, running
from keylime_verifier.certificates import Contexts, ensure_certificates
from keylime_verifier.config import VerifierConfig, load_config

log = logging.getLogger("keylime.verifier")

_CONFIGURATION: Components = {"verifier": (), "ca": (), "logging": ()}

_MODES = {AttestationMode.PULL: "PULL", AttestationMode.PUSH: "PUSH", AttestationMode.BOTH: "PULL and PUSH"}

_RELOADED = TLS_OPTIONS | {
    "client_cert",
    "client_key",
    "client_key_password",
    "trusted_server_ca",
    "max_upload_size",
}


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
        sys.exit(f"keylime_verifier: error: {error}")


def _run_program(arguments: argparse.Namespace, request: ImportRequest | None) -> None:
    if request is None and config_report(arguments, _CONFIGURATION, _check_config):
        return
    config = configured("verifier", load_config, log)
    if request is not None:
        _make_work_dir(config)
        print(request.shown(run(import_database(config, request))))
    elif arguments.migrate:
        _make_work_dir(config)
        print(run(prepare_database(config, migrate=True)))
    else:
        _start(config, ServiceManager.from_environment(os.environ))


def _check_config() -> tuple[str, ...]:
    """The warnings about a configuration that can be used. Raises ConfigError."""
    config = load_config(os.environ)
    boot_policies(config)
    return config.warnings


def _parse_arguments() -> tuple[argparse.Namespace, ImportRequest | None]:
    parser = daemon_parser(
        "keylime_verifier",
        "Attests machines continuously and tells the others when one falls from grace. "
        "Configured by verifier.conf, verifier.conf.d/ and KEYLIME_VERIFIER_* variables. SIGHUP reloads "
        "certificates, trusted_client_ca, trusted_server_ca, max_upload_size and logging.conf.",
    )
    add_import_flags(parser)
    arguments = parser.parse_args()
    return arguments, import_request(parser, arguments)


def _start(config: VerifierConfig, manager: ServiceManager) -> None:
    _prepare(config)
    if config.workers == 1:
        run(
            serve_alone(
                running(config),
                check_reload=lambda: _check_reload(config),
                manager=manager,
                status=lambda verifier: _status(config, verifier.port),
                log=log,
            )
        )
    else:
        _serve_with_workers(config, manager)


def _prepare(config: VerifierConfig) -> None:
    """What must exist before the first request: CA, certificates and tables."""
    log.info("Starting Keylime verifier in %s mode...", _MODES[config.mode])
    log_versions(log)
    boot_policies(config)  # before anything is made: with several workers each would find it out for itself
    _make_work_dir(config)
    if config.tls.generate:
        ensure_at_start(config.tls, functools.partial(ensure_certificates, config), log)
    migration = run(prepare_database(config))
    if migration.has_changed:
        log.info("%s", migration)


def _make_work_dir(config: VerifierConfig) -> None:
    try:
        config.work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"{config.work_dir} cannot be made: {error.strerror}") from error
    require_safe_directory(config.work_dir)


def _serve_with_workers(config: VerifierConfig, manager: ServiceManager) -> None:
    if config.webhook is not None:
        import keylime_verifier.revocations.webhook  # noqa: F401 - once, and not by each worker

    with reserved_port(config.ip, config.port) as port, shared_metrics(config.metrics):
        bound = replace(config, port=port)

        def work(worker: Worker) -> None:
            run(serve_as_worker(running(bound, WorkerPlace(worker.number, worker.count)), worker))

        run_workers(
            config.workers,
            work,
            check_reload=lambda: _check_reload(config),
            manager=manager,
            status=_status(config, port),
        )


def _status(config: VerifierConfig, port: int) -> str:
    return f"Listening on {config.ip}:{port} (HTTPS){with_workers(config.workers)}"


def _check_reload(config: VerifierConfig) -> None:
    """Whether a reload can succeed, said once for all processes. Raises ConfigError."""
    fresh = load_config(os.environ)
    Contexts.load(fresh)
    keylime_logging.setup("verifier", os.environ)
    warn_of_restarts(config.settings, fresh.settings, _RELOADED)
