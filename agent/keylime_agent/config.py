"""The agent's options as one frozen value, made before anything starts."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from keylime.addresses import means_own_host
from keylime.config.settings import Settings, work_dir
from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime.pki.server_names import NameCheck
from keylime.tpm.device_key_templates import DEVICE_KEY_KINDS, DeviceKeyKind, kind_of
from keylime.tpm.templates import ak_label
from keylime_agent.actions import ActionOptions
from keylime_agent.device_identity import DeviceIdentityOptions, DeviceKeyOptions
from keylime_agent.evidence import BOOT_LOG, IMA_LIST
from keylime_agent.os_log import OS_LOG
from keylime_agent.payload import PayloadOptions
from keylime_agent.registration import Backoff, RegistrarTls
from keylime_agent.tpm_identity import TpmAlgorithms


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Files of the HTTPS listener, absolute, and whose clients may connect."""

    certificate: Path
    key: Path
    key_password: str | None = field(repr=False)
    trusted_clients: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything the operator decides about an agent. Paths are absolute; None means "not wanted"."""

    work_dir: Path
    uuid: str
    ip: str
    port: int
    contact_ip: str
    contact_port: int
    registrar_ip: str
    registrar_port: int
    registrar_tls: RegistrarTls | None  # None: plain HTTP
    tls: TlsOptions | None  # None: plain HTTP
    require_admin_role: bool
    secure_size: str
    run_as: str
    algorithms: TpmAlgorithms
    ek_handle: str
    endorsement_auth: bytes = field(repr=False)
    device_identity: DeviceIdentityOptions | None  # None: registers without
    data_path: Path | None
    ima_path: Path
    boot_log_path: Path
    os_log_path: Path
    payload: PayloadOptions
    actions: ActionOptions
    revocation_certificate: Path | None  # None: the payload's
    publishers: tuple[tuple[str, int], ...]  # of revocations over ZeroMQ
    backoff: Backoff


def agent_config(settings: Settings, environ: Mapping[str, str]) -> AgentConfig:
    """The configuration in `settings`. Raises ConfigError naming the option."""
    directory = (
        work_dir(environ) if environ.get("KEYLIME_DIR") else Path(settings.text("keylime_dir")).absolute()
    )
    tls = _tls(settings, directory) if settings.flag("enable_agent_mtls") else None
    registrar_tls = _registrar_tls(settings, directory) if settings.flag("registrar_tls_enabled") else None
    certificate = settings.text("revocation_cert")
    data_path = settings.text("agent_data_path")
    return AgentConfig(
        work_dir=directory,
        uuid=settings.text("uuid"),
        ip=settings.text("ip"),
        port=settings.integer("port"),
        contact_ip=settings.text("contact_ip"),
        contact_port=settings.integer("contact_port"),
        registrar_ip=settings.text("registrar_ip"),
        registrar_port=settings.integer("registrar_port" if registrar_tls is None else "registrar_tls_port"),
        registrar_tls=registrar_tls,
        tls=tls,
        require_admin_role=settings.flag("require_admin_role"),
        secure_size=settings.text("secure_size"),
        run_as=settings.text("run_as"),
        algorithms=_algorithms(settings),
        ek_handle=settings.text("ek_handle"),
        endorsement_auth=_authorisation(settings, "tpm_ownerpassword"),
        device_identity=_device_identity(settings, directory) if settings.flag("enable_iak_idevid") else None,
        data_path=directory / _keyword(data_path, "agent_data.json") if data_path else None,
        ima_path=Path("/") / _keyword(settings.text("ima_ml_path"), str(IMA_LIST)),
        boot_log_path=Path("/") / _keyword(settings.text("measuredboot_ml_path"), str(BOOT_LOG)),
        os_log_path=Path("/") / _keyword(settings.text("os_ml_path"), str(OS_LOG)),
        payload=_payload(settings, has_tls=tls is not None),
        actions=_actions(settings),
        revocation_certificate=directory / certificate if certificate not in ("default", "") else None,
        publishers=_publishers(settings),
        backoff=Backoff(
            settings.integer("exponential_backoff_initial_delay") / 1000,
            settings.integer("exponential_backoff_max_delay") / 1000,
            settings.integer("exponential_backoff_max_retries"),
        ),
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


def _keyword(value: str, default: str) -> str:
    return default if value in ("default", "") else value


def _tls(settings: Settings, directory: Path) -> TlsOptions:
    # "secure" was the meaning of `default` in agents whose certificate did not outlive them.
    tls_dir = directory / _keyword(settings.text("tls_dir"), "")
    trusted = settings.items("trusted_client_ca")
    if "all" in trusted:
        raise ConfigError(
            "[agent] trusted_client_ca = all would let anybody send keys and payloads; name a CA certificate"
        )
    if not trusted:
        raise ConfigError(
            "[agent] trusted_client_ca is empty, so nobody could talk to the agent; use `default` and copy "
            "cv_ca/cacert.crt from the verifier"
        )
    return TlsOptions(
        certificate=tls_dir / _keyword(settings.text("server_cert"), "server-cert.crt"),
        key=tls_dir / _keyword(settings.text("server_key"), "server-private.pem"),
        key_password=settings.text("server_key_password") or None,
        trusted_clients=tuple(
            directory / "cv_ca" / "cacert.crt" if name == "default" else directory / name for name in trusted
        ),
    )


def _registrar_tls(settings: Settings, directory: Path) -> RegistrarTls:
    return RegistrarTls(
        directory / _keyword(settings.text("registrar_tls_ca_cert"), "cv_ca/cacert.crt"),
        NameCheck(settings.text("check_server_names")),
    )


def _algorithms(settings: Settings) -> TpmAlgorithms:
    algorithms = TpmAlgorithms(
        HashAlgorithm.from_label(settings.text("tpm_hash_alg")),
        settings.text("tpm_encryption_alg"),
        settings.text("tpm_signing_alg"),
    )
    try:
        ak_label(algorithms.signing_alg, algorithms.encryption_alg)
    except ValueError as error:
        raise ConfigError(f"[agent] tpm_signing_alg, tpm_encryption_alg: {error}") from error
    return algorithms


def _authorisation(settings: Settings, option: str) -> bytes:
    password = settings.text(option)
    if not password.startswith("hex:"):
        return password.encode()
    try:
        return bytes.fromhex(password.removeprefix("hex:"))
    except ValueError:
        raise ConfigError(f"[agent] {option}: what follows `hex:` is not hex") from None


def _device_identity(settings: Settings, directory: Path) -> DeviceIdentityOptions:
    return DeviceIdentityOptions(
        _device_key_kind(settings),
        _device_key(settings, directory, "idevid"),
        _device_key(settings, directory, "iak"),
    )


def _device_key_kind(settings: Settings) -> DeviceKeyKind | None:
    template = settings.text("iak_idevid_template")
    if template in ("", "default", "detect"):
        return None
    if template == "H-5":
        raise ConfigError(
            "[agent] iak_idevid_template = H-5: no registrar here can check signatures of SM2 with SM3; "
            "use H-1 to H-4 if the device has such an identity too, or switch enable_iak_idevid off"
        )
    if template != "manual":
        return DEVICE_KEY_KINDS[template]
    family, name_alg = settings.text("iak_idevid_asymmetric_alg"), settings.text("iak_idevid_name_alg")
    try:
        return kind_of(family, HashAlgorithm.from_label(name_alg))
    except ValueError as error:
        raise ConfigError(
            f"[agent] iak_idevid_asymmetric_alg = {family}, iak_idevid_name_alg = {name_alg}: {error}"
        ) from error


def _device_key(settings: Settings, directory: Path, name: str) -> DeviceKeyOptions:
    certificate = settings.text(f"{name}_cert")
    return DeviceKeyOptions(
        certificate=directory / _keyword(certificate, f"{name}-cert.crt") if certificate else None,
        must_exist=certificate not in ("", "default"),
        handle=_persistent_handle(settings, f"{name}_handle"),
        authorisation=_authorisation(settings, f"{name}_password"),
    )


def _persistent_handle(settings: Settings, option: str) -> int | None:
    text = settings.text(option).strip()
    if not text:
        return None
    # With or without 0x, as files of the field have it.
    digits = text[2:] if text[:2] in ("0x", "0X") else text
    if re.fullmatch(r"81[0-9a-fA-F]{6}", digits):
        return int(digits, 16)
    raise ConfigError(
        f"[agent] {option} = {text}: expected the handle of a persistent key, such as 0x81020000, or nothing "
        "to make the key from its template"
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
