"""What is collected with the rights that the agent was started with, before it gives them up."""

import logging
import os
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from keylime.config.loader import load_settings
from keylime.config.settings import Settings, is_test_mode
from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime.http.server import bound_port
from keylime.keylime_logging import log_sources
from keylime.keylime_logging import setup as setup_logging
from keylime.pki.library_warnings import ignore_library_warnings
from keylime.safe_paths import Owners, require_safe_directory, require_safe_file, require_safe_store
from keylime.secure_mount import (
    Owner,
    SecureDirectory,
    ensure_secure_directory,
)
from keylime.service.core_dumps import forbid_core_dumps
from keylime_agent.config import AgentConfig, agent_config, contact_remark
from keylime_agent.evidence import BootLog, LogFile
from keylime_agent.ima_list import ImaList
from keylime_agent.listener import trusted_clients
from keylime_agent.os_log import OsLog
from keylime_agent.privileges import Account, drop_privileges, target_account
from keylime_agent.sole_instance import sole_agent

log = logging.getLogger("keylime_agent.main")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was collected with the rights the agent was started with."""

    settings: Settings = field(repr=False)
    config: AgentConfig
    test_mode: bool
    port: Sequence[socket.socket]  # bound, not yet listening
    ima: ImaList
    boot_log: BootLog
    os_log: OsLog
    trusted_clients: tuple[x509.Certificate, ...]
    registrar: ssl.SSLContext | None  # None: plain HTTP
    secure: SecureDirectory
    system_uuid: str | None


def prepare(environ: Mapping[str, str], stack: AsyncExitStack) -> Prepared:
    """Everything that may need root, then the change of user. Raises ConfigError.

    The working directory and the port are taken first, and given back by `stack`: beside another agent
    nothing is written, emptied or flushed.
    """
    settings = load_settings("agent", environ=environ)
    setup_logging("agent", environ)
    log_sources(settings)
    for warning in settings.warnings:
        log.warning("%s", warning)
    config = agent_config(settings, environ)
    if config.algorithms.hash_alg is HashAlgorithm.SHA1:
        log.warning("[agent] tpm_hash_alg = sha1: such quotes are weak and refused by default; use sha256")
    remark = contact_remark(config)
    if remark is not None:
        log.warning("%s", remark)
    _require_directory(config.work_dir)
    os.umask(0o077)
    forbid_core_dumps()
    ignore_library_warnings()
    account = target_account(config.run_as)
    owners = Owners.of_service() if account is None else Owners.of_service((account.uid, account.gid))
    _require_safe_places(config, owners)
    stack.enter_context(sole_agent(config.work_dir))
    port = stack.enter_context(bound_port(config.ip, config.port))
    ima, boot_log = ImaList(LogFile(config.ima_path)), BootLog(config.boot_log_path)
    os_log = OsLog(config.os_log_path)
    ima.open()
    boot_log.open()
    os_log.open()
    prepared = Prepared(
        settings,
        config,
        is_test_mode(environ),
        port,
        ima,
        boot_log,
        os_log,
        trusted_clients(config.tls, owners),
        None if config.registrar_tls is None else config.registrar_tls.context(owners),
        _secure_directory(config, account, environ),
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
    return prepared


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


def _require_safe_places(config: AgentConfig, owners: Owners) -> None:
    """Raises ConfigError when others than `owners` may change what the agent trusts or runs."""
    require_safe_directory(config.work_dir, owners)
    for path in (config.data_path, config.revocation_certificate):
        if path is not None:
            require_safe_file(path, owners)
    try:
        require_safe_store(config.work_dir / config.actions.directory, owners)
    except ConfigError as error:
        raise ConfigError(f"[agent] revocation_actions_dir: {error}") from error


def _secure_directory(
    config: AgentConfig, account: Account | None, environ: Mapping[str, str]
) -> SecureDirectory:
    owner = None if account is None else Owner(account.uid, account.gid)
    secure = ensure_secure_directory(config.work_dir, config.secure_size, owner=owner, environ=environ)
    log.info("secure directory: %s", secure.path)
    return secure


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
