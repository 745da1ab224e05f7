"""What is collected with the rights that the agent was started with, before it gives them up."""

import logging
import os
import shutil
import ssl
import stat
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from keylime.config.loader import load_settings
from keylime.config.settings import Settings, is_test_mode
from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime.keylime_logging import log_sources
from keylime.keylime_logging import setup as setup_logging
from keylime.pki.library_warnings import ignore_library_warnings
from keylime.safe_paths import Owners, require_safe_directory, require_safe_file
from keylime.service.core_dumps import forbid_core_dumps
from keylime_agent.evidence import BootLog, LogFile
from keylime_agent.ima_list import ImaList
from keylime_agent.kernel_remarks import bank_remark
from keylime_agent.machine_config import MachineConfig
from keylime_agent.os_log import OsLog
from keylime_agent.privileges import Account, drop_privileges, target_account
from keylime_agent.sole_instance import sole_agent

log = logging.getLogger("keylime_agent.main")


ConfigT_co = TypeVar("ConfigT_co", bound=MachineConfig, covariant=True)
ExtraT = TypeVar("ExtraT")


@dataclass(frozen=True, slots=True)
class Rights:
    """Whom the agent will be (None: who it is), and who may change what it trusts."""

    account: Account | None
    owners: Owners


@dataclass(frozen=True, slots=True)
class Prepared(Generic[ConfigT_co]):
    """What was collected with the rights the agent was started with."""

    settings: Settings = field(repr=False)
    config: ConfigT_co
    test_mode: bool
    ima: ImaList
    boot_log: BootLog
    os_log: OsLog
    registrar: ssl.SSLContext | None  # None: plain HTTP
    system_uuid: str | None


def prepare(
    environ: Mapping[str, str],
    stack: AsyncExitStack,
    configure: Callable[[Settings, Mapping[str, str]], ConfigT_co],
    take: Callable[[ConfigT_co, Rights], ExtraT],
) -> tuple[Prepared[ConfigT_co], ExtraT]:
    """Everything that may need root, then the change of user. Raises ConfigError.

    `take` gives what else a model needs root for. The working directory is taken before it, and given back
    by `stack`: beside another agent nothing is written, emptied or flushed.
    """
    settings = load_settings("agent", environ=environ)
    setup_logging("agent", environ)
    log_sources(settings)
    for warning in settings.warnings:
        log.warning("%s", warning)
    config = configure(settings, environ)
    if config.algorithms.hash_alg is HashAlgorithm.SHA1:
        log.warning("[agent] tpm_hash_alg = sha1: such quotes are weak and refused by default; use sha256")
    remark = bank_remark(os.uname().release, config.algorithms.hash_alg)
    if remark is not None:
        log.warning("%s", remark)
    _require_directory(config.work_dir)
    os.umask(0o077)
    forbid_core_dumps()
    ignore_library_warnings()
    account = target_account(config.run_as)
    owners = Owners.of_service() if account is None else Owners.of_service((account.uid, account.gid))
    require_safe_directory(config.work_dir, owners)
    if config.data_path is not None:
        require_safe_file(config.data_path, owners)
    stack.enter_context(sole_agent(config.work_dir))
    extra = take(config, Rights(account, owners))
    ima, boot_log = ImaList(LogFile(config.ima_path)), BootLog(config.boot_log_path)
    os_log = OsLog(config.os_log_path)
    ima.open()
    stack.callback(ima.close)
    boot_log.open()
    stack.callback(boot_log.close)
    os_log.open()
    stack.callback(os_log.close)
    prepared = Prepared(
        settings,
        config,
        is_test_mode(environ),
        ima,
        boot_log,
        os_log,
        None if config.registrar_tls is None else config.registrar_tls.context(owners),
        _system_uuid() if config.uuid == "dmidecode" else None,
    )
    if account is not None:
        drop_privileges(account)
    if not os.access(config.work_dir, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(
            f"working directory {config.work_dir} is not writable for the agent's user; "
            f"run `chown -R {config.run_as} {config.work_dir}`"
        )
    os.chdir(config.work_dir)
    return prepared, extra


def _require_directory(path: Path) -> None:
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            return
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise ConfigError(
                f"working directory {path} cannot be read: {error.strerror}; start the agent as root"
            ) from error
    raise ConfigError(f"working directory {path} does not exist; create it with mode 0700")


def _system_uuid() -> str | None:
    program = shutil.which("dmidecode")
    if program is None:
        return None
    command = [program, "-s", "system-uuid"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout
