"""An agent that attests by itself: its parts put together."""

import asyncio
import logging
import ssl
from collections.abc import Mapping
from contextlib import AsyncExitStack

from keylime.config.loader import load_settings
from keylime.keylime_logging import setup as setup_logging
from keylime.pki.agent_certificate import DISABLED
from keylime.service.background import SupervisedLoop, accompanied
from keylime.service.daemon import attend, log_reloaded, warn_of_restarts
from keylime.service.health import Health
from keylime.service.service_manager import ServiceManager
from keylime_agent.core import AgentCore
from keylime_agent.machine import Machine
from keylime_agent.preparation import Prepared
from keylime_agent.pushing.client import PushClient
from keylime_agent.pushing.config import PushConfig, push_config
from keylime_agent.pushing.evidence import EvidenceSource
from keylime_agent.pushing.pusher import Pusher

log = logging.getLogger("keylime_agent.main")


class PushAgent:
    """The running agent: it registers, and beside that attests."""

    def __init__(
        self,
        prepared: Prepared[PushConfig],
        verifier_tls: ssl.SSLContext,
        machine: Machine,
        environ: Mapping[str, str],
        manager: ServiceManager,
        stop: asyncio.Event,
    ) -> None:
        """`stop` ends it; it is set as well when the agent cannot go on."""
        self._prepared = prepared
        self._config = prepared.config
        self._verifier_tls = verifier_tls
        self._machine = machine
        self._environ = environ
        self._manager = manager
        self._stop = stop
        self._core = AgentCore(prepared, machine, stop, insists=True)
        self._health = Health()

    async def run(self) -> None:
        """Attests until `stop`. Raises TpmError when the TPM is lost, ConfigError."""
        async with AsyncExitStack() as stack:
            stack.callback(self._core.close)
            loop = SupervisedLoop("attestation", (await self._pusher(stack)).run)
            self._health.add("attestation", loop.problem, vital=True)
            status = f"Attesting to {', '.join(self._config.verifiers)}"
            log.info("%s", status)
            await stack.enter_async_context(accompanied(loop.run()))
            # Not before it: what is enrolled already can be attested while there is no registrar.
            await stack.enter_async_context(self._core.registering(self._register))
            await attend(
                self._stop,
                reload=self._reload,
                is_alive=self._is_alive,
                manager=self._manager,
                status=status,
            )
            log.info("stopping")
        self._core.require_tpm()

    async def _pusher(self, stack: AsyncExitStack) -> Pusher:
        prepared, config = self._prepared, self._config
        clients = [
            await stack.enter_async_context(
                PushClient(url, self._machine.agent_id, self._verifier_tls, config.names)
            )
            for url in config.verifiers
        ]
        source = EvidenceSource(
            self._core.tpm,
            self._machine.keys,
            config.algorithms.hash_alg,
            ima=prepared.ima,
            boot_log=prepared.boot_log,
            os_log=prepared.os_log,
            key_identifier=config.key_identifier,
            boot_log_version=config.boot_log_version,
        )
        return Pusher(clients, source, config.pacing, boottime=self._machine.boottime)

    async def _register(self) -> None:
        await self._core.register(DISABLED)

    async def _is_alive(self) -> bool:
        return (await self._health.alive()).is_good

    def _reload(self) -> None:
        """Takes up logging.conf. Raises ConfigError, with nothing changed."""
        settings = load_settings("agent", environ=self._environ)
        push_config(settings, self._environ)
        setup_logging("agent", self._environ)
        warn_of_restarts(self._prepared.settings, settings, ())
        log_reloaded()
