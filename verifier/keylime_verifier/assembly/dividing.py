"""Which agents are this verifier's: its place among those that share the work, taken and given up."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from keylime import patience
from keylime.database.clock import DatabaseClock, uptime
from keylime.database.engine import DatabaseUnavailable
from keylime.database.servers import Sessions
from keylime.database.transactions import Database
from keylime.service.background import accompanied
from keylime_verifier.api.routes import Repositories
from keylime_verifier.assembly.attesting import LAST_WRITES_S, Attesting
from keylime_verifier.assembly.telling import Telling
from keylime_verifier.config import VerifierConfig
from keylime_verifier.database.changes import ChangeFeed, Topic
from keylime_verifier.polling.meter import Meter
from keylime_verifier.sharing.membership import Member, Membership
from keylime_verifier.sharing.mortality import Mortality
from keylime_verifier.sharing.roster import Roster

log = logging.getLogger("keylime.verifier")

_LONGEST_LET_GO_S = 2.0
_JOIN_LEASES = 4  # within which sessions of a dead member are ended, and with them their locks
_LEAST_JOIN_S = 30.0
_PATIENCE = 0.6  # of a lease
_LEAST_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class Dividing:
    """What knows the agents of this process, its leases, and what other processes have changed."""

    roster: Roster
    membership: Membership
    mortality: Mortality
    changes: ChangeFeed
    lease_s: float

    async def watch_leases(self) -> None:
        """Impatiently: before two leases are over it must have given up once and have succeeded."""
        with patience.at_most(max(_LEAST_PATIENCE_S, _PATIENCE * self.lease_s)):
            await self.mortality.run()

    async def join(self) -> None:
        """Enters the group. What keeps us out may be the locks of a member that died: they end meanwhile."""
        deadline = time.monotonic() + max(_JOIN_LEASES * self.lease_s, _LEAST_JOIN_S)
        async with accompanied(self.mortality.run()):
            while True:
                try:
                    await self.membership.join()
                    break
                except DatabaseUnavailable as error:
                    if time.monotonic() > deadline:
                        raise
                    log.error("%s; trying again", error)
                await asyncio.sleep(min(1.0, self.lease_s))
        with contextlib.suppress(DatabaseUnavailable):
            await self.mortality.look()

    async def leave(self) -> None:
        """Gives the lease up, if that can be done in time."""
        try:
            async with asyncio.timeout(LAST_WRITES_S):
                await self.membership.leave()
        except (TimeoutError, DatabaseUnavailable) as error:
            log.error(
                "the lease was not given up, others wait for its end (%s %s)", type(error).__name__, error
            )


def dividing(
    config: VerifierConfig,
    stored: Repositories,
    member: Member,
    lease_database: Database,
    sessions: Sessions,
    clock: DatabaseClock,
    telling: Telling,
    attesting: Attesting,
    on_events: Callable[[], None],
    meter: Meter,
) -> Dividing:
    """Not begun yet; `sessions` are those of this process, `on_events` hears of what the history was told."""
    roster = Roster(
        member.member_id,
        stored.agents,
        attesting.poller,
        attesting.recorder,
        telling.notifier,
        spread_s=config.cadence.quote_interval_s,
        polls=config.mode.polls,
        let_go_limit_s=min(_LONGEST_LET_GO_S, config.lease_s / 4),
    )
    attesting.recorder.subscribe(roster)

    def on_moves() -> None:
        roster.look()
        telling.notifier.wake()

    def on_agents() -> None:
        roster.look()
        telling.repeats.look()

    membership = Membership(
        lease_database,
        member,
        lease_s=config.lease_s,
        clock=clock,
        let_go=roster.without,
        on_moves=on_moves,
        meter=meter,
        tell=stored.history.tell,
    )
    mortality = Mortality(
        lease_database, config.verifier_id, member.member_id, lease_s=config.lease_s, clock=uptime
    )
    topics = {
        Topic.AGENTS: on_agents,
        Topic.SHARDS: membership.look,
        Topic.REVOCATIONS: telling.on_revocations,
        Topic.EVENTS: on_events,
    }
    changes = ChangeFeed(lease_database, topics, sessions)
    return Dividing(roster, membership, mortality, changes, config.lease_s)
