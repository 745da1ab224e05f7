"""The single file of Keylime up to 6.4 (`keylime.conf`), as entries of today's components. Pure.

Option by option: where it went, how its words are written today, or why it has no effect any more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from keylime.config.reader import Assignment
from keylime.config.values import parse_flag

SECTIONS = frozenset({"general", "cloud_agent", "cloud_verifier", "webapp"})
"""Sections by which such a file is known; others have the names of today."""

Place = tuple[str, str, str]
"""Component, section and option."""

_DATABASE = (
    "database_drivername",
    "database_username",
    "database_password",
    "database_host",
    "database_name",
)
_KEYS = {
    "verifier": ("server_key", "server_cert", "trusted_client_ca", "client_key", "client_cert"),
    "registrar": ("server_key", "server_cert", "trusted_client_ca"),
}
_SHIPPED_NAMES = ("tci_rsa_key", "tci_mtls_cert", "cv")
_LOGGING = ("loggers", "handlers", "formatters", "formatter_", "logger_", "handler_")
_PROTECTED = "every connection is protected and every client's certificate checked"


def _same(section: str, component: str, *names: str) -> dict[tuple[str, str], Place]:
    return {(section, name): (component, component, name) for name in names}


_RETRIES = ("exponential_backoff", "retry_interval", "max_retries")
MOVED: Mapping[tuple[str, str], Place] = {
    ("general", "receive_revocation_ip"): ("agent", "agent", "revocation_notification_ip"),
    ("general", "receive_revocation_port"): ("agent", "agent", "revocation_notification_port"),
    ("cloud_agent", "cloudagent_ip"): ("agent", "agent", "ip"),
    ("cloud_agent", "cloudagent_port"): ("agent", "agent", "port"),
    ("cloud_agent", "agent_contact_ip"): ("agent", "agent", "contact_ip"),
    ("cloud_agent", "agent_contact_port"): ("agent", "agent", "contact_port"),
    ("cloud_agent", "rsa_keyname"): ("agent", "agent", "server_key"),
    ("cloud_agent", "mtls_cert"): ("agent", "agent", "server_cert"),
    ("cloud_agent", "mtls_cert_enabled"): ("agent", "agent", "enable_agent_mtls"),
    ("cloud_agent", "keylime_ca"): ("agent", "agent", "trusted_client_ca"),
    ("cloud_agent", "agent_uuid"): ("agent", "agent", "uuid"),
    ("cloud_agent", "listen_notifications"): ("agent", "agent", "enable_revocation_notifications"),
    ("cloud_agent", "listen_notfications"): ("agent", "agent", "enable_revocation_notifications"),
    **_same("cloud_agent", "agent", "registrar_ip", "registrar_port", "enc_keyname", "dec_payload_file"),
    **_same("cloud_agent", "agent", "secure_size", "tpm_ownerpassword", "extract_payload_zip"),
    **_same("cloud_agent", "agent", "revocation_cert", "revocation_actions", "payload_script"),
    **_same("cloud_agent", "agent", "enable_insecure_payload", "measure_payload_pcr", *_RETRIES),
    **_same("cloud_agent", "agent", "tpm_hash_alg", "tpm_encryption_alg", "tpm_signing_alg"),
    **_same("cloud_agent", "agent", "ek_handle", "run_as"),
    ("cloud_verifier", "cloudverifier_id"): ("verifier", "verifier", "uuid"),
    ("cloud_verifier", "cloudverifier_ip"): ("verifier", "verifier", "ip"),
    ("cloud_verifier", "cloudverifier_port"): ("verifier", "verifier", "port"),
    ("cloud_verifier", "ca_cert"): ("verifier", "verifier", "trusted_client_ca"),
    ("cloud_verifier", "my_cert"): ("verifier", "verifier", "server_cert"),
    ("cloud_verifier", "private_key"): ("verifier", "verifier", "server_key"),
    ("cloud_verifier", "private_key_pw"): ("verifier", "verifier", "server_key_password"),
    ("cloud_verifier", "agent_mtls_cert"): ("verifier", "verifier", "client_cert"),
    ("cloud_verifier", "agent_mtls_private_key"): ("verifier", "verifier", "client_key"),
    ("cloud_verifier", "agent_mtls_private_key_pw"): ("verifier", "verifier", "client_key_password"),
    ("cloud_verifier", "agent_mtls_cert_enabled"): ("verifier", "verifier", "enable_agent_mtls"),
    ("cloud_verifier", "multiprocessing_pool_num_workers"): ("verifier", "verifier", "num_workers"),
    ("cloud_verifier", "tomtou_errors"): ("verifier", "verifier", "ignore_tomtou_errors"),
    ("cloud_verifier", "revocation_notifiers"): (
        "verifier",
        "revocations",
        "enabled_revocation_notifications",
    ),
    ("cloud_verifier", "revocation_notifier_ip"): ("verifier", "revocations", "zmq_ip"),
    ("cloud_verifier", "revocation_notifier_port"): ("verifier", "revocations", "zmq_port"),
    ("cloud_verifier", "webhook_url"): ("verifier", "revocations", "webhook_url"),
    **_same("cloud_verifier", "verifier", "tls_dir", "database_url", "database_pool_sz_ovfl"),
    **_same("cloud_verifier", "verifier", "auto_migrate_db", "quote_interval", "max_upload_size", *_RETRIES),
    **_same("cloud_verifier", "verifier", "measured_boot_policy_name", "severity_labels", "severity_policy"),
    **_same("cloud_verifier", "verifier", "require_allow_list_signatures"),
    ("tenant", "cloudverifier_ip"): ("tenant", "tenant", "verifier_ip"),
    ("tenant", "cloudverifier_port"): ("tenant", "tenant", "verifier_port"),
    ("tenant", "ca_cert"): ("tenant", "tenant", "trusted_server_ca"),
    ("tenant", "my_cert"): ("tenant", "tenant", "client_cert"),
    ("tenant", "private_key"): ("tenant", "tenant", "client_key"),
    ("tenant", "private_key_pw"): ("tenant", "tenant", "client_key_password"),
    ("tenant", "agent_mtls_cert_enabled"): ("tenant", "tenant", "enable_agent_mtls"),
    **_same("tenant", "tenant", "registrar_ip", "registrar_port", "tls_dir", "tpm_cert_store", *_RETRIES),
    **_same("tenant", "tenant", "max_payload_size", "require_ek_cert", "ek_check_script"),
    **_same("tenant", "tenant", "accept_tpm_hash_algs", "accept_tpm_encryption_algs"),
    **_same("tenant", "tenant", "accept_tpm_signing_algs"),
    ("registrar", "registrar_ip"): ("registrar", "registrar", "ip"),
    ("registrar", "registrar_port"): ("registrar", "registrar", "port"),
    ("registrar", "registrar_tls_port"): ("registrar", "registrar", "tls_port"),
    ("registrar", "ca_cert"): ("registrar", "registrar", "trusted_client_ca"),
    ("registrar", "my_cert"): ("registrar", "registrar", "server_cert"),
    ("registrar", "private_key"): ("registrar", "registrar", "server_key"),
    ("registrar", "private_key_pw"): ("registrar", "registrar", "server_key_password"),
    **_same("registrar", "registrar", "tls_dir", "database_url", "database_pool_sz_ovfl", "auto_migrate_db"),
    **_same("ca", "ca", "cert_country", "cert_ca_name", "cert_state", "cert_locality", "cert_organization"),
    **_same("ca", "ca", "cert_org_unit", "cert_ca_lifetime", "cert_lifetime", "cert_bits", "cert_crl_dist"),
}

# Why an option has no effect any more, and what it was shipped with: nobody is told of that.
_GONE: Mapping[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("general", "enable_tls"): (_PROTECTED, ("true",)),
    ("general", "tls_check_hostnames"): ("check_server_names of verifier and tenant says so", ("false",)),
    ("general", "ca_implementation"): ("certificates are made without another program", ("openssl",)),
    ("cloud_verifier", "check_client_cert"): (_PROTECTED, ("true",)),
    ("registrar", "check_client_cert"): (_PROTECTED, ("true",)),
    ("cloud_verifier", "registrar_ip"): ("the verifier does not call the registrar", ("127.0.0.1",)),
    ("cloud_verifier", "registrar_port"): ("the verifier does not call the registrar", ("8891",)),
    ("cloud_verifier", "log_destination"): ("programs log to standard output, for the journal", ("file",)),
    ("registrar", "log_destination"): ("programs log to standard output, for the journal", ("file",)),
    ("registrar", "prov_db_filename"): (
        "there is no provider registrar",
        ("provider_reg_data.sqlite",),
    ),
    ("registrar", "provider_registrar_ip"): ("there is no provider registrar", ("127.0.0.1",)),
    ("registrar", "provider_registrar_port"): ("there is no provider registrar", ("8990",)),
    ("registrar", "provider_registrar_tls_port"): ("there is no provider registrar", ("8991",)),
    ("tenant", "agent_mtls_cert"): ("client_cert is shown to agents too", ("CV", "default", "")),
    ("tenant", "agent_mtls_private_key"): ("client_key is used with agents too", ("", "default")),
    ("tenant", "agent_mtls_private_key_pw"): ("client_key_password is used with agents too", ("", "default")),
    ("tenant", "vtpm_policy"): ("there are no virtual TPMs of a provider", ("{}",)),
    ("ca", "cfssl_ip"): ("certificates are made without another program", ("127.0.0.1",)),
    ("ca", "cfssl_port"): ("certificates are made without another program", ("8888",)),
}
_FLAGS_FOR = {
    "tpm_policy": "--tpm_policy",
    "ima_allowlist": "--runtime-policy (keylime_convert_runtime_policy makes one of the list)",
    "ima_excludelist": "--exclude, or excludes of the runtime policy",
}
_SHIPPED_LISTS = {"ima_allowlist": "allowlist.txt", "ima_excludelist": "exclude.txt"}


@dataclass(slots=True)
class Converted:
    """Texts of today's options, and what there is to say."""

    texts: dict[Place, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def convert(entries: Sequence[Assignment]) -> Converted:
    """What the entries of a single file come to."""
    given = {(entry.section, entry.name): _unquoted(entry.text) for entry in entries}
    converted = Converted()
    for (section, name), text in given.items():
        place = MOVED.get((section, name))
        if place is not None:
            converted.texts[place] = _today(place, text)
        elif section.startswith(_LOGGING):
            converted.texts["logging", section, name] = text
        else:
            _say(converted, section, name, text)
    for section, component in (("cloud_verifier", "verifier"), ("registrar", "registrar")):
        _database(converted, given, section, component)
        _generated_keys(converted, component)
    _notifiers(converted, given)
    _both_authorities(converted)
    return converted


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] == "'" else text


def _today(place: Place, text: str) -> str:
    """A word of then as it is written today."""
    option = place[2]
    is_file = option.endswith(("_key", "_cert", "_ca", "_dir"))
    if is_file and (not text or text.lower() in _SHIPPED_NAMES):
        return "default"
    if option == "database_url" and not text:
        return "sqlite"
    return text


def _say(converted: Converted, section: str, name: str, text: str) -> None:
    label = f"[{section}] {name}"
    if section == "tenant" and name in _FLAGS_FOR:
        if text not in ("", "{}", _SHIPPED_LISTS.get(name)):
            converted.remarks.append(
                f"{label} = {text}: there is no default for every machine any more; give it to "
                f"`keylime_tenant -c add` with {_FLAGS_FOR[name]}"
            )
    elif (section, name) in _GONE:
        reason, shipped = _GONE[section, name]
        if text not in shipped and text.lower() not in shipped:
            converted.remarks.append(f"{label} has no effect any more: {reason}")
    elif section == "webapp":
        converted.remarks.append(f"{label} has no effect any more: there is no web application")
    elif name.startswith("registrar_") and section in ("cloud_verifier", "tenant", "registrar"):
        if text not in ("", "CV", "default"):
            converted.remarks.append(f"{label} has no effect any more: the other TLS options are used")
    elif name in _DATABASE or name.startswith("revocation_notifier"):
        pass  # looked at together with others
    else:
        converted.remarks.append(f"{label} is no option of Keylime up to 6.4, and is left out")


def _database(
    converted: Converted, given: Mapping[tuple[str, str], str], section: str, component: str
) -> None:
    """The URL of a database that was described in parts."""
    parts = [given.get((section, name), "") for name in _DATABASE]
    if given.get((section, "database_url")) or not any(parts):
        return
    driver, user, password, host, name = parts
    if (driver or "sqlite") == "sqlite":
        shipped = "cv_data.sqlite" if component == "verifier" else "reg_data.sqlite"
        if name in ("", shipped):
            return
        url = f"sqlite:///{name}" if name.startswith("/") else f"sqlite:////var/lib/keylime/{name}"
    else:
        account = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        url = f"{driver}://{account}{'@' if account else ''}{host}/{name}"
    converted.texts[component, component, "database_url"] = url


def _generated_keys(converted: Converted, component: str) -> None:
    """With `tls_dir = generate` all keys are made in there, and names of others are an error today."""
    if converted.texts.get((component, component, "tls_dir")) != "generate":
        return
    for name in _KEYS[component]:
        place = (component, component, name)
        if converted.texts.get(place, "default") != "default":
            converted.remarks.append(
                f"[{component}] {name} = {converted.texts[place]} becomes default by tls_dir = generate"
            )
            converted.texts[place] = "default"


def _notifiers(converted: Converted, given: Mapping[tuple[str, str], str]) -> None:
    """The two switches from before there was a list."""
    place = ("verifier", "revocations", "enabled_revocation_notifications")
    switches = {"revocation_notifier": "zeromq", "revocation_notifier_webhook": "webhook"}
    found = {name: given.get(("cloud_verifier", name)) for name in switches}
    if place in converted.texts or all(text is None for text in found.values()):
        return
    chosen = [switches[name] for name, text in found.items() if text is not None and _is_on(text)]
    converted.texts[place] = ", ".join(chosen)


def _is_on(text: str) -> bool:
    try:
        return parse_flag(text)
    except ValueError:
        return False


def _both_authorities(converted: Converted) -> None:
    """A tenant that calls two authorities' servers has to trust both."""
    generates = [
        converted.texts.get((component, component, "tls_dir")) == "generate"
        for component in ("verifier", "registrar")
    ]
    place = ("tenant", "tenant", "trusted_server_ca")
    if all(generates) and converted.texts.get(place, "default") == "default":
        both = ["/var/lib/keylime/cv_ca/cacert.crt", "/var/lib/keylime/reg_ca/cacert.crt"]
        converted.texts[place] = repr(both)
        converted.remarks.append(
            f"[tenant] trusted_server_ca becomes {', '.join(both)}: both servers have an authority each"
        )
