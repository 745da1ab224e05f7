"""What the tenant knows before it starts: tenant.conf and ca.conf, overridden by the command line."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from keylime.config.options import TABLES
from keylime.config.settings import Settings, path_below, work_dir
from keylime.errors import ConfigError
from keylime_tenant.arguments import Arguments

# Words that the options take, as they do elsewhere.
_POINTLESS = (
    (
        "accept_tpm_signing_algs",
        "ecschnorr",
        "ecschnorr is accepted to no avail: no verifier here can check such quotes, and the registrar "
        "refuses attestation keys of that scheme",
    ),
    (
        "accept_tpm_hash_algs",
        "sha1",
        "quotes of SHA-1 can be forged by whoever finds collisions; attestation keys that are named with "
        "SHA-1 are refused by the registrar all the same",
    ),
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a peer listens: host name or IP address, and port."""

    host: str
    port: int

    def url(self, scheme: str = "https") -> str:
        """The base URL; IPv6 addresses are put in brackets."""
        host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("[") else self.host
        return f"{scheme}://{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRetries:
    """How long the tenant keeps asking a peer that is not there yet."""

    interval_s: float
    exponential: bool
    max_retries: int
    limit_s: float  # that all tries may take together: what a single one may

    def pause(self, tries: int, took_s: float, spent_s: float) -> float | None:
        """Seconds to wait before the next try; None when patience has ended.

        The last of so many `tries` took `took_s`, all of them `spent_s`. With the defaults tries begin 2, 4,
        8, 16, 32 s after the one before: a peer that swallows what is sent is waited for little longer than
        one that refuses it.
        """
        if tries > self.max_retries or spent_s >= self.limit_s:
            return None
        grows = self.exponential and self.interval_s > 1
        return max(0.0, (self.interval_s**tries if grows else abs(self.interval_s)) - took_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedAlgorithms:
    """What an agent may use, in the names of the wire."""

    hashes: tuple[str, ...]
    encryption: tuple[str, ...]
    signing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EkRules:
    """What is asked of an agent's endorsement key before the agent is added."""

    require_certificate: bool
    certificate_store: Path
    script: str  # empty: none


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantConfig:
    """Everything that files, environment and command line decide."""

    work_dir: Path
    verifier: Address
    registrar: Address
    enable_agent_mtls: bool
    accepted: AllowedAlgorithms
    patience: PeerRetries
    request_timeout_s: float
    connect_timeout_s: float
    max_payload_size: int
    ek: EkRules
    mb_refstate: str  # empty: `--mb-policy default` cannot be used


def pointless_algorithms(settings: Settings) -> tuple[str, ...]:
    """A warning for each word an operator added to the accepted algorithms that lets nobody in."""
    warnings = []
    for option, word, reason in _POINTLESS:
        default = next(one.default for one in TABLES["tenant"].options if one.name == option)
        accepted = settings.items(option)
        if word in accepted and accepted != default:
            warnings.append(f"[tenant] {option} ({settings.source(option)}): {reason} (docs/hardware.md)")
    return tuple(warnings)


def tenant_config(settings: Settings, arguments: Arguments, environ: Mapping[str, str]) -> TenantConfig:
    """The configuration of one run; flags win over `settings`. Raises ConfigError."""
    directory = work_dir(environ)
    return TenantConfig(
        work_dir=directory,
        verifier=_service("verifier", arguments.verifier_ip, arguments.verifier_port, arguments, settings),
        registrar=_service(
            "registrar", arguments.registrar_ip, arguments.registrar_port, arguments, settings
        ),
        enable_agent_mtls=settings.flag("enable_agent_mtls"),
        accepted=AllowedAlgorithms(
            hashes=settings.items("accept_tpm_hash_algs"),
            encryption=settings.items("accept_tpm_encryption_algs"),
            signing=settings.items("accept_tpm_signing_algs"),
        ),
        patience=_patience(settings),
        request_timeout_s=_positive(settings, "request_timeout"),
        connect_timeout_s=_positive(settings, "connect_timeout"),
        max_payload_size=settings.integer("max_payload_size"),
        ek=EkRules(
            require_certificate=settings.flag("require_ek_cert"),
            certificate_store=path_below(directory, settings, "tpm_cert_store"),
            script=settings.text("ek_check_script"),
        ),
        mb_refstate=settings.text("mb_refstate"),
    )


def _service(
    name: str, host: str | None, port: int | None, arguments: Arguments, settings: Settings
) -> Address:
    """Where a service is. Raises ConfigError for what is more than an address."""
    option = f"{name}_ip"
    told = host or settings.text(option)
    before, _, number = told.rpartition(":")
    has_port = number.isdigit() and (":" not in before or before.endswith("]"))
    if (before and has_port) or told.startswith(("http:", "https:")):
        where = arguments.flag(option, "") if host else f"[tenant] {option} ({settings.source(option)})"
        flag = {"verifier": "-vp", "registrar": "-rp"}[name]
        raise ConfigError(
            f"{where}: {told!r} is more than an address: give the port with {flag}, or as {name}_port"
        )
    return Address(told, port or settings.integer(f"{name}_port"))


def _patience(settings: Settings) -> PeerRetries:
    return PeerRetries(
        interval_s=settings.number("retry_interval"),
        exponential=settings.flag("exponential_backoff"),
        max_retries=settings.integer("max_retries"),
        limit_s=_positive(settings, "request_timeout"),
    )


def _positive(settings: Settings, option: str) -> float:
    value = settings.number(option)
    if value <= 0:
        raise ConfigError(
            f"[tenant] {option} = {value} ({settings.source(option)}): expected more than 0 seconds"
        )
    return value
