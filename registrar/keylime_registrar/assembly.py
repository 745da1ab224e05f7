"""The registrar's parts put together: what must exist before it starts, and the registrar at work."""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from keylime import keylime_logging
from keylime.database.migrate import Migration
from keylime.database.readiness import add_database_checks
from keylime.database.transactions import Database, open_database
from keylime.errors import ConfigError
from keylime.http import server as http
from keylime.http.openapi import openapi_route
from keylime.http.probes import probe_routes
from keylime.http.refused_calls import audited
from keylime.pki.service_certificates import Done, ensure_service_certificates, server_names
from keylime.pki.tls import TlsFiles
from keylime.safe_paths import require_safe_directory, require_safe_store
from keylime.service.background import supervised
from keylime.service.certificates import CertificateKeeper, ensure_at_start, kept_certificates
from keylime.service.daemon import StoppedEarly, unless
from keylime.service.health import Health
from keylime.service.supervisor import stop_event
from keylime.service.surroundings import watched_surroundings
from keylime.takeover.command import ImportRequest
from keylime.takeover.importer import Importer
from keylime.takeover.report import TakeoverReport
from keylime_registrar import takeover
from keylime_registrar.agent_certificates import AgentCertificates
from keylime_registrar.anchors import Anchors
from keylime_registrar.audit import Audit
from keylime_registrar.config import SQLITE_NAME, RegistrarConfig, load_config
from keylime_registrar.handlers import REGISTRAR_API, Handlers, reading_route
from keylime_registrar.issuers import Issuers
from keylime_registrar.measuring import measuring
from keylime_registrar.registrations import Clocks, RegistrationRules, Registrations
from keylime_registrar.schema import SCHEMA
from keylime_registrar.store import PendingLimits, Store
from keylime_registrar.throttle import Allowance, Throttle

log = logging.getLogger("keylime.registrar")
_CERTIFICATE_WAIT_S = 10.0
_CERTIFICATE_POLL_S = 0.1
_DRAIN_S = 3.0


async def prepare_database(config: RegistrarConfig, *, migrate: bool) -> Migration:
    """Brings the tables up to date. Raises ConfigError or DatabaseUnavailable."""
    require_safe_directory(config.work_dir)
    return await _IMPORTER.prepare(config.database, lambda: _open_database(config), migrate=migrate)


async def import_database(config: RegistrarConfig, request: ImportRequest) -> TakeoverReport:
    """Takes over what an earlier Keylime left. Raises ConfigError or DatabaseUnavailable."""
    require_safe_directory(config.work_dir)
    source = request.source(config.database, config.work_dir, SQLITE_NAME)
    return await _IMPORTER.run(source, config.database, lambda: _open_database(config), dry=request.is_dry)


def _open_database(config: RegistrarConfig) -> Database:
    return open_database(config.database_url, config.database_pool)


_IMPORTER = Importer(
    schema=SCHEMA,
    read=takeover.read_from,
    rehearse=takeover.rehearse,
    look=takeover.look,
    take=lambda connection, plan: takeover.take(connection, plan, int(time.time())),
)


async def prepare(config: RegistrarConfig, tell: Callable[[str], None] = lambda _: None) -> bool:
    """Makes what must exist before the start: tables and certificates. False when a stop signal came first.

    `tell` learns what is waited for. Raises ConfigError or DatabaseUnavailable.
    """
    stop = stop_event()
    require_safe_store(config.certificate_store)
    try:
        async with unless(stop):
            migration = await prepare_database(config, migrate=config.auto_migrate)
    except StoppedEarly:
        return False
    if migration.has_changed:
        log.info("%s", migration)
    if config.tls.generate:
        ensure_at_start(config.tls, functools.partial(_ensure_certificates, config), log)
    elif config.tls.directory != config.work_dir / "cv_ca" and not config.tls.directory.is_dir():
        raise ConfigError(f"It appears that the specified tls_dir does not exist: {config.tls.directory}")
    return await _certificates_appear(config, stop, tell)


@dataclass(frozen=True, slots=True)
class Registrar:
    """The registrar at work; `ports` are those it listens on, plain and TLS."""

    ports: tuple[int, int]
    health: Health
    server: http.Server
    keeper: CertificateKeeper

    async def is_alive(self) -> bool:
        """False when only a new start would help."""
        return (await self.health.alive()).is_good

    def reload(self, environ: Mapping[str, str]) -> None:
        """Takes up certificates, limit and log levels as they are now. Raises ConfigError, unchanged."""
        fresh = load_config(environ)
        context = fresh.tls.server_context(require_client=False)
        keylime_logging.setup("registrar", environ)
        self.server.renew(tls=context, max_body=fresh.max_upload)
        self.keeper.follow(fresh.tls)

    def take_up(self, files: TlsFiles) -> None:
        """Takes up certificates alone, as they are now. Raises ConfigError, unchanged."""
        context = files.server_context(require_client=False)
        self.server.renew(tls=context, max_body=self.server.limits.max_body)


@asynccontextmanager
async def running(config: RegistrarConfig, number: int = 0) -> AsyncIterator[Registrar]:
    """The registrar at work, when all is prepared; `number` counts equal processes from 0.

    Raises ConfigError when it cannot start.
    """
    async with AsyncExitStack() as stack:
        measured = measuring(config, number)
        database = measured.timed(_open_database(config))
        stack.push_async_callback(database.close)
        context = config.tls.server_context(require_client=False)
        issuers = Issuers(config.certificate_store)
        audit = Audit(database, config.audit_retention_s)
        store = Store(database, PendingLimits())
        registrations = Registrations(
            store,
            _rules(config),
            Throttle(Allowance()),
            Clocks(wall=time.time, steady=time.monotonic),
            issuers,
            audit.tell,
        )
        health = Health()
        add_database_checks(health, database, SCHEMA)
        ensure = functools.partial(_ensure_certificates, config)
        keeper = kept_certificates(config.tls, ensure, health, is_speaker=number == 0)
        around = watched_surroundings(config.work_dir, health, is_speaker=number == 0)
        loops = {"certificate keeper": keeper.run, "surroundings": around.run, "audit": audit.run}
        ends = AgentCertificates(
            store.certificates_after, measured.meter.agent_certificates_end, is_speaker=number == 0
        )
        loops["agent certificates"] = ends.run
        health.note("agent certificates", ends.remark)
        await stack.enter_async_context(supervised(loops, health))
        health.note("TPM certificate store", issuers.remark)
        handlers = Handlers(registrations, measured.meter)
        routes = (
            *audited((*handlers.routes(), reading_route(audit.audit)), audit.tell_refused, log),
            *probe_routes(health, plain_http=True),
        )
        server = http.Server(
            [*routes, openapi_route(REGISTRAR_API, routes, plain_http=True)],
            limits=http.ServerLimits(max_body=config.max_upload),
            is_admin=http.RoleRule(
                http.administrator, require_role=config.require_admin_role, section="registrar"
            ),
        )
        stack.push_async_callback(server.stop, _DRAIN_S)
        shared = config.workers > 1
        measured.serve(database, keeper, health, stack)
        port = server.listen(config.ip, config.port, reuse_port=shared)
        tls_port = server.listen(config.ip, config.tls_port, context, reuse_port=shared)
        registrar = Registrar((port, tls_port), health, server, keeper)
        keeper.on_change = registrar.take_up
        yield registrar


def _rules(config: RegistrarConfig) -> RegistrationRules:
    return RegistrationRules(
        tpm_identity=config.tpm_identity,
        reject_irregular=config.malformed_cert_action == "reject",
        warn_of_irregular=config.malformed_cert_action == "warn",
        load_anchors=Anchors(config.certificate_store).load,
    )


def _ensure_certificates(config: RegistrarConfig) -> Done:
    side = config.tls.server
    return ensure_service_certificates(
        config.tls.directory,
        config.ca.password,
        config.ca.subject,
        server_sans=server_names(config.ip, config.server_names),
        client=False,
        server_key_password=None if side is None else side.key_password,
    )


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
