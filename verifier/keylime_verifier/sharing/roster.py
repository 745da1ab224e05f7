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
from keylime_verifier.agents.records import AgentRecord, AgentVersion, RowVersion
from keylime_verifier.agents.shards import MemberId, shard_of
from keylime_verifier.polling.fencing import VerdictRefusal
from keylime_verifier.polling.poller import Poller
from keylime_verifier.polling.recorder import Recorder
from keylime_verifier.polling.store import AgentStore
from keylime_verifier.revocations.notifier import Notifier
from keylime_verifier.sharing.poll_plan import adoption_spread_s, plan_polls, still_unreadable

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
        recorder: Recorder,
        notifier: Notifier,
        *,
        spread_s: float,
        let_go_limit_s: float,
        polls: bool = True,
    ) -> None:
        """Whether this verifier `polls` agents at all.

        Agents that are taken over are asked at once, many of them within `spread_s`.

        Work under way gets `let_go_limit_s`.
        """
        self._me = me
        self._store = store
        self._poller = poller
        self._recorder = recorder
        self._notifier = notifier
        self._polls = polls
        self._spread_s = spread_s
        self._let_go_limit_s = let_go_limit_s
        self._looking = asyncio.Lock()
        self._wake = asyncio.Event()
        self._touched: set[AgentId] = set()  # by operators, while a look is under way
        self._unreadable: dict[AgentId, RowVersion] = {}  # known since the given version
        self._put_off: frozenset[AgentId] = frozenset()  # until what waits to be written about them is

    def look(self) -> None:
        """Tells that the database may have changed."""
        self._wake.set()

    def current(self, agent_id: AgentId) -> AgentRecord | None:
        """The freshest record of an agent that is polled here, or about which a verdict waits here."""
        return self._poller.current(agent_id) or self._recorder.unwritten(agent_id)

    def row_version(self, agent_id: AgentId) -> RowVersion | None:
        """That of what this process knows of an agent; None when the database knows all."""
        record = self.current(agent_id)
        return None if record is None else record.row_version

    def adopt(self, record: AgentRecord) -> None:
        """Starts polling what an operator added or reactivated here, if it is ours."""
        self._touched.add(record.agent_id)
        known = self._poller.current(record.agent_id)
        if record.enrolment.is_pushing or not self._polls:
            return
        if record.claim.owner == self._me and (known is None or known.row_version != record.row_version):
            self._poller.adopt(record)

    def drop(self, agent_id: AgentId) -> None:
        """Ends the polling of what an operator stopped or deleted here."""
        self._touched.add(agent_id)
        self._poller.drop(agent_id)

    def refused(self, refusals: Sequence[VerdictRefusal]) -> None:
        """Ends the polling of agents about which verdicts do not count; ours are adopted and judged again."""
        for record in (refusal.record for refusal in refusals):
            known = self._poller.current(record.agent_id)
            if known is not None and known.row_version == record.row_version:
                self._poller.drop(record.agent_id)
        self.look()

    def settled(self, agent_id: AgentId) -> None:
        """Tells that the database knows all there is to know of an agent."""
        if agent_id in self._put_off:
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
            versions = await self._store.versions(self._me) if self._polls else {}
            known = {agent_id: record.row_version for agent_id, record in self._poller.polled().items()}
            plan = plan_polls(
                versions,
                known,
                touched=self._touched,
                unreadable=self._unreadable,
                waits=self._recorder.waits,
            )
            for agent_id in plan.drop:
                self._poller.drop(agent_id)
            for agent_id, policies in plan.hold.items():
                self._poller.hold_to(agent_id, policies)
            self._put_off = plan.put_off
            self._recorder.forget_refused(others_than=versions)
            await self._adopt(plan.adopt, versions)

    @contextlib.asynccontextmanager
    async def without(self, shards: frozenset[int]) -> AsyncIterator[None]:
        """Within the block nothing is done for some shards, which are given up there.

        Raises DatabaseUnavailable when what was done so far cannot be written down.
        """
        try:
            async with self._looking, self._notifier.without(shards, self._let_go_limit_s):
                leaving = [agent_id for agent_id in self._poller.polled() if shard_of(agent_id) in shards]
                await self._poller.drop_all(leaving, self._let_go_limit_s)
                await self._recorder.flush()
                yield
        finally:
            self.look()  # what could not be given up is polled on

    async def _adopt(self, missing: Sequence[AgentId], versions: Mapping[AgentId, AgentVersion]) -> None:
        within_s = adoption_spread_s(len(missing), self._spread_s)
        found: set[AgentId] = set()
        for first in range(0, len(missing), _READ_AT_ONCE):
            records = await self._store.load_polled(self._me, missing[first : first + _READ_AT_ONCE])
            for record in records:
                if record.agent_id not in self._touched:
                    fresh = record.counting_on(self._poller.current(record.agent_id))
                    # Spreads load; no secret depends on it.
                    self._poller.adopt(fresh, delay_s=random.uniform(0, within_s))  # noqa: S311
            found |= {record.agent_id for record in records}
        self._unreadable = still_unreadable(self._unreadable, versions, missing, found)
