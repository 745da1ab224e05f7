"""The registrar's configuration as one frozen value, made before anything starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import URL

from keylime.config.loader import load_settings
from keylime.config.settings import Settings, path_below, work_dir
from keylime.database.engine import PoolSize
from keylime.pki.ca_settings import CaSettings, ca_settings
from keylime.pki.tls import TlsFiles, resolve_tls_files
from keylime.service.metrics_place import MetricsPlace, metrics_place
from keylime.service.supervisor import worker_count
from keylime.takeover.place import DatabasePlace, configured_database
from keylime_registrar.identity import IdentityDemand

SQLITE_NAME = "reg_data.sqlite"

_TPM_IDENTITIES = {
    "default": IdentityDemand.EK_CERT_OR_IAK_IDEVID,
    **{kind.value: kind for kind in IdentityDemand},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrarConfig:
    """Everything an operator can set, checked."""

    work_dir: Path
    ip: str
    port: int
    tls_port: int
    tls: TlsFiles
    ca: CaSettings
    server_names: tuple[str, ...]
    require_admin_role: bool
    database: DatabasePlace
    database_pool: PoolSize
    auto_migrate: bool
    workers: int
    max_upload: int
    tpm_identity: IdentityDemand
    malformed_cert_action: str  # warn, reject or ignore
    certificate_store: Path  # of TPM vendors; the tenant's option
    audit_retention_s: float
    metrics: MetricsPlace | None  # None: none are served
    settings: Settings = field(repr=False)  # of registrar.conf: what most of this was made of
    warnings: tuple[str, ...]

    @property
    def database_url(self) -> URL:
        """Where our tables are."""
        return self.database.own


def load_config(environ: Mapping[str, str]) -> RegistrarConfig:
    """The configuration from files and environment. Raises ConfigError, which names option and remedy."""
    settings = load_settings("registrar", environ=environ)
    base = work_dir(environ)
    metrics = metrics_place(settings, base)
    ca = load_settings("ca", environ=environ)
    # IAK and IDevID certificates are checked against the store that the tenant checks EK certificates with.
    tenant = load_settings("tenant", environ=environ)
    tls = resolve_tls_files(settings, "registrar", base)
    return RegistrarConfig(
        work_dir=base,
        ip=settings.text("ip"),
        port=settings.integer("port"),
        tls_port=settings.integer("tls_port"),
        tls=tls,
        ca=ca_settings(ca),
        server_names=settings.items("cert_subject_alternative_names"),
        require_admin_role=settings.flag("require_admin_role"),
        database=configured_database(settings, base, SQLITE_NAME),
        database_pool=PoolSize.configured(settings),
        auto_migrate=settings.flag("auto_migrate_db"),
        workers=worker_count(0, settings.integer("max_workers")),
        max_upload=settings.integer("max_upload_size"),
        tpm_identity=_TPM_IDENTITIES[settings.text("tpm_identity")],
        malformed_cert_action=settings.text("malformed_cert_action"),
        certificate_store=path_below(base, tenant, "tpm_cert_store"),
        audit_retention_s=settings.number("audit_retention"),
        metrics=metrics,
        settings=settings,
        warnings=(
            *settings.warnings,
            *ca.warnings,
            *tls.warnings,
            *(() if metrics is None else metrics.warnings),
        ),
    )
