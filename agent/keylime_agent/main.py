"""keylime_agent: collects as root what only root can, drops privileges, then attests and takes payloads."""

import argparse
import asyncio
import base64
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from keylime.background import Supervised, accompanied
from keylime.config.loader import Settings, is_test_mode, load_settings
from keylime.daemon import attend, ignore_reloads_for_now, warn_of_restarts
from keylime.errors import ConfigError, KeylimeError
from keylime.hashes import HashAlgorithm
from keylime.health import Health
from keylime.http.client import Peer, peer_url
from keylime.http.server import Limits, Server
from keylime.identifiers import AgentId
from keylime.keylime_logging import setup as setup_logging
from keylime.messages.registrar import RegisterRequest
from keylime.messages.versions import AGENT_VERSIONS
from keylime.pki.certificates import load_or_create_rsa_key, public_key_text
from keylime.revocation.channel import RevocationSubscriber, endpoint
from keylime.secure_mount import Owner, SecureDirectory, ensure_secure_directory, release_secure_directory
from keylime.service_manager import ServiceManager
from keylime.tpm.device import Tpm, choose_tcti
from keylime_agent.actions import ActionRunner
from keylime_agent.attestation import Attestor, QuoteAlgorithms, TpmThread
from keylime_agent.config import AgentConfig, agent_config
from keylime_agent.evidence import BootLog, ImaList, boot_time
from keylime_agent.handled_revocations import HandledRevocations
from keylime_agent.handlers import AgentApi, any_client, unrouted
from keylime_agent.identity import resolve_agent_id
from keylime_agent.listener import ListenerIdentity, own_identity, trusted_clients
from keylime_agent.payload import Bootstrap, PayloadWorker
from keylime_agent.privileges import Account, drop_privileges, target_account
from keylime_agent.processes import child_environment
from keylime_agent.registration import Registration
from keylime_agent.revocation import RevocationHandler, incarnation
from keylime_agent.tpm_identity import TpmIdentity, load_tpm_identity, save_agent_data

log = logging.getLogger(__name__)

_LIMITS = Limits(max_body=8 << 20, max_connections=256, max_connections_per_address=64)
_REGISTRAR_TIMEOUT_S = 60.0
_DRAIN_S = 3.0
_RELOADED = frozenset({"trusted_client_ca"})
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROC_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was collected with the rights the agent was started with."""

    settings: Settings = field(repr=False)
    config: AgentConfig
    test_mode: bool
    ima: ImaList
    boot_log: BootLog
    trusted_clients: tuple[x509.Certificate, ...]
    secure: SecureDirectory
    system_uuid: str | None


@dataclass(frozen=True, slots=True)
class Machine:
    """Who the agent is on this machine, once the TPM has spoken."""

    agent_id: AgentId
    tpm: Tpm
    keys: TpmIdentity
    boottime: int
    payload_key: RSAPrivateKey
    listener: ListenerIdentity | None  # None: plain HTTP


def main() -> None:
    """The console script."""
    argparse.ArgumentParser(
        prog="keylime_agent",
        description="Attests this machine; configured by agent.conf and KEYLIME_AGENT_*. SIGHUP reloads "
        "trusted_client_ca and logging.conf.",
    ).parse_args()
    try:
        uvloop.run(_serve(dict(os.environ)))
    except KeylimeError as error:
        sys.stdout.flush()
        print(f"keylime_agent: error: {error}", file=sys.stderr)
        sys.exit(1)


async def _serve(environ: Mapping[str, str]) -> None:
    stop = _stop_on_signals()
    ignore_reloads_for_now()
    manager = ServiceManager.from_environment(environ)
    # Errors of the TPM stack reach the log as ours do, once and with the command's name.
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    prepared = _prepare(environ)
    async with AsyncExitStack() as stack:
        stack.callback(release_secure_directory, prepared.secure)
        stack.callback(prepared.ima.close)
        stack.callback(prepared.boot_log.close)
        machine = _meet_tpm(prepared, environ)
        stack.callback(machine.tpm.close)
        await Agent(prepared, machine, environ, manager).run(stop)
    log.info("agent stopped")


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _prepare(environ: Mapping[str, str]) -> Prepared:
    """Everything that may need root, then the change of user. Raises ConfigError."""
    settings = load_settings("agent", environ=environ)
    setup_logging("agent", environ)
    for warning in settings.warnings:
        log.warning("%s", warning)
    config = agent_config(settings, environ)
    if not config.work_dir.is_dir():
        raise ConfigError(f"working directory {config.work_dir} does not exist; create it with mode 0700")
    os.umask(0o077)
    account = target_account(config.run_as)
    ima, boot_log = ImaList(config.ima_path), BootLog(config.boot_log_path)
    ima.open()
    boot_log.open()
    prepared = Prepared(
        settings,
        config,
        is_test_mode(environ),
        ima,
        boot_log,
        trusted_clients(config.tls),
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


def _meet_tpm(prepared: Prepared, environ: Mapping[str, str]) -> Machine:
    """The TPM with its keys, and the id and certificates that follow. Raises ConfigError, TpmError."""
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
        boottime, keys = _boot_time(keys, config.data_path)
        payload_key = load_or_create_rsa_key(config.work_dir / "payload-private.pem", None)
        listener = None if config.tls is None else own_identity(config.tls, agent_id, config.contact_ip)
        return Machine(agent_id, tpm, keys, boottime, payload_key, listener)
    except BaseException:
        tpm.close()
        raise


def _boot_time(keys: TpmIdentity, data_path: Path | None) -> tuple[int, TpmIdentity]:
    """The boot time as it was first seen in this boot: verifiers take another one for another boot."""
    try:
        boot_id = _BOOT_ID.read_text().strip()
        now = boot_time(_PROC_STAT.read_text())
    except OSError as error:
        log.warning("the boot time cannot be read: %s", error)
        return 0, keys
    if keys.data.boot_id == boot_id and keys.data.boottime:
        return keys.data.boottime, keys
    data = msgspec.structs.replace(keys.data, boot_id=boot_id, boottime=now)
    save_agent_data(data, data_path)
    return now, replace(keys, data=data)


def _boot() -> bytes:
    """What names this boot of the machine; zeros where the kernel does not tell."""
    try:
        return uuid.UUID(_BOOT_ID.read_text().strip()).bytes
    except (OSError, ValueError):
        return bytes(16)


class Agent:
    """The running agent: its listener and its workers."""

    def __init__(
        self, prepared: Prepared, machine: Machine, environ: Mapping[str, str], manager: ServiceManager
    ) -> None:
        self._prepared = prepared
        self._config = prepared.config
        self._machine = machine
        self._environ = environ
        self._manager = manager
        self._health = Health()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tpm")
        self._tpm = TpmThread(machine.tpm, self._executor)
        environment = child_environment(machine.agent_id, self._config.work_dir, test_mode=prepared.test_mode)
        unzipped = prepared.secure.path / "unzipped"
        runner = ActionRunner(environment, self._config.work_dir, unzipped, self._config.actions)
        certificate = self._config.revocation_certificate or unzipped / "RevocationNotifier-cert.crt"
        who_am_i = partial(incarnation, machine.agent_id, unzipped, _boot())
        handled = HandledRevocations(self._config.work_dir / "handled_revocations")
        self._revocations = RevocationHandler(certificate, runner.run_all, who_am_i, handled)
        self._payloads = PayloadWorker(
            environment,
            prepared.secure.path,
            self._config.payload,
            self._measure,
            self._revocations.certificate_arrived,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`. Raises RegistrationRefused, and ConfigError when the port cannot be had."""
        listener = self._machine.listener
        async with AsyncExitStack() as stack:
            stack.callback(self._executor.shutdown)
            server = Server(
                self._api().routes(mutual_tls=listener is not None),
                limits=_LIMITS,
                is_admin=any_client,
                unrouted=unrouted,
                wrong_method=unrouted,
                versions=AGENT_VERSIONS,
            )
            context = None if listener is None else listener.context(self._prepared.trusted_clients)
            port = server.listen(self._config.ip, self._config.port, context)
            stack.push_async_callback(server.stop, _DRAIN_S)
            status = f"Listening on {peer_url(self._config.ip, port, tls=listener is not None)}"
            log.info("%s", status)
            workers = accompanied(*(worker.run() for worker in self._workers(stack)))
            await stack.enter_async_context(workers)
            await stack.enter_async_context(self._registering(stop))
            await attend(
                stop,
                reload=lambda: self._reload(server),
                is_alive=self._is_alive,
                manager=self._manager,
                status=status,
            )
            log.info("stopping")

    def _workers(self, stack: AsyncExitStack) -> list[Supervised]:
        workers = [
            Supervised("payload worker", self._payloads.run),
            Supervised("revocation worker", self._revocations.run),
        ]
        if self._config.publishers:
            addresses = [endpoint(*publisher) for publisher in self._config.publishers]
            subscriber = RevocationSubscriber(addresses)
            stack.callback(subscriber.close)
            workers.append(Supervised("revocation listener", partial(self._revocations.listen, subscriber)))
            log.info("waiting for revocation messages from %s", ", ".join(addresses))
        for number, worker in enumerate(workers):
            self._health.add(f"worker {number}", worker.problem, vital=True)
        return workers

    async def _is_alive(self) -> bool:
        return (await self._health.alive()).is_good

    @asynccontextmanager
    async def _registering(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Registers beside the block; sets `stop` and raises RegistrationRefused when that ends it all."""

        def ended(task: "asyncio.Task[None]") -> None:
            if not task.cancelled() and task.exception() is not None:
                stop.set()

        registration = asyncio.create_task(self._register())
        registration.add_done_callback(ended)
        try:
            yield
        finally:
            registration.cancel()
            await asyncio.gather(registration, return_exceptions=True)
        if not registration.cancelled():
            registration.result()

    def _reload(self, server: Server) -> None:
        """Takes up trusted_client_ca and logging.conf. Raises ConfigError, with nothing changed."""
        settings = load_settings("agent", environ=self._environ)
        config, listener = agent_config(settings, self._environ), self._machine.listener
        context = None
        if listener is not None and config.tls is not None:
            listener.check_unchanged()
            context = listener.context(trusted_clients(config.tls))
        setup_logging("agent", self._environ)
        if context is not None:
            server.renew(tls=context, max_body=_LIMITS.max_body)
        warn_of_restarts(self._prepared.settings, settings, _RELOADED)

    def _api(self) -> AgentApi:
        machine, algorithms = self._machine, self._config.algorithms
        pubkey_pem = public_key_text(machine.payload_key.public_key())
        quotes = QuoteAlgorithms(
            algorithms.hash_alg, machine.keys.ak_key.encryption_label, machine.keys.ak_key.scheme.label
        )
        attestor = Attestor(
            self._tpm,
            machine.keys.ak,
            quotes,
            pubkey_pem=pubkey_pem,
            ima=self._prepared.ima,
            boot_log=self._prepared.boot_log,
            boottime=machine.boottime,
        )
        bootstrap = Bootstrap(machine.agent_id, machine.payload_key, self._payloads.deliver)
        ak_handle = machine.tpm.tpm_handle(machine.keys.ak)
        return AgentApi(
            machine.agent_id, pubkey_pem, quotes, ak_handle, attestor, bootstrap, self._revocations.receive
        )

    async def _register(self) -> None:
        keys, config = self._machine.keys, self._config
        request = RegisterRequest(
            ek_tpm=_base64(keys.ek.tpm2b_public),
            aik_tpm=_base64(keys.ak.tpm2b_public),
            ekcert=keys.ek_certificates or None,
            ip=config.contact_ip,
            port=config.contact_port,
            mtls_cert="disabled"
            if self._machine.listener is None
            else self._machine.listener.certificate_pem,
        )
        url = peer_url(config.registrar_ip, config.registrar_port, tls=False)
        async with Peer(url, tls=None, timeout_s=_REGISTRAR_TIMEOUT_S) as peer:
            await Registration(peer, self._machine.agent_id, request, self._activate, config.backoff).run()

    async def _activate(self, id_object: bytes, secret: bytes) -> bytes:
        keys = self._machine.keys
        return await self._tpm.run(lambda tpm: tpm.activate_credential(keys.ek, keys.ak, id_object, secret))

    async def _measure(self, pcr: int, data: bytes) -> None:
        def extend(tpm: Tpm) -> None:
            tpm.extend_pcr(pcr, {bank: bank.digest(data) for bank in tpm.banks() if _is_computable(bank)})

        await self._tpm.run(extend)


def _is_computable(bank: HashAlgorithm) -> bool:
    try:
        bank.digest(b"")
    except ValueError:
        return False
    return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


if __name__ == "__main__":
    main()
