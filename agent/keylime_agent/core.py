"""What every agent does, however it is asked: its TPM's thread, its registration, the end of both."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from keylime.errors import TpmError
from keylime.http.client import Peer
from keylime.http.replies import peer_url
from keylime.messages.registrar import RegisterRequest
from keylime.pki.server_names import NameCheck
from keylime_agent.machine import Machine
from keylime_agent.machine_config import MachineConfig
from keylime_agent.preparation import Prepared
from keylime_agent.registration import Registrant
from keylime_agent.tpm_recovery import RecoveringTpmThread

_REGISTRAR_TIMEOUT_S = 60.0


class AgentCore:
    """The machine's part of a running agent."""

    def __init__(
        self,
        prepared: Prepared[MachineConfig],
        machine: Machine,
        stop: asyncio.Event,
        *,
        insists: bool = False,
    ) -> None:
        """`stop` is set when the agent cannot go on. If it `insists`, refusals are no end."""
        self._prepared = prepared
        self._config = prepared.config
        self._machine = machine
        self._stop = stop
        self._insists = insists
        self._lost_tpm: TpmError | None = None
        self._turn_to_register = asyncio.Lock()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tpm")
        self.tpm = RecoveringTpmThread(machine.tpm, self._executor, self._give_up)

    def close(self) -> None:
        """Ends the TPM's thread."""
        self._executor.shutdown()

    def require_tpm(self) -> None:
        """Raises TpmError if that is why the agent stopped."""
        if self._lost_tpm is not None:
            raise self._lost_tpm

    async def register(self, certificate: str) -> None:
        """Comes back registered with `certificate` to call the agent by, and active. Raises as Registrant."""
        async with self._turn_to_register:  # what is told last is what stays
            await self._register_in_turn(certificate)

    @asynccontextmanager
    async def registering(self, register: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
        """Registers beside the block; stops the agent and raises RegistrationRefused when it is refused."""

        def ended(task: "asyncio.Task[None]") -> None:
            if not task.cancelled() and task.exception() is not None:
                self._stop.set()

        registration = asyncio.create_task(register())
        registration.add_done_callback(ended)
        try:
            yield
        finally:
            registration.cancel()
            await asyncio.gather(registration, return_exceptions=True)
        if not registration.cancelled():
            registration.result()

    def _give_up(self, error: TpmError) -> None:
        self._lost_tpm = error
        self._stop.set()

    async def _register_in_turn(self, certificate: str) -> None:
        machine, keys, config = self._machine, self._machine.keys, self._config
        request = RegisterRequest(
            ek_tpm=_base64(keys.ek.tpm2b_public),
            aik_tpm=_base64(keys.ak.tpm2b_public),
            ekcert=keys.ek_certificates or None,
            ip=config.contact_ip,
            port=config.contact_port,
            mtls_cert=certificate,
        )
        tls = self._prepared.registrar
        url = peer_url(config.registrar_ip, config.registrar_port, tls=tls is not None)
        names = NameCheck.WARN if config.registrar_tls is None else config.registrar_tls.names
        async with Peer(url, tls=tls, names=names, timeout_s=_REGISTRAR_TIMEOUT_S) as peer:
            registrant = Registrant(
                peer,
                machine.agent_id,
                request,
                self._activate,
                config.backoff,
                device=machine.device,
                insists=self._insists,
            )
            await registrant.run()

    async def _activate(self, id_object: bytes, secret: bytes) -> bytes:
        keys = self._machine.keys
        return await self.tpm.run(lambda tpm: tpm.activate_credential(keys.ek, keys.ak, id_object, secret))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
