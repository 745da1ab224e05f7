"""The options of an agent that is polled as one frozen value, made before anything starts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from keylime.addresses import means_own_host
from keylime.config.settings import Settings
from keylime.errors import ConfigError
from keylime_agent.actions import ActionOptions
from keylime_agent.machine_config import MachineConfig, agent_directory, keyword, machine_fields
from keylime_agent.payload import PayloadOptions


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Files of the HTTPS listener, absolute, and whose clients may connect."""

    certificate: Path
    key: Path
    key_password: str | None = field(repr=False)
    trusted_clients: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class AgentConfig(MachineConfig):
    """Everything the operator decides about an agent that is polled."""

    ip: str
    port: int
    tls: TlsOptions | None  # None: plain HTTP
    require_admin_role: bool
    secure_size: str
    payload: PayloadOptions
    actions: ActionOptions
    revocation_certificate: Path | None  # None: the payload's
    publishers: tuple[tuple[str, int], ...]  # of revocations over ZeroMQ


def agent_config(settings: Settings, environ: Mapping[str, str]) -> AgentConfig:
    """The configuration in `settings`. Raises ConfigError naming the option."""
    directory = agent_directory(settings, environ)
    tls = _tls(settings, directory) if settings.flag("enable_agent_mtls") else None
    certificate = settings.text("revocation_cert")
    return AgentConfig(
        **machine_fields(settings, directory),
        ip=settings.text("ip"),
        port=settings.integer("port"),
        tls=tls,
        require_admin_role=settings.flag("require_admin_role"),
        secure_size=settings.text("secure_size"),
        payload=_payload(settings, has_tls=tls is not None),
        actions=_actions(settings),
        revocation_certificate=directory / certificate if certificate not in ("default", "") else None,
        publishers=_publishers(settings),
    )


def contact_remark(config: AgentConfig) -> str | None:
    """What is strange about the address that is registered: elsewhere, a loopback address leads nowhere."""
    if means_own_host(config.registrar_ip) or not means_own_host(config.contact_ip):
        return None
    return (
        f"[agent] contact_ip = {config.contact_ip} is what the registrar at {config.registrar_ip} will tell "
        "others of this agent, and there it leads back to their own machine; set contact_ip to an address of "
        "this machine that verifier and tenant reach, or name it at each `keylime_tenant -c add` with -t"
    )


def _tls(settings: Settings, directory: Path) -> TlsOptions:
    # "secure" was the meaning of `default` in agents whose certificate did not outlive them.
    tls_dir = directory / keyword(settings.text("tls_dir"), "")
    trusted = settings.items("trusted_client_ca")
    with settings.placed("trusted_client_ca"):
        if "all" in trusted:
            raise ConfigError(
                "[agent] trusted_client_ca = all would let anybody send keys and payloads; name a CA "
                "certificate"
            )
        if not trusted:
            raise ConfigError(
                "[agent] trusted_client_ca is empty, so nobody could talk to the agent; use `default` and "
                "copy cv_ca/cacert.crt from the verifier"
            )
    return TlsOptions(
        certificate=tls_dir / keyword(settings.text("server_cert"), "server-cert.crt"),
        key=tls_dir / keyword(settings.text("server_key"), "server-private.pem"),
        key_password=settings.text("server_key_password") or None,
        trusted_clients=tuple(
            directory / "cv_ca" / "cacert.crt" if name == "default" else directory / name for name in trusted
        ),
    )


def _payload(settings: Settings, *, has_tls: bool) -> PayloadOptions:
    insecure = settings.flag("enable_insecure_payload")
    script = _file_name(settings, "payload_script", empty_allowed=True)
    if script and not has_tls and not insecure:
        raise ConfigError(
            "[agent] enable_agent_mtls is off while payload_script is set: anybody could send a script; "
            "empty payload_script, or accept the risk with enable_insecure_payload"
        )
    pcr = settings.integer("measure_payload_pcr")
    return PayloadOptions(
        key_file=_file_name(settings, "enc_keyname"),
        payload_file=_file_name(settings, "dec_payload_file"),
        extract_zip=settings.flag("extract_payload_zip"),
        script=script,
        measure_pcr=pcr if pcr > 0 else None,
        is_allowed=has_tls or insecure,
        script_limit_s=settings.number("payload_script_timeout") or None,
    )


def _file_name(settings: Settings, option: str, *, empty_allowed: bool = False) -> str:
    name = settings.text(option)
    if (not name and empty_allowed) or (name not in ("", ".", "..") and os.sep not in name):
        return name
    raise ConfigError(f"[agent] {option} = {name!r}: expected the name of a file, without a directory")


def _actions(settings: Settings) -> ActionOptions:
    # Files written by newer upgrade tools hold the text "[]" in quotes; the list reader takes it as no names.
    configured = tuple(name for name in settings.items("revocation_actions") if name not in ("[]", ""))
    return ActionOptions(
        configured=configured,
        directory=Path(settings.text("revocation_actions_dir")),
        allow_payload=settings.flag("allow_payload_revocation_actions"),
    )


def _publishers(settings: Settings) -> tuple[tuple[str, int], ...]:
    if not settings.flag("enable_revocation_notifications"):
        return ()
    addresses = settings.items("revocation_notification_ip")
    if not any(addresses):
        raise ConfigError(
            "[agent] revocation_notification_ip is empty while enable_revocation_notifications is on; "
            "give the verifier's address or switch it off"
        )
    port = settings.integer("revocation_notification_port")
    return tuple((address, port) for address in dict.fromkeys(addresses))
