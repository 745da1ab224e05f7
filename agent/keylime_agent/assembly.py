"""An agent that is polled: its parts put together, from the first registration to the last answer."""

import asyncio
import logging
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial

from keylime.config.loader import load_settings
from keylime.hashes import HashAlgorithm
from keylime.http.replies import peer_url
from keylime.http.server import RoleRule, Server, ServerLimits
from keylime.keylime_logging import setup as setup_logging
from keylime.messages.versions import AGENT_VERSIONS
from keylime.pki.agent_certificate import DISABLED
from keylime.pki.certificates import public_key_text
from keylime.revocation.channel import RevocationSubscriber
from keylime.revocation.publication import endpoint
from keylime.service.background import SupervisedLoop, accompanied
from keylime.service.daemon import attend, log_reloaded, warn_of_restarts
from keylime.service.health import Health
from keylime.service.service_manager import ServiceManager
from keylime.tpm.device import Tpm
from keylime_agent.actions import ActionRunner
from keylime_agent.attestation import Attestor
from keylime_agent.certificate_renewal import CertificateRenewal
from keylime_agent.config import AgentConfig, agent_config
from keylime_agent.core import AgentCore
from keylime_agent.handled_revocations import HandledRevocations
from keylime_agent.handlers import AgentRoutes, any_client, unrouted
from keylime_agent.listener import trusted_clients
from keylime_agent.machine import BOOT_ID, Machine
from keylime_agent.payload import Bootstrap, PayloadWorker
from keylime_agent.premises import Keys, Premises
from keylime_agent.preparation import Prepared
from keylime_agent.processes import child_environment
from keylime_agent.quoting import QuoteAlgorithms
from keylime_agent.revocation import RevocationHandler, incarnation

log = logging.getLogger("keylime_agent.main")
_LIMITS = ServerLimits(max_body=8 << 20, max_connections=256, max_connections_per_address=64)
_DRAIN_S = 3.0
_RELOADED = frozenset({"trusted_client_ca"})


class Agent:
    """The running agent: its listener and its workers."""

    def __init__(
        self,
        prepared: Prepared[AgentConfig],
        premises: Premises,
        machine: Machine,
        keys: Keys,
        environ: Mapping[str, str],
        manager: ServiceManager,
        stop: asyncio.Event,
    ) -> None:
        """`stop` ends it; it is set as well when the agent cannot go on."""
        self._prepared = prepared
        self._premises = premises
        self._config = prepared.config
        self._machine = machine
        self._keys = keys
        self._environ = environ
        self._manager = manager
        self._stop = stop
        self._health = Health()
        self._renewal: CertificateRenewal | None = None
        self._core = AgentCore(prepared, machine, stop)
        environment = child_environment(machine.agent_id, self._config.work_dir, test_mode=prepared.test_mode)
        unzipped = premises.secure.path / "unzipped"
        runner = ActionRunner(environment, self._config.work_dir, unzipped, self._config.actions)
        certificate = self._config.revocation_certificate or unzipped / "RevocationNotifier-cert.crt"
        who_am_i = partial(incarnation, machine.agent_id, unzipped, _boot())
        handled = HandledRevocations(self._config.work_dir / "handled_revocations")
        self._revocations = RevocationHandler(certificate, runner.run_all, who_am_i, handled)
        self._payloads = PayloadWorker(
            environment,
            premises.secure.path,
            self._config.payload,
            self._measure,
            self._revocations.certificate_arrived,
        )

    async def run(self) -> None:
        """Serve until `stop`. Raises RefusedByRegistrar, TpmError when the TPM is lost, ConfigError."""
        listener = self._keys.listener
        async with AsyncExitStack() as stack:
            stack.callback(self._core.close)
            server = Server(
                self._api().routes(mutual_tls=listener is not None),
                limits=_LIMITS,
                is_admin=RoleRule(any_client, require_role=self._config.require_admin_role, section="agent"),
                unrouted=unrouted,
                wrong_method=unrouted,
                versions=AGENT_VERSIONS,
            )
            context = None if listener is None else listener.context(self._premises.trusted_clients)
            port = server.listen_on(self._premises.port, context)
            if listener is not None:
                self._renewal = CertificateRenewal(
                    listener,
                    self._premises.trusted_clients,
                    serve=lambda context: server.renew(tls=context, max_body=_LIMITS.max_body),
                    register=self._register,
                )
            stack.push_async_callback(server.stop, _DRAIN_S)
            status = f"Listening on {peer_url(self._config.ip, port, tls=listener is not None)}"
            log.info("%s", status)
            workers = accompanied(*(worker.run() for worker in self._workers(stack)))
            await stack.enter_async_context(workers)
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

    def _workers(self, stack: AsyncExitStack) -> list[SupervisedLoop]:
        workers = [
            SupervisedLoop("payload worker", self._payloads.run),
            SupervisedLoop("revocation worker", self._revocations.run),
        ]
        if self._renewal is not None:
            workers.append(SupervisedLoop("certificate renewal", self._renewal.run))
            workers.append(SupervisedLoop("renewed registration", self._renewal.tell))
        if self._config.publishers:
            addresses = [endpoint(*publisher) for publisher in self._config.publishers]
            subscriber = RevocationSubscriber(addresses)
            stack.callback(subscriber.close)
            workers.append(
                SupervisedLoop("revocation listener", partial(self._revocations.listen, subscriber))
            )
            log.info("waiting for revocation messages from %s", ", ".join(addresses))
        for number, worker in enumerate(workers):
            self._health.add(f"worker {number}", worker.problem, vital=True)
        return workers

    async def _is_alive(self) -> bool:
        return (await self._health.alive()).is_good

    def _reload(self) -> None:
        """Takes up trusted_client_ca, another certificate for the agent's key, and logging.conf.

        Raises ConfigError, with nothing changed.
        """
        settings = load_settings("agent", environ=self._environ)
        config, take_up = agent_config(settings, self._environ), None
        if self._renewal is not None and config.tls is not None:
            take_up = self._renewal.reload(trusted_clients(config.tls))
        setup_logging("agent", self._environ)
        if take_up is not None:
            take_up()
        warn_of_restarts(self._prepared.settings, settings, _RELOADED)
        log_reloaded()

    def _api(self) -> AgentRoutes:
        machine, algorithms = self._machine, self._config.algorithms
        pubkey_pem = public_key_text(self._keys.payload_key.public_key())
        quotes = QuoteAlgorithms(
            algorithms.hash_alg, machine.keys.ak_key.encryption_label, machine.keys.ak_key.scheme.label
        )
        attestor = Attestor(
            self._core.tpm,
            machine.keys.ak,
            quotes,
            pubkey_pem=pubkey_pem,
            ima=self._prepared.ima,
            boot_log=self._prepared.boot_log,
            os_log=self._prepared.os_log,
            boottime=machine.boottime,
        )
        bootstrap = Bootstrap(machine.agent_id, self._keys.payload_key, self._payloads.deliver)
        ak_handle = machine.tpm.tpm_handle(machine.keys.ak)
        return AgentRoutes(
            machine.agent_id, pubkey_pem, quotes, ak_handle, attestor, bootstrap, self._revocations.receive
        )

    async def _register(self) -> None:
        identity = None if self._renewal is None else self._renewal.identity
        await self._core.register(DISABLED if identity is None else identity.certificate_pem)

    async def _measure(self, pcr: int, data: bytes) -> None:
        def extend(tpm: Tpm) -> None:
            tpm.extend_pcr(pcr, {bank: bank.digest(data) for bank in tpm.banks() if _is_computable(bank)})

        await self._core.tpm.run(extend)


def _boot() -> bytes:
    """What names this boot of the machine; zeros where the kernel does not tell."""
    try:
        return uuid.UUID(BOOT_ID.read_text().strip()).bytes
    except (OSError, ValueError):
        return bytes(16)


def _is_computable(bank: HashAlgorithm) -> bool:
    try:
        bank.digest(b"")
    except ValueError:
        return False
    return True
