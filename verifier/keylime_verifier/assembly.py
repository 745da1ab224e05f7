"""The verifier at work: its parts, put together, begun and ended in order. No other module knows all."""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from keylime.database.engine import DatabaseUnavailable, PoolSize, open_engine
from keylime.database.migrate import Schema, prepare_schema
from keylime.http.server import Limits, Route, Server
from keylime.measured_boot.policies import load_policy_modules
from keylime.policy.measured_boot import built_in_policies, compile_measured_boot_policy
from keylime.revocation.channel import RevocationPublisher
from keylime_verifier.agent_client import AgentClient
from keylime_verifier.agents import Agents
from keylime_verifier.changes import Changes, Topic
from keylime_verifier.config import VerifierConfig
from keylime_verifier.enrolment import EnrolmentRules
from keylime_verifier.evidence_check import EvidenceRules
from keylime_verifier.handlers import AgentHandlers, version_routes
from keylime_verifier.journal import Journal
from keylime_verifier.membership import Member, Membership
from keylime_verifier.named_policies import (
    MEASURED_BOOT_KIND,
    RUNTIME_KIND,
    NamedPolicies,
    check_boot_policy,
    check_runtime_policy,
)
from keylime_verifier.notifier import (
    Carrier,
    Notifier,
    Persistence,
    agent_carrier,
    broadcast,
)
from keylime_verifier.openapi import openapi_route
from keylime_verifier.outbox import AGENT, WEBHOOK, ZEROMQ, Outbox
from keylime_verifier.policy_handlers import PolicyHandlers
from keylime_verifier.policy_store import PolicyStore
from keylime_verifier.poller import Poller
from keylime_verifier.records import AgentRecord
from keylime_verifier.references import References
from keylime_verifier.revocation_handlers import RevocationHandlers
from keylime_verifier.roster import Roster
from keylime_verifier.store import AgentStore
from keylime_verifier.verification_handlers import VerificationHandlers
from keylime_verifier.webhook import Webhook

log = logging.getLogger("keylime.verifier")

_SCHEMA = Schema(Path(__file__).parent / "migrations", "keylime_verifier_schema")
_MAX_CONCURRENT_POLLS = 500
_NOTIFICATION_LIMIT_S = 15.0  # for one attempt: receivers only have to put the message aside
# Together with the publisher's linger less than the five seconds that a stop may take.
_LONGEST_DRAIN_S = 1.5
_LAST_WRITES_S = 1.0
_LONGEST_LET_GO_S = 2.0
# A lease must not wait for connections that are busy with verdicts.
_LEASE_POOL = PoolSize(kept=1, overflow=2)


@dataclass(frozen=True, slots=True)
class Place:
    """Which of several equal processes on this machine this is; the first one runs the ZeroMQ broker."""

    number: int = 0
    count: int = 1


async def prepare_database(config: VerifierConfig) -> None:
    """Brings the tables up to date. Raises ConfigError or DatabaseUnavailable."""
    engine = open_engine(config.database_url, config.database_pool)
    try:
        await prepare_schema(engine, _SCHEMA, migrate=config.auto_migrate)
    finally:
        await engine.dispose()


@asynccontextmanager
async def running(config: VerifierConfig, place: Place = Place()) -> AsyncIterator[int]:
    """The verifier at work, from the first poll to the last write; yields the port it listens on.

    The tables must be prepared. Raises ConfigError or DatabaseUnavailable when it cannot start. What is begun
    last ends first: requests, polling, deliveries, the last batch of passes, the lease, the database.
    """
    drain_s = min(config.drain_timeout_s, _LONGEST_DRAIN_S)
    async with AsyncExitStack() as stack:
        engine = open_engine(config.database_url, config.database_pool)
        stack.push_async_callback(engine.dispose)
        lease_engine = open_engine(config.database_url, _LEASE_POOL)
        stack.push_async_callback(lease_engine.dispose)
        broker = config.broker if ZEROMQ in config.notifications and place.number == 0 else None
        carriers = _open_carriers(config, broker, stack)
        parts = _assemble(config, engine, lease_engine, Member.new(config.verifier_id, broker), carriers)
        server = Server(
            [*parts.routes, openapi_route(parts.routes)],
            limits=Limits(max_body=config.max_upload),
        )
        stack.push_async_callback(_leave, parts.membership)
        await parts.membership.join()
        stack.push_async_callback(_flush_at_last, parts.journal)
        stack.push_async_callback(parts.poller.close, drain_s)
        # No request is served before all agents are adopted: from here on nothing waits.
        await parts.roster.reconcile()
        stack.push_async_callback(_cancelled, _supervise("journal", parts.journal.run))
        stack.push_async_callback(_cancelled, _supervise("notifier", parts.notifier.run))
        stack.push_async_callback(_cancelled, _supervise("poller", parts.poller.run))
        stack.push_async_callback(_cancelled, _supervise("roster", parts.roster.run))
        stack.push_async_callback(_cancelled, _supervise("membership", parts.membership.run))
        stack.push_async_callback(_cancelled, _supervise("changes", parts.changes.run))
        port = server.listen(
            config.ip,
            config.port,
            config.tls.server_context(require_client=False),
            reuse_port=place.count > 1,
        )
        stack.push_async_callback(server.stop, drain_s)
        yield port


def _open_carriers(config: VerifierConfig, broker: str | None, stack: AsyncExitStack) -> dict[str, Carrier]:
    """The enabled channels that have something to open, which `stack` closes."""
    carriers: dict[str, Carrier] = {}
    if broker is not None:
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
    journal: Journal
    notifier: Notifier
    poller: Poller
    roster: Roster
    membership: Membership
    changes: Changes
    routes: tuple[Route, ...]


def _assemble(
    config: VerifierConfig,
    engine: AsyncEngine,
    lease_engine: AsyncEngine,
    member: Member,
    carriers: dict[str, Carrier],
) -> _Parts:
    store, policies = AgentStore(engine), PolicyStore(engine)
    outbox = Outbox(engine, member.member_id, member.broker, zeromq_enabled=ZEROMQ in config.notifications)
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
    roster = Roster(
        member.member_id,
        store,
        poller,
        journal,
        notifier,
        spread_s=config.cadence.quote_interval_s,
        let_go_limit_s=min(_LONGEST_LET_GO_S, config.lease_s / 4),
    )
    journal.on_refused = roster.lost

    def on_moves() -> None:
        roster.look()
        notifier.wake()

    membership = Membership(
        lease_engine, member, lease_s=config.lease_s, let_go=roster.without, on_moves=on_moves
    )
    changes = Changes(
        lease_engine,
        {Topic.AGENTS: roster.look, Topic.SHARDS: membership.look, Topic.REVOCATIONS: notifier.wake},
    )
    rules = EnrolmentRules(
        verifier_id=config.verifier_id,
        verifier_ip=config.ip,
        verifier_port=config.port or 8881,
        require_mtls=config.require_agent_mtls,
        require_policy_signatures=config.require_policy_signatures,
        compile_boot_policy=compile_boot_policy,
    )
    agents = Agents(store, policies, references, roster, journal, rules, config.cadence)
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
    return _Parts(journal, notifier, poller, roster, membership, changes, routes)


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


async def _leave(membership: Membership) -> None:
    try:
        async with asyncio.timeout(_LAST_WRITES_S):
            await membership.leave()
    except (TimeoutError, DatabaseUnavailable) as error:
        log.error("the lease was not given up, others wait for its end (%s %s)", type(error).__name__, error)


async def _flush_at_last(journal: Journal) -> None:
    try:
        async with asyncio.timeout(_LAST_WRITES_S):
            await journal.flush()
    except (TimeoutError, DatabaseUnavailable) as error:
        # Costs counters and some work in the next round, but no verdict.
        log.error("the passes of the last second are lost (%s %s)", type(error).__name__, error)
