"""Tells of agents that attest by themselves and have not done so in time, those of this process's shards."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from keylime.database.clock import uptime
from keylime.database.engine import DatabaseUnavailable
from keylime_verifier.agents.pushing import PushRules, is_overdue
from keylime_verifier.agents.records import AgentRecord
from keylime_verifier.agents.shards import MemberId
from keylime_verifier.pushing.attestation_store import AttestationStore
from keylime_verifier.pushing.journal import PushedVerdicts
from keylime_verifier.pushing.session_store import SessionStore
from keylime_verifier.pushing.watch import Watch

log = logging.getLogger("keylime.verifier")

_LONGEST_LOOK_S = 5.0
_TOLD_AT_ONCE = 100
_PRUNE_EVERY_S = 60.0
_LONGEST_JUDGING_S = 300.0  # after that nobody has the evidence any more: its process was killed


class Silence:
    """Looks who is silent, and forgets what is over, for as long as the verifier runs.

    Any process shows an agent as overdue; that it is told of is for the owner of its shard.
    """

    def __init__(
        self,
        me: MemberId,
        store: AttestationStore,
        sessions: SessionStore,
        journal: PushedVerdicts,
        rules: PushRules,
        *,
        kept_s: float,
        now: Callable[[], float],
        elapsed: Callable[[], float] = uptime,
    ) -> None:
        """Attestations are kept for `kept_s` seconds, the latest of each agent for ever.

        `now` is the database's time, which others set; `elapsed` is a clock that nobody sets.
        """
        self._me = me
        self._store = store
        self._sessions = sessions
        self._journal = journal
        self._rules = rules
        self._kept_s = kept_s
        self._now = now
        self._elapsed = elapsed
        self._pause_s = min(rules.longest_pause_s / 2, _LONGEST_LOOK_S)
        self._watch = Watch(rules.longest_pause_s)
        self._tidy_at = 0.0

    async def run(self) -> None:
        """Looks, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._pause_s)

    async def look(self) -> None:
        """Tells who is silent. What came while nobody could have taken it is no agent's silence."""
        try:
            silent = await self._store.overdue(self._me, self._now(), self._rules.longest_pause_s)
            if self._watch.sees(self._elapsed(), self._now()):
                await self._tell(silent)
            if self._elapsed() >= self._tidy_at:
                await self.tidy()
                self._tidy_at = self._elapsed() + _PRUNE_EVERY_S
        except DatabaseUnavailable as error:
            log.error("%s; agents that are silent are told of later", error)
            self._watch.is_interrupted()

    async def tidy(self) -> None:
        """Forgets what is over. Raises DatabaseUnavailable."""
        now = self._now()
        await self._sessions.prune(now)
        lost = await self._store.give_up(now - _LONGEST_JUDGING_S, now)
        if lost:
            log.warning(
                "%d attestations end without a verdict: who took their evidence ended before it was judged; "
                "their agents bring more",
                lost,
            )
        await self._store.prune(now - self._kept_s)

    async def _tell(self, silent: Sequence[AgentRecord]) -> None:
        """Some at a time, until it takes so long that no attestation was written either. Raises as `tidy`."""
        now = self._now()
        overdue = [one for one in silent if one.push is not None and is_overdue(one.push, now)]
        for first in range(0, len(overdue), _TOLD_AT_ONCE):
            began = self._elapsed()
            heard_after = now - self._rules.longest_pause_s
            await self._journal.overdue(overdue[first : first + _TOLD_AT_ONCE], heard_after)
            if self._elapsed() - began > self._pause_s:
                log.warning("the database takes long; agents that are silent are told of later")
                self._watch.is_interrupted()
                return
