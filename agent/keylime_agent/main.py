"""keylime_agent: collects as root what only root can, drops privileges, then attests and takes payloads."""

from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack

from keylime.config.settings import Settings
from keylime.secure_mount import empty_secure_directory, unmount_secure_directory
from keylime_agent.assembly import Agent
from keylime_agent.checkup import examine
from keylime_agent.command import FORBIDDEN, AgentProgram, ProcessSurroundings
from keylime_agent.config import AgentConfig, agent_config, contact_remark
from keylime_agent.machine import meet_tpm
from keylime_agent.premises import Keys, Premises
from keylime_agent.preparation import Rights, prepare
from keylime_agent.privileges import target_account

__all__ = ["FORBIDDEN", "main"]


def _remarks(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    config = agent_config(settings, environ)
    target_account(config.run_as)
    remark = contact_remark(config)
    if remark is not None:
        yield remark


async def _work(here: ProcessSurroundings, stack: AsyncExitStack) -> None:
    def take(config: AgentConfig, rights: Rights) -> Premises:
        premises = Premises.take(config, rights, here.environ, stack)
        stack.callback(unmount_secure_directory, premises.secure)
        return premises

    prepared, premises = prepare(here.environ, stack, agent_config, take)
    machine = meet_tpm(prepared, here.environ)
    stack.callback(machine.tpm.close)
    keys = Keys.load(prepared.config, machine.agent_id)
    # An agent that cannot even start leaves what is there as it is.
    stack.callback(empty_secure_directory, premises.secure)
    await Agent(prepared, premises, machine, keys, here.environ, here.manager, here.stop).run()


main = AgentProgram(
    name="keylime_agent",
    description="Attests this machine; configured by agent.conf and KEYLIME_AGENT_*. SIGHUP reloads "
    "trusted_client_ca, a certificate for the same key, and logging.conf.",
    examination="TPM, logs, addresses and certificates",
    examine=examine,
    remarks=_remarks,
    work=_work,
).main


if __name__ == "__main__":
    main()
