"""The verifier at work: its parts, put together, begun and ended in order. No other module knows all."""

import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from keylime import keylime_logging
from keylime.database.clock import DatabaseClock
from keylime.database.engine import PoolSize
from keylime.database.readiness import add_database_checks
from keylime.database.servers import Sessions
from keylime.database.transactions import Database, open_database
from keylime.http.server import Server
from keylime.pki.tls import TlsFiles
from keylime.service.background import supervised
from keylime.service.certificates import CertificateKeeper, kept_certificates
from keylime.service.health import Health
from keylime.service.surroundings import watched_surroundings
from keylime_verifier.agents.deliveries import ZEROMQ
from keylime_verifier.api.event_streams import EventStreams
from keylime_verifier.api.routes import Repositories
from keylime_verifier.assembly.answering import evidence_judges, verifier_server
from keylime_verifier.assembly.attesting import Attesting, attesting, connect
from keylime_verifier.assembly.dividing import Dividing, dividing
from keylime_verifier.assembly.followers import followers
from keylime_verifier.assembly.measuring import measuring
from keylime_verifier.assembly.pushing import Pushing, pushing
from keylime_verifier.assembly.telling import Telling, open_telling
from keylime_verifier.certificate_events import CertificateEvents
from keylime_verifier.certificates import Contexts, Tls, ensure_certificates
from keylime_verifier.config import VerifierConfig, load_config
from keylime_verifier.database.history import History
from keylime_verifier.database.schema import SCHEMA
from keylime_verifier.polling.poller import Poller
from keylime_verifier.sharing.membership import Member

if TYPE_CHECKING:  # its library is loaded where there is a webhook
    from keylime_verifier.revocations.webhook import Webhook

# Together with the last writes and the broker's linger less than the five seconds that a stop may take.
_LONGEST_DRAIN_S = 1.5
# A lease must not wait for connections that are busy with verdicts.
_LEASE_POOL = PoolSize(kept=1, overflow=2)


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """Which of several equal processes on this machine this is; the first one has the ZeroMQ broker."""

    number: int = 0
    count: int = 1


@dataclass(frozen=True, slots=True)
class Verifier:
    """The verifier at work, on `port`."""

    port: int
    health: Health
    _config: VerifierConfig
    _server: Server
    _poller: Poller
    _webhook: "Webhook | None"
    _tls: Tls
    _streams: EventStreams
    keeper: CertificateKeeper

    async def is_alive(self) -> bool:
        """False when only a new start would help."""
        return (await self.health.alive()).is_good

    @property
    def own_failures(self) -> int:
        """How many rounds the verifier's own certificate has cost."""
        return self._poller.own_failures

    def reload(self, environ: Mapping[str, str]) -> None:
        """Takes up certificates, limit and log levels as they are now. Raises ConfigError, unchanged."""
        fresh = load_config(environ)
        # The webhook's address needs a restart.
        contexts = Contexts.load(replace(fresh, webhook=self._config.webhook))
        keylime_logging.setup("verifier", environ)
        self._use(contexts, fresh.max_upload)
        self.keeper.follow(fresh.tls)

    def take_up(self, files: TlsFiles) -> None:
        """Takes up certificates alone, as they are now. Raises ConfigError, unchanged."""
        self._use(Contexts.load(self._config, files), self._server.limits.max_body)

    def _use(self, contexts: Contexts, max_body: int) -> None:
        self._server.renew(tls=contexts.server, max_body=max_body)
        self._streams.end()  # who comes back is looked at by the authorities of now
        self._tls.contexts = contexts
        self._poller.reconnect()
        if self._webhook is not None:
            self._webhook.renew(contexts.webhook)


@asynccontextmanager
async def running(config: VerifierConfig, place: WorkerPlace = WorkerPlace()) -> AsyncIterator[Verifier]:
    """The verifier at work, from the first poll to the last write.

    The tables must be prepared. Raises ConfigError or DatabaseUnavailable when it cannot start. What is begun
    last ends first: requests, polling, deliveries, the last batch of passes, the lease, the database.
    """
    drain_s = min(config.drain_timeout_s, _LONGEST_DRAIN_S)
    async with AsyncExitStack() as stack:
        broker = config.broker if ZEROMQ in config.notifications and place.number == 0 else None
        member = Member.new(config.verifier_id, broker)
        # Others find what this process may leave behind by its name.
        sessions = Sessions.of_this_process(member.member_id)
        measured = measuring(config, place.number, place.count)
        database = measured.timed(open_database(config.database_url, config.database_pool, sessions))
        stack.push_async_callback(database.close)
        lease_database = open_database(config.database_url, _LEASE_POOL, sessions)
        stack.push_async_callback(lease_database.close)
        tls = Tls(Contexts.load(config))
        clock = DatabaseClock()
        stored = Repositories.open(config, database, member, clock.now)
        connected = functools.partial(connect, config, tls)
        tells = await open_telling(config, stored, broker, tls, connected, clock.now, stack)
        judges = evidence_judges(config)
        stack.push_async_callback(judges.close)
        attests = attesting(config, stored, tells, connected, clock.now, measured.meter)
        streams = EventStreams(stored.history)
        looking: list[Callable[[], None]] = [streams.look]

        def on_events() -> None:
            for look in looking:
                look()

        divides = dividing(
            config,
            stored,
            member,
            lease_database,
            sessions,
            clock,
            tells,
            attests,
            on_events,
            measured.meter,
        )
        pushes = pushing(config, stored, tells, attests, member.member_id, clock.now, measured.meter)
        health = Health()
        _add_checks(health, database, attests, divides)
        server = verifier_server(
            config, stored, divides.roster, attests, pushes, judges, streams, health, clock.now
        )
        attests.poller.give_way(lambda: server.answering > 0)
        stack.push_async_callback(divides.leave)
        await divides.join()
        stack.push_async_callback(attests.flush_at_last)
        stack.push_async_callback(attests.poller.close, drain_s)
        await tells.audience.look()
        # No request is served before all agents are adopted: from here on nothing waits.
        await divides.roster.reconcile()
        ensure = functools.partial(ensure_certificates, config)
        keeper = kept_certificates(config.tls, ensure, health, is_speaker=place.number == 0)
        follows = followers(config, stored, tells, divides.membership, place.number)
        loops = _loops(tells, attests, pushes, divides, stored.history)
        around = watched_surroundings(config.work_dir, health, is_speaker=place.number == 0)
        loops["surroundings"] = around.run
        if place.number == 0:
            ends = CertificateEvents(lambda: keeper.in_use, _place_of(config), stored.history.tell)
            loops["certificate events"] = ends.run
        loops |= {name: follower.run for name, follower in follows.items()}
        looking.extend(follower.look for follower in follows.values())
        await stack.enter_async_context(supervised({**loops, "certificate keeper": keeper.run}, health))
        shared = place.count > 1
        measured.serve(database, keeper, health, stack)
        port = server.listen(config.ip, config.port, tls.contexts.server, reuse_port=shared)
        stack.push_async_callback(pushes.judging.close, drain_s / 2)
        stack.push_async_callback(server.stop, drain_s)
        stack.callback(streams.close)
        verifier = Verifier(port, health, config, server, attests.poller, tells.webhook, tls, streams, keeper)
        keeper.on_change = verifier.take_up
        yield verifier


def _place_of(config: VerifierConfig) -> str:
    """Which verifier this is, of several that share a database."""
    return f"{config.verifier_id} on {socket.gethostname()}"


def _add_checks(health: Health, database: Database, attests: Attesting, divides: Dividing) -> None:
    """What being ready means: the work can be done, and is being done."""
    add_database_checks(health, database, SCHEMA)
    health.add("lease", divides.mortality.lease_problem)
    health.add("shards", divides.mortality.shards_problem)
    health.add("verdicts", attests.recorder.lateness.verdicts_problem)
    health.add("passes", attests.recorder.lateness.passes_problem)
    health.note("pace", attests.poller.lag_remark)


def _loops(
    tells: Telling, attests: Attesting, pushes: Pushing, divides: Dividing, history: History
) -> dict[str, Callable[[], Awaitable[None]]]:
    """What must always be running, in the order of its beginning."""
    return {
        "journal": attests.recorder.run,
        "pushed verdicts": pushes.journal.run,
        "silence": pushes.silence.run,
        "notifier": tells.notifier.run,
        "audience": tells.audience.run,
        "repeats": tells.repeats.run,
        "poller": attests.poller.run,
        "roster": divides.roster.run,
        "membership": divides.membership.run,
        "mortality": divides.watch_leases,
        "changes": divides.changes.run,
        "history": history.run,
    }
