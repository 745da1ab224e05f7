"""Who the agent is on this machine, once the TPM has spoken."""

import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from keylime.errors import ConfigError
from keylime.identifiers import AgentId
from keylime.tpm.device import Tpm, choose_tcti
from keylime_agent.device_identity import DeviceIdentity, load_device_identity
from keylime_agent.evidence import boot_time
from keylime_agent.identity import resolve_agent_id
from keylime_agent.machine_config import MachineConfig
from keylime_agent.preparation import Prepared
from keylime_agent.tpm_identity import TpmIdentity, load_tpm_identity, save_agent_data

log = logging.getLogger("keylime_agent.main")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROC_STAT = Path("/proc/stat")
_CLEARLY_LATER_S = 30  # verifiers take some seconds for a clock that was set


@dataclass(frozen=True, slots=True)
class Machine:
    """Who the agent is on this machine, once the TPM has spoken."""

    agent_id: AgentId
    tpm: Tpm
    keys: TpmIdentity
    device: DeviceIdentity | None  # None: registers without
    boottime: int


def meet_tpm(prepared: Prepared[MachineConfig], environ: Mapping[str, str]) -> Machine:
    """The TPM with its keys, and the id that follows. Raises ConfigError, TpmError."""
    config = prepared.config
    tpm = Tpm.open(choose_tcti(environ), endorsement_auth=config.endorsement_auth)
    try:
        maker = tpm.properties()
        log.info("TPM of %s (%s)", maker.manufacturer, maker.vendor)
        if config.algorithms.hash_alg not in tpm.banks():
            raise ConfigError(
                f"[agent] tpm_hash_alg = {config.algorithms.hash_alg.label}: the TPM has no such PCR bank, "
                f"only {', '.join(sorted(bank.label for bank in tpm.banks()))}"
            )
        keys = load_tpm_identity(tpm, config.algorithms, config.ek_handle, config.data_path)
        agent_id = resolve_agent_id(
            config.uuid,
            ek_pem=keys.ek_key.pem,
            environ=environ,
            hostname=socket.getfqdn,
            system_uuid=prepared.system_uuid,
        )
        log.info("Agent UUID: %s", agent_id)
        if config.uuid == "generate":
            log.info("the id is new at every start; set [agent] uuid to keep one")
        device = (
            None
            if config.device_identity is None
            else load_device_identity(tpm, keys.ak, agent_id, config.device_identity)
        )
        boottime, keys = _boot_time(keys, config.data_path)
        return Machine(agent_id, tpm, keys, device, boottime)
    except BaseException:
        tpm.close()
        raise


def _boot_time(keys: TpmIdentity, data_path: Path | None) -> tuple[int, TpmIdentity]:
    """The boot time as it was first seen in this boot: verifiers take another one for another boot."""
    try:
        boot_id = BOOT_ID.read_text().strip()
        now = boot_time(_PROC_STAT.read_text())
    except OSError as error:
        log.warning("the boot time cannot be read: %s", error)
        return 0, keys
    if keys.data.boot_id == boot_id and keys.data.boottime:
        return keys.data.boottime, keys
    now = later_boot(now, keys.data.boottime)
    data = msgspec.structs.replace(keys.data, boot_id=boot_id, boottime=now)
    save_agent_data(data, data_path)
    return now, replace(keys, data=data)


def later_boot(boottime: int, before: int) -> int:
    """When a boot was, by a clock that may have been behind: after the one `before` (0: there was none).

    Machines without a battery for their clock seem to boot at the same moment each time, and verifiers tell
    boots apart by their times.
    """
    return max(boottime, before + _CLEARLY_LATER_S) if before else boottime
