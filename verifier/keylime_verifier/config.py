"""The verifier's configuration as one frozen value, made before anything starts."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import URL

from keylime.config.loader import load_settings
from keylime.config.settings import Settings, work_dir
from keylime.database.engine import PoolSize
from keylime.errors import ConfigError
from keylime.findings.severity import SeverityPolicy
from keylime.measured_boot.pcr_sets import PcrSet
from keylime.pki.ca_settings import CaSettings, ca_settings
from keylime.pki.tls import TlsFiles, resolve_tls_files
from keylime.revocation.publication import endpoint
from keylime.service.metrics_place import MetricsPlace, metrics_place
from keylime.service.supervisor import worker_count
from keylime.takeover.place import DatabasePlace, configured_database
from keylime_verifier.agents.deliveries import AGENT, WEBHOOK, ZEROMQ, Channel
from keylime_verifier.agents.lifecycle import Cadence
from keylime_verifier.agents.pushing import AttestationLimits, AttestationMode
from keylime_verifier.agents.shards import VerifierId
from keylime_verifier.pushing.sessions import SessionLimits
from keylime_verifier.revocations.webhook_url import WebhookUrl, parse_webhook_url

SQLITE_NAME = "cv_data.sqlite"
EVENTS_TO_LOG = Path("log")
"""Instead of a path: events are lines of the verifier's log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierConfig:
    """Everything an operator can set, checked."""

    work_dir: Path
    verifier_id: VerifierId
    ip: str
    port: int
    server_names: tuple[str, ...]
    tls: TlsFiles
    ca: CaSettings
    require_admin_role: bool
    require_agent_mtls: bool
    database: DatabasePlace
    database_pool: PoolSize
    auto_migrate: bool
    workers: int
    lease_s: float
    max_upload: int
    max_stranger_bodies: int
    max_evidence: int
    evidence_workers: int
    evidence_memory: int
    evidence_cpu_time_s: int
    request_timeout_s: float
    drain_timeout_s: float
    cadence: Cadence
    severities: SeverityPolicy
    boot_policy_name: str
    boot_explained_pcrs: PcrSet
    boot_policy_imports: tuple[str, ...]
    evaluate_boot_always: bool
    ignore_tomtou: bool
    require_policy_signatures: bool
    notifications: tuple[Channel, ...]
    zmq_ip: str
    zmq_port: int
    webhook: WebhookUrl | None
    max_agents_notified: int
    revocation_retention_s: float
    revocation_history_s: float
    history_retention_s: float
    events_log: Path | None  # None: nowhere; EVENTS_TO_LOG stands for the log
    posts_events: bool
    policy_versions: int
    metrics: MetricsPlace | None  # None: none are served
    mode: AttestationMode
    recovers: bool
    session_limits: SessionLimits
    attestation_limits: AttestationLimits
    attestation_history_s: float
    settings: Settings = field(repr=False)  # of verifier.conf: what most of this was made of
    warnings: tuple[str, ...]

    @property
    def database_url(self) -> URL:
        """Where our tables are."""
        return self.database.own

    @property
    def broker(self) -> str:
        """The name of this machine's ZeroMQ broker, which no other machine's has."""
        return f"{endpoint(self.zmq_ip, self.zmq_port)}@{socket.gethostname()}"

    @property
    def notification_targets(self) -> tuple[tuple[Channel, str], ...]:
        """The (channel, target) pairs that every revocation goes to; "*" stands for all agents."""
        webhook = "" if self.webhook is None else self.webhook.origin
        targets = {AGENT: "*", ZEROMQ: self.broker, WEBHOOK: webhook}
        return tuple((channel, targets[channel]) for channel in self.notifications)


def load_config(environ: Mapping[str, str]) -> VerifierConfig:
    """The configuration from files and environment. Raises ConfigError, which names option and remedy."""
    settings = load_settings("verifier", environ=environ)
    base = work_dir(environ)
    metrics = metrics_place(settings, base)
    ca = load_settings("ca", environ=environ)
    tls = resolve_tls_files(settings, "verifier", base)
    notifications = _notifications(settings)
    return VerifierConfig(
        work_dir=base,
        verifier_id=VerifierId(settings.text("uuid")),
        ip=settings.text("ip"),
        port=settings.integer("port"),
        server_names=settings.items("cert_subject_alternative_names"),
        tls=tls,
        ca=ca_settings(ca),
        require_admin_role=settings.flag("require_admin_role"),
        require_agent_mtls=settings.flag("enable_agent_mtls"),
        database=configured_database(settings, base, SQLITE_NAME),
        database_pool=PoolSize.configured(settings),
        auto_migrate=settings.flag("auto_migrate_db"),
        workers=worker_count(settings.integer("num_workers"), settings.integer("max_workers")),
        lease_s=settings.number("lease"),
        max_upload=settings.integer("max_upload_size"),
        max_stranger_bodies=settings.integer("max_stranger_bodies"),
        max_evidence=_max_evidence(settings),
        evidence_workers=settings.integer("evidence_workers"),
        evidence_memory=settings.integer("evidence_memory"),
        evidence_cpu_time_s=settings.integer("evidence_cpu_time"),
        request_timeout_s=settings.number("request_timeout"),
        drain_timeout_s=settings.number("shutdown_drain_timeout"),
        cadence=Cadence(
            quote_interval_s=settings.number("quote_interval"),
            retry_interval_s=settings.number("retry_interval"),
            max_retries=settings.integer("max_retries"),
            exponential_backoff=settings.flag("exponential_backoff"),
            silence_interval_s=settings.number("silence_interval"),
            resume_after_silence=settings.flag("resume_after_silence"),
        ),
        severities=_severities(settings),
        boot_policy_name=settings.text("measured_boot_policy_name"),
        boot_explained_pcrs=PcrSet(settings.text("measured_boot_explained_pcrs")),
        boot_policy_imports=settings.items("measured_boot_imports"),
        evaluate_boot_always=settings.text("measured_boot_evaluate") == "always",
        ignore_tomtou=settings.flag("ignore_tomtou_errors"),
        require_policy_signatures=settings.flag("require_allow_list_signatures"),
        notifications=notifications,
        zmq_ip=settings.text("zmq_ip", section="revocations"),
        zmq_port=settings.integer("zmq_port", section="revocations"),
        webhook=_webhook(settings, tls) if WEBHOOK in notifications else None,
        max_agents_notified=settings.integer("max_agents_notified", section="revocations"),
        revocation_retention_s=settings.number("retention", section="revocations"),
        revocation_history_s=settings.number("history", section="revocations"),
        history_retention_s=settings.number("history_retention"),
        events_log=_events_log(settings, base),
        posts_events=_posts_events(settings, notifications),
        policy_versions=settings.integer("policy_versions"),
        metrics=metrics,
        mode=AttestationMode(settings.text("mode") or "both"),
        recovers=settings.flag("auto_recover_attestation_failures"),
        session_limits=_session_limits(settings),
        attestation_limits=AttestationLimits(
            interval_s=settings.number("quote_interval"),
            challenge_s=settings.integer("challenge_lifetime"),
            verdict_s=settings.integer("verification_timeout"),
        ),
        attestation_history_s=settings.number("attestation_history"),
        settings=settings,
        warnings=(
            *settings.warnings,
            *ca.warnings,
            *tls.warnings,
            *(() if metrics is None else metrics.warnings),
        ),
    )


def _session_limits(settings: Settings) -> SessionLimits:
    return SessionLimits(
        challenge_s=settings.integer("nonce_lifetime"),
        token_s=settings.integer("session_lifetime"),
        extends=settings.flag("extend_token_on_attestation"),
        per_address=settings.integer("session_create_rate_limit_per_ip"),
        address_window_s=settings.integer("session_create_rate_limit_window_ip"),
        per_agent=settings.integer("session_create_rate_limit_per_agent"),
        agent_window_s=settings.integer("session_create_rate_limit_window_agent"),
    )


def _severities(settings: Settings) -> SeverityPolicy:
    labels = settings.items("severity_labels")
    with settings.placed("severity_policy" if labels else "severity_labels"):
        return SeverityPolicy(labels, settings.mappings("severity_policy"))


def _max_evidence(settings: Settings) -> int:
    size, together = settings.integer("max_evidence_size"), settings.integer("max_stranger_bodies")
    if size <= together:
        return size
    with settings.placed("max_evidence_size"):
        raise ConfigError(
            f"[verifier] max_evidence_size = {size} is more than all strangers may send together: "
            f"raise max_stranger_bodies, which is {together}"
        )


def _events_log(settings: Settings, base: Path) -> Path | None:
    text = settings.text("events_log")
    if not text:
        return None
    return EVENTS_TO_LOG if Path(text) == EVENTS_TO_LOG else base / text


def _posts_events(settings: Settings, notifications: tuple[Channel, ...]) -> bool:
    is_wanted = settings.flag("webhook_events", section="revocations")
    if not is_wanted or WEBHOOK in notifications:
        return is_wanted
    with settings.placed("webhook_events", section="revocations"):
        raise ConfigError(
            "[revocations] webhook_events needs webhook among enabled_revocation_notifications, and a "
            "webhook_url"
        )


def _notifications(settings: Settings) -> tuple[Channel, ...]:
    names = settings.items("enabled_revocation_notifications", section="revocations")
    with settings.placed("enabled_revocation_notifications", section="revocations"):
        return tuple(dict.fromkeys(map(_channel, names)))


def _channel(name: str) -> Channel:
    try:
        return Channel(name)
    except ValueError as error:
        raise ConfigError(
            f"[revocations] enabled_revocation_notifications: {name!r} is not one of {', '.join(Channel)}"
        ) from error


def _webhook(settings: Settings, tls: TlsFiles) -> WebhookUrl:
    with settings.placed("webhook_url", section="revocations"):
        webhook = parse_webhook_url(
            settings.text("webhook_url", section="revocations"),
            allow_http=settings.flag("webhook_allow_http", section="revocations"),
        )
    if webhook.is_secure and tls.client is not None and not tls.client.verify_peer:
        raise ConfigError(
            "[verifier] trusted_server_ca = all would let anybody receive the webhook: name the CA files"
        )
    return webhook
