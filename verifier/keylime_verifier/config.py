"""The verifier's configuration as one frozen value, made before anything starts."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import URL

from keylime.appraisal.severity import SeverityPolicy
from keylime.config.loader import Settings, load_settings, work_dir
from keylime.database.engine import PoolSize, parse_database_url
from keylime.errors import ConfigError
from keylime.pki.ca_settings import CaSettings, ca_settings
from keylime.pki.tls import TlsFiles, resolve_tls_files
from keylime.revocation.channel import endpoint
from keylime.supervisor import worker_count
from keylime_verifier.lifecycle import Cadence
from keylime_verifier.outbox import AGENT, CHANNELS, WEBHOOK, ZEROMQ
from keylime_verifier.webhook import WebhookUrl, parse_webhook_url


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierConfig:
    """Everything an operator can set, checked."""

    work_dir: Path
    verifier_id: str
    ip: str
    port: int
    server_names: tuple[str, ...]
    tls: TlsFiles
    ca: CaSettings
    require_agent_mtls: bool
    database_url: URL
    database_pool: PoolSize
    auto_migrate: bool
    workers: int
    lease_s: float
    max_upload: int
    request_timeout_s: float
    drain_timeout_s: float
    cadence: Cadence
    severities: SeverityPolicy
    boot_policy_name: str
    boot_policy_imports: tuple[str, ...]
    evaluate_boot_always: bool
    ignore_tomtou: bool
    require_policy_signatures: bool
    notifications: tuple[str, ...]
    zmq_ip: str
    zmq_port: int
    webhook: WebhookUrl | None
    revocation_retention_s: float
    revocation_history_s: float
    settings: Settings = field(repr=False)  # of verifier.conf: what most of this was made of
    warnings: tuple[str, ...]

    @property
    def broker(self) -> str:
        """The name of this machine's ZeroMQ broker, which no other machine's has."""
        return f"{endpoint(self.zmq_ip, self.zmq_port)}@{socket.gethostname()}"

    @property
    def notification_targets(self) -> tuple[tuple[str, str], ...]:
        """The (channel, target) pairs that every revocation goes to; "*" stands for all agents."""
        webhook = "" if self.webhook is None else self.webhook.origin
        targets = {AGENT: "*", ZEROMQ: self.broker, WEBHOOK: webhook}
        return tuple((channel, targets[channel]) for channel in self.notifications)


def load_config(environ: Mapping[str, str]) -> VerifierConfig:
    """The configuration from files and environment. Raises ConfigError, which names option and remedy."""
    settings = load_settings("verifier", environ=environ)
    base = work_dir(environ)
    ca = load_settings("ca", environ=environ)
    tls = resolve_tls_files(settings, "verifier", base)
    notifications = _notifications(settings)
    return VerifierConfig(
        work_dir=base,
        verifier_id=settings.text("uuid"),
        ip=settings.text("ip"),
        port=settings.integer("port"),
        server_names=settings.items("cert_subject_alternative_names"),
        tls=tls,
        ca=ca_settings(ca),
        require_agent_mtls=settings.flag("enable_agent_mtls"),
        database_url=parse_database_url(
            settings.text("database_url"), work_dir=base, sqlite_name="cv_data.sqlite"
        ),
        database_pool=PoolSize.parse(settings.text("database_pool_sz_ovfl")),
        auto_migrate=settings.flag("auto_migrate_db"),
        workers=worker_count(settings.integer("num_workers"), settings.integer("max_workers")),
        lease_s=settings.number("lease"),
        max_upload=settings.integer("max_upload_size"),
        request_timeout_s=settings.number("request_timeout"),
        drain_timeout_s=settings.number("shutdown_drain_timeout"),
        cadence=Cadence(
            quote_interval_s=settings.number("quote_interval"),
            retry_interval_s=settings.number("retry_interval"),
            max_retries=settings.integer("max_retries"),
            exponential_backoff=settings.flag("exponential_backoff"),
        ),
        severities=SeverityPolicy(settings.items("severity_labels"), settings.mappings("severity_policy")),
        boot_policy_name=settings.text("measured_boot_policy_name"),
        boot_policy_imports=settings.items("measured_boot_imports"),
        evaluate_boot_always=settings.text("measured_boot_evaluate") == "always",
        ignore_tomtou=settings.flag("ignore_tomtou_errors"),
        require_policy_signatures=settings.flag("require_allow_list_signatures"),
        notifications=notifications,
        zmq_ip=settings.text("zmq_ip", section="revocations"),
        zmq_port=settings.integer("zmq_port", section="revocations"),
        webhook=_webhook(settings, tls) if WEBHOOK in notifications else None,
        revocation_retention_s=settings.number("retention", section="revocations"),
        revocation_history_s=settings.number("history", section="revocations"),
        settings=settings,
        warnings=(*settings.warnings, *ca.warnings, *tls.warnings),
    )


def _notifications(settings: Settings) -> tuple[str, ...]:
    channels = settings.items("enabled_revocation_notifications", section="revocations")
    unknown = [channel for channel in channels if channel not in CHANNELS]
    if unknown:
        raise ConfigError(
            f"[revocations] enabled_revocation_notifications: {unknown[0]!r} is not one of "
            f"{', '.join(CHANNELS)}"
        )
    return tuple(dict.fromkeys(channels))


def _webhook(settings: Settings, tls: TlsFiles) -> WebhookUrl:
    webhook = parse_webhook_url(
        settings.text("webhook_url", section="revocations"),
        allow_http=settings.flag("webhook_allow_http", section="revocations"),
    )
    if webhook.is_secure and tls.client is not None and not tls.client.verify_peer:
        raise ConfigError(
            "[verifier] trusted_server_ca = all would let anybody receive the webhook: name the CA files"
        )
    return webhook
