"""The verifier at work: its parts, put together, begun and ended in order. No other module knows all."""

import asyncio
import functools
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from sqlalchemy.ext.asyncio import AsyncEngine

from keylime import keylime_logging
from keylime.background import Supervised, accompanied
from keylime.database.engine import DatabaseUnavailable, PoolSize, open_engine
from keylime.database.migrate import Migration, Schema, prepare_schema
from keylime.database.readiness import database_check
from keylime.health import Health
from keylime.http.probes import probe_routes
from keylime.http.server import Limits, Route, Server
from keylime.revocation.channel import RevocationPublisher
from keylime_verifier.agent_client import AgentClient
from keylime_verifier.agents import Agents
from keylime_verifier.api import Stored, api_routes, enrolment_rules
from keylime_verifier.changes import Changes, Topic
from keylime_verifier.config import VerifierConfig, load_config
from keylime_verifier.journal import Journal
from keylime_verifier.membership import Member, Membership
from keylime_verifier.notifier import (
    Carrier,
    Notifier,
    Persistence,
    agent_carrier,
    broadcast,
)
from keylime_verifier.openapi import openapi_route
from keylime_verifier.outbox import AGENT, WEBHOOK, ZEROMQ
from keylime_verifier.poller import Poller
from keylime_verifier.records import AgentRecord
from keylime_verifier.roster import Roster
from keylime_verifier.webhook import Webhook

log = logging.getLogger("keylime.verifier")

SCHEMA = Schema(Path(__file__).parent / "migrations", "keylime_verifier_schema", "keylime_verifier")
_MAX_CONCURRENT_POLLS = 500
_NOTIFICATION_LIMIT_S = 15.0  # for one attempt: receivers only have to put the message aside
# Together with the publisher's linger less than the five seconds that a stop may take.
_LONGEST_DRAIN_S = 1.5
_LAST_WRITES_S = 0.7
_LONGEST_LET_GO_S = 2.0
# A lease must not wait for connections that are busy with verdicts.
_LEASE_POOL = PoolSize(kept=1, overflow=2)


@dataclass(frozen=True, slots=True)
class Place:
    """Which of several equal processes on this machine this is; the first one runs the ZeroMQ broker."""

    number: int = 0
    count: int = 1


async def prepare_database(config: VerifierConfig, *, migrate: bool | None = None) -> Migration:
    """Brings the tables up to date, by default if the configuration says so.

    Raises ConfigError or DatabaseUnavailable.
    """
    engine = open_engine(config.database_url, config.database_pool)
    try:
        return await prepare_schema(
            engine, SCHEMA, migrate=config.auto_migrate if migrate is None else migrate
        )
    finally:
        await engine.dispose()


@dataclass(frozen=True, slots=True)
class Contexts:
    """What TLS is spoken with: as a server, to agents, and to the webhook if it is secure."""

    server: ssl.SSLContext
    agents: ssl.SSLContext
    webhook: ssl.SSLContext | None

    @classmethod
    def load(cls, config: VerifierConfig) -> Self:
        """The contexts of files as they are now. Raises ConfigError."""
        is_secure = config.webhook is not None and config.webhook.is_secure
        return cls(
            agents=config.tls.pinned_client_context(),
            server=config.tls.server_context(require_client=False),
            webhook=config.tls.client_context() if is_secure else None,
        )


@dataclass(slots=True)
class _Tls:
    """The contexts in use."""

    contexts: Contexts


@dataclass(frozen=True, slots=True)
class Verifier:
    """The verifier at work, on `port`."""

    port: int
    health: Health
    _config: VerifierConfig
    _server: Server
    _poller: Poller
    _webhook: Webhook | None
    _tls: _Tls

    async def is_alive(self) -> bool:
        """False when only a new start would help."""
        return (await self.health.alive()).is_good

    def reload(self, environ: Mapping[str, str]) -> None:
        """Takes up certificates, limit and log levels as they are now. Raises ConfigError, unchanged."""
        fresh = load_config(environ)
        # The webhook's address needs a restart.
        contexts = Contexts.load(replace(fresh, webhook=self._config.webhook))
        keylime_logging.setup("verifier", environ)
        self._server.renew(tls=contexts.server, max_body=fresh.max_upload)
        self._tls.contexts = contexts
        self._poller.reconnect()
        if self._webhook is not None:
            self._webhook.renew(contexts.webhook)


@asynccontextmanager
async def running(config: VerifierConfig, place: Place = Place()) -> AsyncIterator[Verifier]:
    """The verifier at work, from the first poll to the last write.

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
        tls = _Tls(Contexts.load(config))
        carriers, webhook = _open_carriers(config, broker, tls, stack)
        member = Member.new(config.verifier_id, broker)
        parts = _assemble(config, engine, lease_engine, member, carriers, tls)
        health = Health()
        health.add("database", database_check(engine, SCHEMA))
        routes = (*parts.routes, *probe_routes(health))
        server = Server([*routes, openapi_route(routes)], limits=Limits(max_body=config.max_upload))
        stack.push_async_callback(_leave, parts.membership)
        await parts.membership.join()
        stack.push_async_callback(_flush_at_last, parts.journal)
        stack.push_async_callback(parts.poller.close, drain_s)
        # No request is served before all agents are adopted: from here on nothing waits.
        await parts.roster.reconcile()
        loops = [Supervised(name, work) for name, work in parts.loops.items()]
        for name, loop in zip(parts.loops, loops, strict=True):
            health.add(name, loop.problem, vital=True)
        await stack.enter_async_context(accompanied(*(loop.run() for loop in loops)))
        shared = place.count > 1
        port = server.listen(config.ip, config.port, tls.contexts.server, reuse_port=shared)
        stack.push_async_callback(server.stop, drain_s)
        yield Verifier(port, health, config, server, parts.poller, webhook, tls)


def _open_carriers(
    config: VerifierConfig, broker: str | None, tls: _Tls, stack: AsyncExitStack
) -> tuple[dict[str, Carrier], Webhook | None]:
    """The enabled channels that have something to open, which `stack` closes; the webhook also by itself."""
    carriers: dict[str, Carrier] = {}
    webhook = None
    if broker is not None:
        publisher = RevocationPublisher(config.zmq_ip, config.zmq_port)
        stack.push_async_callback(publisher.close)
        carriers[ZEROMQ] = broadcast(publisher.publish)
    if config.webhook is not None:
        webhook = Webhook(config.webhook, tls.contexts.webhook, _attempt_limit_s(config))
        stack.push_async_callback(webhook.close)
        carriers[WEBHOOK] = broadcast(webhook.post)
    return carriers, webhook


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

    @property
    def loops(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What must always be running, in the order of its beginning."""
        return {
            "journal": self.journal.run,
            "notifier": self.notifier.run,
            "poller": self.poller.run,
            "roster": self.roster.run,
            "membership": self.membership.run,
            "changes": self.changes.run,
        }


def _assemble(
    config: VerifierConfig,
    engine: AsyncEngine,
    lease_engine: AsyncEngine,
    member: Member,
    carriers: dict[str, Carrier],
    tls: _Tls,
) -> _Parts:
    stored = Stored.open(config, engine, member)
    connect = functools.partial(_connect, config, tls)
    if AGENT in config.notifications:
        carriers = {**carriers, AGENT: agent_carrier(stored.agents.find, connect)}
    notifier = Notifier(stored.outbox, carriers, _persistence(config))
    journal = Journal(stored.agents, config.severities, config.notification_targets, notifier.wake)
    poller = Poller(
        connect=connect,
        build_reference=lambda record: stored.references.build(record.enrolment),
        read_v=stored.agents.read_v,
        journal=journal,
        cadence=config.cadence,
        severities=config.severities,
        max_concurrent=_MAX_CONCURRENT_POLLS,
    )
    roster = Roster(
        member.member_id,
        stored.agents,
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
    agents = Agents(
        stored.agents,
        stored.policies,
        stored.references,
        roster,
        journal,
        enrolment_rules(config, stored),
        config.cadence,
    )
    routes = api_routes(config, stored, agents, poller.forget_references)
    return _Parts(journal, notifier, poller, roster, membership, changes, routes)


def _connect(config: VerifierConfig, tls: _Tls, record: AgentRecord) -> AgentClient:
    enrolment, version = record.enrolment, record.progress.supported_version
    return AgentClient(
        enrolment.ip,
        enrolment.port,
        enrolment.mtls_cert,
        version,
        tls.contexts.agents,
        config.request_timeout_s,
    )


def _persistence(config: VerifierConfig) -> Persistence:
    return Persistence(
        retry_interval_s=config.cadence.retry_interval_s,
        attempt_limit_s=_attempt_limit_s(config),
        retention_s=config.revocation_retention_s,
        history_s=config.revocation_history_s,
    )


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
