"""The verifier's start and end: the only place that knows all its parts."""

import argparse
import asyncio
import functools
import logging
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from keylime import keylime_logging
from keylime.database.engine import DatabaseUnavailable, open_engine
from keylime.database.migrate import Schema, prepare_schema
from keylime.errors import ConfigError, KeylimeError
from keylime.http.server import Limits, Route, Server
from keylime.measured_boot.policies import load_policy_modules
from keylime.messages.versions import CURRENT_VERSION, SUPPORTED_VERSIONS
from keylime.pki.authority import ensure_service_certificates, server_names
from keylime.policy.measured_boot import built_in_policies, compile_measured_boot_policy
from keylime.revocation.channel import RevocationPublisher
from keylime_verifier.agent_client import AgentClient
from keylime_verifier.agents import Agents
from keylime_verifier.config import VerifierConfig, load_config
from keylime_verifier.enrolment import EnrolmentRules
from keylime_verifier.evidence_check import EvidenceRules
from keylime_verifier.handlers import AgentHandlers, version_routes
from keylime_verifier.journal import Journal
from keylime_verifier.lifecycle import POLLED_STATES
from keylime_verifier.named_policies import (
    MEASURED_BOOT_KIND,
    RUNTIME_KIND,
    NamedPolicies,
    check_boot_policy,
    check_runtime_policy,
)
from keylime_verifier.notifier import Carrier, Notifier, Persistence, agent_carrier, broadcast
from keylime_verifier.openapi import openapi_route
from keylime_verifier.outbox import AGENT, WEBHOOK, ZEROMQ, Outbox
from keylime_verifier.policy_handlers import PolicyHandlers
from keylime_verifier.policy_store import PolicyStore
from keylime_verifier.poller import Poller
from keylime_verifier.records import AgentRecord
from keylime_verifier.references import References
from keylime_verifier.revocation_handlers import RevocationHandlers
from keylime_verifier.store import AgentStore
from keylime_verifier.verification_handlers import VerificationHandlers
from keylime_verifier.webhook import Webhook

log = logging.getLogger("keylime.verifier")

_SCHEMA = Schema(Path(__file__).parent / "migrations", "keylime_verifier_schema")
_MAX_CONCURRENT_POLLS = 500
_NOTIFICATION_LIMIT_S = 15.0  # for one attempt: receivers only have to put the message aside
# Together with the publisher's linger less than the five seconds that a stop may take.
_LONGEST_DRAIN_S = 1.5
_LAST_FLUSH_S = 1.0


def main() -> None:
    """Runs until SIGTERM or SIGINT. Exit status: 0 after a clean stop, 1 when it cannot start."""
    _parse_arguments()
    try:
        keylime_logging.setup("verifier", os.environ)
        config = load_config(os.environ)
        for warning in config.warnings:
            log.warning("%s", warning)
        _prepare(config)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config))
    except KeylimeError as error:
        sys.exit(f"keylime_verifier: error: {error}")


def _parse_arguments() -> None:
    parser = argparse.ArgumentParser(
        prog="keylime_verifier",
        description="Attests machines continuously and tells the others when one falls from grace. "
        "Configured by verifier.conf, verifier.conf.d/ and KEYLIME_VERIFIER_* variables.",
    )
    parser.parse_args()


def _prepare(config: VerifierConfig) -> None:
    """What must exist before the first request: schema, CA and certificates."""
    log.info("Starting Keylime verifier in PULL mode...")
    log.info("Current API version: %s", CURRENT_VERSION)
    log.info("Other supported API versions: %s", ", ".join(SUPPORTED_VERSIONS[:-1]))
    os.umask(0o077)
    try:
        config.work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"{config.work_dir} cannot be made: {error.strerror}") from error
    if config.tls.generate:
        _ensure_certificates(config)


def _ensure_certificates(config: VerifierConfig) -> None:
    server, client = config.tls.server, config.tls.client
    made = ensure_service_certificates(
        config.tls.directory,
        config.ca.password,
        config.ca.subject,
        server_sans=server_names(config.ip, config.server_names),
        client=True,
        server_key_password=None if server is None else server.key_password,
        client_key_password=None if client is None else client.key_password,
    )
    if made:
        log.info("Created in %s: %s", config.tls.directory, ", ".join(made))


async def _serve(config: VerifierConfig) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(config) as port:
        log.info("Listening on %s:%d (HTTPS)", config.ip, port)
        await stop.wait()
        log.info("Stopping")


@asynccontextmanager
async def running(config: VerifierConfig) -> AsyncIterator[int]:
    """The verifier at work, from the first poll to the last write; yields the port it listens on.

    Raises ConfigError or DatabaseUnavailable when it cannot start. What is begun last ends first: requests,
    polling, deliveries, the last batch of passes, the database.
    """
    drain_s = min(config.drain_timeout_s, _LONGEST_DRAIN_S)
    async with AsyncExitStack() as stack:
        engine = open_engine(config.database_url, config.database_pool)
        stack.push_async_callback(engine.dispose)
        await prepare_schema(engine, _SCHEMA, migrate=config.auto_migrate)
        carriers = _open_carriers(config, stack)
        outbox = Outbox(engine)
        parts = _assemble(config, engine, outbox, carriers)
        server = Server(
            [*parts.routes, openapi_route(parts.routes)],
            limits=Limits(max_body=config.max_upload),
        )
        records = await parts.store.load(config.verifier_id, POLLED_STATES)
        # No request is served before all agents are adopted: from here on nothing waits.
        port = server.listen(config.ip, config.port, config.tls.server_context(require_client=False))
        stack.push_async_callback(_flush_at_last, parts.journal)
        stack.push_async_callback(_cancelled, _supervise("journal", parts.journal.run))
        stack.push_async_callback(_cancelled, _supervise("notifier", parts.notifier.run))
        stack.push_async_callback(parts.poller.close, drain_s)
        stack.push_async_callback(_cancelled, _supervise("poller", parts.poller.run))
        stack.push_async_callback(server.stop, drain_s)
        for record in records:
            parts.poller.adopt(record, delay_s=random.uniform(0, config.cadence.quote_interval_s))  # noqa: S311
        yield port


def _open_carriers(config: VerifierConfig, stack: AsyncExitStack) -> dict[str, Carrier]:
    """The enabled channels that have something to open, which `stack` closes."""
    carriers: dict[str, Carrier] = {}
    if ZEROMQ in config.notifications:
        publisher = RevocationPublisher(config.zmq_ip, config.zmq_port)
        stack.push_async_callback(publisher.close)
        carriers[ZEROMQ] = broadcast(publisher.publish)
    if config.webhook is not None:
        tls = config.tls.client_context() if config.webhook.is_secure else None
        webhook = Webhook(config.webhook, tls, _attempt_limit_s(config))
        stack.push_async_callback(webhook.close)
        carriers[WEBHOOK] = broadcast(webhook.post)
    return carriers


def _attempt_limit_s(config: VerifierConfig) -> float:
    return min(config.request_timeout_s, _NOTIFICATION_LIMIT_S)


@dataclass(frozen=True, slots=True)
class _Parts:
    store: AgentStore
    journal: Journal
    notifier: Notifier
    poller: Poller
    routes: tuple[Route, ...]


def _assemble(
    config: VerifierConfig, engine: AsyncEngine, outbox: Outbox, carriers: dict[str, Carrier]
) -> _Parts:
    store, policies = AgentStore(engine), PolicyStore(engine)
    registry = built_in_policies()
    load_policy_modules(config.boot_policy_imports, registry)
    compile_boot_policy = functools.partial(
        compile_measured_boot_policy, policy_name=config.boot_policy_name, registry=registry
    )
    references = References(
        policies,
        compile_boot_policy,
        ignore_tomtou=config.ignore_tomtou,
        evaluate_boot_always=config.evaluate_boot_always,
    )
    tls = config.tls.pinned_client_context()

    def connect(record: AgentRecord) -> AgentClient:
        enrolment, version = record.enrolment, record.progress.supported_version
        return AgentClient(
            enrolment.ip, enrolment.port, enrolment.mtls_cert, version, tls, config.request_timeout_s
        )

    if AGENT in config.notifications:
        carriers = {**carriers, AGENT: agent_carrier(store.find, connect)}
    persistence = Persistence(
        retry_interval_s=config.cadence.retry_interval_s,
        attempt_limit_s=_attempt_limit_s(config),
        retention_s=config.revocation_retention_s,
        history_s=config.revocation_history_s,
    )
    notifier = Notifier(outbox, carriers, persistence)
    journal = Journal(store, config.severities, config.notification_targets, notifier.wake)
    poller = Poller(
        connect=connect,
        build_reference=lambda record: references.build(record.enrolment),
        read_v=store.read_v,
        journal=journal,
        cadence=config.cadence,
        severities=config.severities,
        max_concurrent=_MAX_CONCURRENT_POLLS,
    )
    rules = EnrolmentRules(
        verifier_id=config.verifier_id,
        verifier_ip=config.ip,
        verifier_port=config.port or 8881,
        require_mtls=config.require_agent_mtls,
        require_policy_signatures=config.require_policy_signatures,
        compile_boot_policy=compile_boot_policy,
    )
    agents = Agents(store, policies, references, poller, journal, rules, config.cadence)
    routes = (
        *version_routes(),
        *AgentHandlers(agents).routes(),
        *PolicyHandlers(
            NamedPolicies(
                engine,
                RUNTIME_KIND,
                functools.partial(check_runtime_policy, signature_required=config.require_policy_signatures),
                poller.forget_references,
                refuse_older=config.require_policy_signatures,
            ),
            NamedPolicies(
                engine,
                MEASURED_BOOT_KIND,
                functools.partial(check_boot_policy, compile_policy=compile_boot_policy),
                poller.forget_references,
            ),
        ).routes(),
        *VerificationHandlers(
            store.ak_tpm_of,
            EvidenceRules(compile_boot_policy, config.ignore_tomtou),
            max_upload=config.max_upload,
        ).routes(),
        *RevocationHandlers(outbox).routes(),
    )
    return _Parts(store, journal, notifier, poller, routes)


def _supervise(name: str, work: Callable[[], Awaitable[None]]) -> "asyncio.Task[None]":
    return asyncio.create_task(_supervised(name, work))


async def _supervised(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Runs one of the verifier's loops, and starts it again should it ever end by a defect."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("the %s ended because of a defect; starting it again", name)
        await asyncio.sleep(1)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _flush_at_last(journal: Journal) -> None:
    try:
        async with asyncio.timeout(_LAST_FLUSH_S):
            await journal.flush()
    except (TimeoutError, DatabaseUnavailable) as error:
        # Costs counters and some work in the next round, but no verdict.
        log.error("the passes of the last second are lost (%s %s)", type(error).__name__, error)
