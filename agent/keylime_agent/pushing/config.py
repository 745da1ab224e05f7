"""The options of an agent that attests by itself as one frozen value, made before anything starts."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import Encoding

from keylime.config.settings import Settings
from keylime.errors import ConfigError
from keylime.messages.push_evidence import AK, MAX_VERSION
from keylime.pki.server_names import NameCheck
from keylime.pki.tls import client_context, load_trusted_certificates
from keylime.safe_paths import Owners
from keylime_agent.machine_config import MachineConfig, agent_directory, keyword, machine_fields
from keylime_agent.pushing.pace import Pacing

_DEFAULT_URL = "https://localhost:8881"
_DEFAULT_LOG_VERSION = "2.1"


@dataclass(frozen=True, slots=True)
class PushConfig(MachineConfig):
    """Everything the operator decides about an agent that attests by itself."""

    verifiers: tuple[str, ...]  # base URLs, in the order in which they are tried
    authority: Path
    names: NameCheck
    pacing: Pacing
    key_identifier: str
    boot_log_version: str

    def verifier_tls(self, owners: Owners) -> ssl.SSLContext:
        """What to call verifiers with. Raises ConfigError, also when others than `owners` may change it."""
        context = client_context(certificate=None, key=None, trusted=())
        try:
            found = load_trusted_certificates(self.authority, owners)
        except ConfigError as error:
            remedy = "" if self.authority.exists() else "; copy cv_ca/cacert.crt from the verifier there"
            raise ConfigError(f"[agent] verifier_tls_ca_cert: {error}{remedy}") from error
        for certificate in found:
            context.load_verify_locations(cadata=certificate.public_bytes(Encoding.DER))
        return context


def push_config(settings: Settings, environ: Mapping[str, str]) -> PushConfig:
    """The configuration in `settings`. Raises ConfigError naming the option."""
    directory = agent_directory(settings, environ)
    fields = machine_fields(settings, directory)
    backoff = fields["backoff"]
    version = keyword(settings.text("uefi_logs_evidence_version"), _DEFAULT_LOG_VERSION)
    if len(version) > MAX_VERSION:
        raise ConfigError(f"[agent] uefi_logs_evidence_version: at most {MAX_VERSION} characters")
    return PushConfig(
        **fields,
        verifiers=_verifiers(settings),
        authority=directory / keyword(settings.text("verifier_tls_ca_cert"), "cv_ca/cacert.crt"),
        names=NameCheck(settings.text("check_server_names")),
        pacing=Pacing(
            float(settings.integer("attestation_interval_seconds")), backoff.initial_s, backoff.max_s
        ),
        key_identifier=keyword(settings.text("certification_keys_server_identifier"), AK),
        boot_log_version=version,
    )


def _verifiers(settings: Settings) -> tuple[str, ...]:
    # Files that some tools have generated hold an empty text here.
    urls = tuple(keyword(url, _DEFAULT_URL) for url in settings.items("verifier_url")) or (_DEFAULT_URL,)
    with settings.placed("verifier_url"):
        return tuple(dict.fromkeys(_base_url(url) for url in urls))


def _base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_usable = False
    else:
        is_usable = is_usable and parts.scheme == "https" and parts.path in ("", "/")
        is_usable = is_usable and not (parts.query or parts.fragment or "@" in parts.netloc)
    if not is_usable:
        raise ConfigError(
            f"[agent] verifier_url = {url}: expected https://HOST:PORT and nothing after it, such as "
            "https://verifier.example.com:8881"
        )
    return url.rstrip("/")
