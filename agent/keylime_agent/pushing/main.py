"""keylime_push_model_agent: collects as root what only root can, drops privileges, then attests by itself."""

import ssl
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack

from keylime.config.settings import Settings
from keylime_agent.command import AgentProgram, Flags, ProcessSurroundings
from keylime_agent.machine import meet_tpm
from keylime_agent.preparation import Rights, prepare
from keylime_agent.privileges import target_account
from keylime_agent.pushing.assembly import PushAgent
from keylime_agent.pushing.checkup import examine
from keylime_agent.pushing.config import PushConfig, push_config
from keylime_agent.pushing.flags import add_flags, environment_of, remarks_on


def _remarks(settings: Settings, environ: Mapping[str, str]) -> Iterable[str]:
    target_account(push_config(settings, environ).run_as)
    return ()


def _take(config: PushConfig, rights: Rights) -> ssl.SSLContext:
    return config.verifier_tls(rights.owners)


async def _work(here: ProcessSurroundings, stack: AsyncExitStack) -> None:
    prepared, verifier_tls = prepare(here.environ, stack, push_config, _take)
    machine = meet_tpm(prepared, here.environ)
    stack.callback(machine.tpm.close)
    await PushAgent(prepared, verifier_tls, machine, here.environ, here.manager, here.stop).run()


main = AgentProgram(
    name="keylime_push_model_agent",
    description="Attests this machine to a verifier that cannot reach it, and opens no port; configured by "
    "agent.conf and KEYLIME_AGENT_*. SIGHUP reloads logging.conf.",
    examination="TPM, logs, registrar, verifiers and their CA",
    examine=examine,
    remarks=_remarks,
    work=_work,
    flags=Flags(add_flags, environment_of, remarks_on),
).main


if __name__ == "__main__":
    main()
