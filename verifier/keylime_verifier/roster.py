"""Keeps the poller in step with the database: which agents this process polls, and what they are held to.

Driven by what is there, not by messages about it: whatever was missed, in whatever order, the next look sees.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence

from keylime.database.engine import DatabaseUnavailable
from keylime.identifiers import AgentId
from keylime_verifier.journal import Journal
from keylime_verifier.notifier import Notifier
from keylime_verifier.ownership import MemberId, shard_of
from keylime_verifier.poller import Poller
from keylime_verifier.records import AgentRecord, Standing
from keylime_verifier.store import AgentStore

log = logging.getLogger("keylime.verifier")

_LOOK_AGAIN_S = 60.0
_RETRY_S = 1.0
_REST = 10.0  # times as long as a look took: a fleet under change is not looked at all the time
_LONGEST_REST_S = 10.0  # a look may also take long because the database does not answer
_READ_AT_ONCE = 200  # records


class Roster:
    """The agents of this process's shards, polled as long as they are its own."""

    def __init__(
        self,
        me: MemberId,
        store: AgentStore,
        poller: Poller,
        journal: Journal,
        notifier: Notifier,
        *,
        spread_s: float,
        let_go_limit_s: float,
    ) -> None:
        """Agents that are taken over are asked within `spread_s`. Work under way gets `let_go_limit_s`."""
        self._me = me
        self._store = store
        self._poller = poller
        self._journal = journal
        self._notifier = notifier
        self._spread_s = spread_s
        self._let_go_limit_s = let_go_limit_s
        self._looking = asyncio.Lock()
        self._wake = asyncio.Event()
        self._touched: set[AgentId] = set()  # by operators, while a look is under way
        self._unreadable: dict[AgentId, tuple[str, int]] = {}  # known since the given span

    def look(self) -> None:
        """Tells that the database may have changed."""
        self._wake.set()

    def current(self, agent_id: AgentId) -> AgentRecord | None:
        """The freshest record of an agent that is being polled here."""
        return self._poller.current(agent_id)

    def adopt(self, record: AgentRecord) -> None:
        """Starts polling what an operator added or reactivated here, if it is ours."""
        self._touched.add(record.agent_id)
        known = self._poller.current(record.agent_id)
        if record.claim.owner == self._me and (known is None or known.span != record.span):
            self._poller.adopt(record)

    def drop(self, agent_id: AgentId) -> None:
        """Ends the polling of what an operator stopped or deleted here."""
        self._touched.add(agent_id)
        self._poller.drop(agent_id)

    def lost(self, records: Sequence[AgentRecord]) -> None:
        """Ends the polling of agents whose passes were refused."""
        for record in records:
            known = self._poller.current(record.agent_id)
            if known is not None and known.span == record.span:
                self._poller.drop(record.agent_id)
        log.warning("%d agents have been taken over by other verifiers", len(records))
        self.look()

    async def run(self) -> None:
        """Looks whenever something changed, for ever."""
        while True:
            try:
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            began = time.monotonic()
            try:
                await self.reconcile()
                rest_s = min(_REST * (time.monotonic() - began), _LONGEST_REST_S)
            except DatabaseUnavailable as error:
                log.error("%s; agents are polled as far as they are known", error)
                self._wake.set()
                rest_s = _RETRY_S
            await asyncio.sleep(rest_s)

    async def reconcile(self) -> None:
        """One look: drops what is not ours, adopts what is, forgets references to replaced policies.

        Raises DatabaseUnavailable.
        """
        async with self._looking:
            self._touched.clear()
            standings = await self._store.standings(self._me)
            known = self._poller.polled()
            for agent_id in known.keys() - standings.keys() - self._touched:
                self._poller.drop(agent_id)
            for agent_id in known.keys() & standings.keys():
                self._poller.hold_to(agent_id, standings[agent_id].versions)
            await self._adopt_missing(standings, known)

    @contextlib.asynccontextmanager
    async def without(self, shards: frozenset[int]) -> AsyncIterator[None]:
        """Within the block nothing is done for some shards, which are given up there.

        Raises DatabaseUnavailable when what was done so far cannot be written down.
        """
        try:
            async with self._looking, self._notifier.without(shards, self._let_go_limit_s):
                leaving = [agent_id for agent_id in self._poller.polled() if shard_of(agent_id) in shards]
                await self._poller.drop_all(leaving, self._let_go_limit_s)
                await self._journal.flush()
                yield
        finally:
            self.look()  # what could not be given up is polled on

    async def _adopt_missing(
        self, standings: Mapping[AgentId, Standing], known: Mapping[AgentId, AgentRecord]
    ) -> None:
        missing = [
            agent_id
            for agent_id, standing in standings.items()
            if (agent_id not in known or known[agent_id].span != standing.span)
            and self._unreadable.get(agent_id) != standing.span
        ]
        for first in range(0, len(missing), _READ_AT_ONCE):
            wanted = missing[first : first + _READ_AT_ONCE]
            records = await self._store.load_polled(self._me, wanted)
            for record in records:
                if record.agent_id not in self._touched:
                    self._poller.adopt(record, delay_s=self._delay_s(record))
            found = {record.agent_id for record in records}
            self._unreadable |= {
                agent_id: standings[agent_id].span for agent_id in wanted if agent_id not in found
            }
        self._unreadable = {
            agent_id: span for agent_id, span in self._unreadable.items() if agent_id in standings
        }

    def _delay_s(self, record: AgentRecord) -> float:
        if not record.progress.last_received_quote:
            return 0.0
        return random.uniform(0, self._spread_s)  # noqa: S311 - spreads load
