"""The options that agents of both models have: who the machine is, where it registers, what it can show."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keylime.config.settings import Settings, work_dir
from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime.pki.server_names import NameCheck
from keylime.tpm.device_key_templates import DEVICE_KEY_KINDS, DeviceKeyKind, kind_of
from keylime.tpm.templates import ak_label
from keylime_agent.device_identity import DeviceIdentityOptions, DeviceKeyOptions
from keylime_agent.evidence import BOOT_LOG, IMA_LIST
from keylime_agent.os_log import OS_LOG
from keylime_agent.registration import Backoff, RegistrarTls
from keylime_agent.tpm_identity import TpmAlgorithms


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """What the operator decides about an agent of either model. Paths are absolute; None: "not wanted"."""

    work_dir: Path
    uuid: str
    contact_ip: str
    contact_port: int
    registrar_ip: str
    registrar_port: int
    registrar_tls: RegistrarTls | None  # None: plain HTTP
    run_as: str
    algorithms: TpmAlgorithms
    ek_handle: str
    endorsement_auth: bytes = field(repr=False)
    device_identity: DeviceIdentityOptions | None  # None: registers without
    data_path: Path | None
    ima_path: Path
    boot_log_path: Path
    os_log_path: Path
    backoff: Backoff


def agent_directory(settings: Settings, environ: Mapping[str, str]) -> Path:
    """The working directory."""
    return work_dir(environ) if environ.get("KEYLIME_DIR") else Path(settings.text("keylime_dir")).absolute()


def machine_fields(settings: Settings, directory: Path) -> dict[str, Any]:
    """The fields of MachineConfig, for a configuration that has more. Raises ConfigError."""
    registrar_tls = _registrar_tls(settings, directory) if settings.flag("registrar_tls_enabled") else None
    data_path = settings.text("agent_data_path")
    config = MachineConfig(
        work_dir=directory,
        uuid=settings.text("uuid"),
        contact_ip=settings.text("contact_ip"),
        contact_port=settings.integer("contact_port"),
        registrar_ip=settings.text("registrar_ip"),
        registrar_port=settings.integer("registrar_port" if registrar_tls is None else "registrar_tls_port"),
        registrar_tls=registrar_tls,
        run_as=settings.text("run_as"),
        algorithms=_algorithms(settings),
        ek_handle=settings.text("ek_handle"),
        endorsement_auth=_authorisation(settings, "tpm_ownerpassword"),
        device_identity=_device_identity(settings, directory) if settings.flag("enable_iak_idevid") else None,
        data_path=directory / keyword(data_path, "agent_data.json") if data_path else None,
        ima_path=Path("/") / keyword(settings.text("ima_ml_path"), str(IMA_LIST)),
        boot_log_path=Path("/") / keyword(settings.text("measuredboot_ml_path"), str(BOOT_LOG)),
        os_log_path=Path("/") / keyword(settings.text("os_ml_path"), str(OS_LOG)),
        backoff=Backoff(
            settings.integer("exponential_backoff_initial_delay") / 1000,
            settings.integer("exponential_backoff_max_delay") / 1000,
            settings.integer("exponential_backoff_max_retries"),
        ),
    )
    return {name: getattr(config, name) for name in MachineConfig.__dataclass_fields__}


def keyword(value: str, default: str) -> str:
    """`value`, or what the word default and an empty text stand for."""
    return default if value in ("default", "") else value


def _registrar_tls(settings: Settings, directory: Path) -> RegistrarTls:
    return RegistrarTls(
        directory / keyword(settings.text("registrar_tls_ca_cert"), "cv_ca/cacert.crt"),
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
        certificate=directory / keyword(certificate, f"{name}-cert.crt") if certificate else None,
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
    with settings.placed(option):
        raise ConfigError(
            f"[agent] {option} = {text}: expected the handle of a persistent key, such as 0x81020000, or "
            "nothing to make the key from its template"
        )
