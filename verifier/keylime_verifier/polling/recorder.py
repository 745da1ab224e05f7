"""Writes outcomes down: routine passes together, everything else at once with its revocation.

A verdict that the database does not take waits here, one for each agent, for as long as the process lives. It
is shown as pending meanwhile, and is the first to be written when the database is back.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec.structs import replace

from keylime.appraisal.verdict import Accepted, Rejected
from keylime.database.engine import DatabaseUnavailable, is_away
from keylime.database.readiness import remedy_of
from keylime.findings.severity import SeverityPolicy
from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime_verifier.agents.events import Occurrence
from keylime_verifier.agents.lifecycle import (
    POLLED_STATES,
    Notify,
    Outcome,
    Polling,
)
from keylime_verifier.agents.progress import is_routine, progress_after
from keylime_verifier.agents.records import AgentRecord, HeldVersions, StoredRevocation
from keylime_verifier.polling.fencing import Ruling, VerdictRefusal
from keylime_verifier.polling.outcomes import events_of, log_outcome
from keylime_verifier.polling.rows import has_learned
from keylime_verifier.polling.store import AgentStore
from keylime_verifier.polling.unwritten import Unwritten
from keylime_verifier.revocations.notices import CLEARED, signed_notice

log = logging.getLogger("keylime.verifier")

_BATCH_INTERVAL_S = 1.0
_PASSES_AT_ONCE = 250  # in one transaction, which takes some milliseconds on SQLite
_PATIENT_S = 1.0  # in sum: many parts that each let all others go first would be late
_FIRST_RETRY_S = 0.2
_LONGEST_RETRY_S = 5.0
_WRITTEN_AT_ONCE = 8  # of the verdicts that wait; as many are tried to see whether the database is back
_OVERDUE_S = 5.0  # a pass that has not been written for so long is not routine any more
_SAY_AGAIN_S = 60.0
_SETTLING_S = 2.0  # a write under way is waited for before anything is shown, but not for longer

_TRUSTED_STATES = POLLED_STATES - {OperationalState.START}


@dataclass(slots=True, eq=False)
class _Waiting:
    """A verdict that is not written yet. `held_to` are the policies that a rejection goes by."""

    after: AgentRecord
    notice: Notify | None
    held_to: HeldVersions | None
    ruled: "asyncio.Future[Ruling]"
    judged_at: int  # seconds since the epoch
    events: list[Occurrence] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    tried_at: float = 0.0
    is_under_way: bool = False
    revocation: StoredRevocation | None = None  # made once: its id tells a repeated attempt from a second one
    problem: str = "it was being written"
    ends_distrust: bool = False  # a pass of an agent that others may have been warned of

    @property
    def settling_s(self) -> float:
        """For how long it still counts as just being written."""
        return max(self.since + _SETTLING_S - time.monotonic(), 0.0)

    @property
    def can_be_tried(self) -> bool:
        """Whether nobody else is just trying it."""
        return not self.is_under_way and not self.ruled.done()

    @property
    def verdict(self) -> str:
        """As it is called in the log."""
        state = self.after.progress.operational_state.text
        is_failure = self.after.progress.last_event_id is not None and self.held_to is not None
        return f"{state} ({self.after.progress.last_event_id})" if is_failure else state


class Subscriber(Protocol):
    """Who wants to know what becomes of verdicts."""

    def refused(self, refusals: Sequence[VerdictRefusal]) -> None:
        """Verdicts that do not count: others poll the agents, or they are to be judged again."""

    def settled(self, agent_id: AgentId) -> None:
        """No verdict about an agent waits any more."""


class Recorder:
    """The poller's memory on disk. A database that goes away costs time, not verdicts."""

    def __init__(
        self,
        store: AgentStore,
        severities: SeverityPolicy,
        targets: Callable[[], Sequence[tuple[str, str]]],
        on_revocation: Callable[[], None],
        *,
        now: Callable[[], float],
    ) -> None:
        """`targets` gives the (channel, target) pairs that a revocation goes to; none means no revocations.

        `now` tells the time, in seconds since the epoch, that is shown with verdicts.
        """
        self._store = store
        self._severities = severities
        self._targets = targets
        self._on_revocation = on_revocation
        self._now = now
        self._waiting: dict[AgentId, _Waiting] = {}
        self._routine: dict[AgentId, AgentRecord] = {}
        self._under_way: dict[AgentId, AgentRecord] = {}  # routine passes that are being written
        self._learned: set[AgentId] = set()  # those with something new in what lasts of the checkpoint
        self._noted: dict[AgentId, list[Occurrence]] = {}  # what the history is to tell of routine passes
        self._refused: dict[AgentId, AgentRecord] = {}  # by the database, for what is in them
        self._all_written_at = time.monotonic()
        self._said_at: float | None = None  # that the database is away
        self._batching = asyncio.Lock()  # held while all that was gathered is written
        self._flushing = asyncio.Lock()  # held while a part of it is
        self.lateness = Unwritten()
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: "Subscriber") -> None:
        """Has somebody told of what becomes of verdicts, from now on."""
        self._subscribers.append(subscriber)

    def judged(
        self, record: AgentRecord, polling: Polling, outcome: Outcome, *, version: str, goes_on: bool
    ) -> AgentRecord:
        """The record after `outcome`, not written yet."""
        progress = progress_after(
            record.progress,
            polling,
            outcome,
            now=int(self._now()),
            version=version,
            goes_on=goes_on,
            severities=self._severities,
        )
        return replace(record, progress=progress)

    async def write(
        self,
        before: AgentRecord,
        after: AgentRecord,
        outcome: Outcome,
        notice: Notify | None,
        *,
        held_to: HeldVersions | None = None,
    ) -> Ruling:
        """Writes `after` with the revocation that `notice` asks for, now or, when it is routine, soon.

        Returns when the database has taken it or has shown that it does not count; `held_to` are the policies
        that a rejection was made under.
        """
        log_outcome(before, after, outcome)
        events = events_of(before, after, outcome, held_to)
        if notice is None and is_routine(before.progress, after.progress):
            self._routine[after.agent_id] = after
            if has_learned(before.progress.checkpoint, after.progress.checkpoint):
                self._learned.add(after.agent_id)
            if events:
                self._noted.setdefault(after.agent_id, []).extend(events)
            self.lateness.passes_wait()
            return Ruling.COUNTS
        with self.lateness.verdict():
            ends_distrust = isinstance(outcome, Accepted) and (
                before.progress.operational_state not in _TRUSTED_STATES
            )
            return await self._until_ruled(
                after, outcome, notice, held_to, events, ends_distrust=ends_distrust
            )

    async def _until_ruled(
        self,
        after: AgentRecord,
        outcome: Outcome,
        notice: Notify | None,
        held_to: HeldVersions | None,
        events: list[Occurrence],
        *,
        ends_distrust: bool,
    ) -> Ruling:
        agent_id = after.agent_id
        while (earlier := self._waiting.get(agent_id)) is not None:
            await asyncio.wait([earlier.ruled])
        versions = held_to or HeldVersions() if isinstance(outcome, Rejected) else None
        ruled: asyncio.Future[Ruling] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(
            after, notice, versions, ruled, int(time.time()), events, ends_distrust=ends_distrust
        )
        self._waiting[agent_id] = waiting
        delay_s = _FIRST_RETRY_S
        while not ruled.done():
            if not waiting.is_under_way:
                try:
                    await self._try(waiting)
                    break
                except DatabaseUnavailable as error:
                    self._note_away(error)
                except Exception as error:
                    self._settle(waiting, error)
                    raise
            await asyncio.wait([ruled], timeout=delay_s)
            delay_s = min(2 * delay_s, _LONGEST_RETRY_S)
        return ruled.result()

    def waits(self, agent_id: AgentId) -> bool:
        """Whether a verdict about an agent is still to be taken by the database, or to be refused."""
        return agent_id in self._waiting

    def waiting(self) -> list[AgentRecord]:
        """The agents about which verdicts wait, as they will be."""
        return [waiting.after for waiting in self._waiting.values()]

    def waiting_verdict(self, agent_id: AgentId) -> AgentRecord | None:
        """What an agent will be once the database has taken the verdict about it that waits, if one does."""
        waiting = self._waiting.get(agent_id)
        return None if waiting is None else waiting.after

    def unwritten(self, agent_id: AgentId) -> AgentRecord | None:
        """As `waiting_verdict`, or of passes that are refused, or wait for too long; None for others."""
        if (after := self.waiting_verdict(agent_id)) is not None:
            return after
        if (refused := self._refused.get(agent_id)) is not None:
            return refused
        if time.monotonic() - self._all_written_at < _OVERDUE_S:
            return None
        return self._routine.get(agent_id) or self._under_way.get(agent_id)

    def forget_refused(self, *, others_than: Container[AgentId]) -> None:
        """Forgets what was refused of other agents than these: nobody here has them pass any more."""
        for agent_id in [one for one in self._refused if one not in others_than]:
            del self._refused[agent_id]

    def is_settling(self, agent_id: AgentId) -> bool:
        """Whether a verdict about an agent is just being written, as it is unless something is wrong."""
        waiting = self._waiting.get(agent_id)
        return waiting is not None and waiting.settling_s > 0

    async def settle(self, agent_id: AgentId | None = None) -> None:
        """Waits for a verdict (None: all) that is just being written, but not for longer than a moment."""
        concerned = self._waiting.values() if agent_id is None else [self._waiting.get(agent_id)]
        for waiting in list(concerned):
            if waiting is not None:
                await asyncio.wait([waiting.ruled], timeout=waiting.settling_s)

    async def run(self) -> None:
        """Writes routine passes once a second, and verdicts that wait before them, for ever."""
        while True:
            await asyncio.sleep(_BATCH_INTERVAL_S)
            try:
                await self.flush()
            except DatabaseUnavailable as error:
                self._note_away(error)
            else:
                if self._said_at is not None and not self._waiting:
                    log.info("the database has taken everything that waited for it")
                    self._said_at = None

    async def flush(self) -> None:
        """Writes the verdicts that wait, then the routine passes gathered so far; keeps what is not taken.

        Raises DatabaseUnavailable when that concerns passes.
        """
        # Rejections first, and nobody's again before all others were tried.
        await self._write_verdicts(
            sorted(self._waiting.values(), key=lambda one: (one.held_to is None, one.tried_at))
        )
        async with self._batching:
            gathered, began = list(self._routine), time.monotonic()
            usual = [agent_id for agent_id in gathered if agent_id not in self._refused]
            parts = [
                usual[first : first + _PASSES_AT_ONCE] for first in range(0, len(usual), _PASSES_AT_ONCE)
            ]
            alone = [[agent_id] for agent_id in gathered if agent_id in self._refused]
            for part in parts + alone:
                # Between two of them verdicts are written, and other processes get the database.
                can_wait = time.monotonic() - began < _PATIENT_S
                await self._write_passes(part, can_wait=can_wait)
            self._all_written_at = time.monotonic()
            self.lateness.passes_written(others_wait=bool(self._routine))

    async def flush_one(self, agent_id: AgentId) -> None:
        """As `flush`, of one agent, before all that waits of others: somebody waits for it."""
        waiting = self._waiting.get(agent_id)
        if waiting is not None:
            await self._write_verdicts([waiting])
        if agent_id in self._routine or agent_id in self._under_way:
            await self._write_passes([agent_id], can_wait=False)

    async def _write_passes(self, agent_ids: Sequence[AgentId], *, can_wait: bool) -> None:
        """Writes the last passes of some agents after what is being written, and tells what is refused.

        Raises DatabaseUnavailable.
        """
        overtaken: list[VerdictRefusal] = []
        try:
            async with self._flushing:
                await self._take_what_can_be(agent_ids, overtaken, can_wait=can_wait)
        finally:  # a part may be written when the database goes away
            for refusal in overtaken:
                _log_refusal(refusal, "pass", is_rejection=False)
            if overtaken:
                self._tell_of_refusals(overtaken)

    async def _take_what_can_be(
        self, agent_ids: Sequence[AgentId], overtaken: list[VerdictRefusal], *, can_wait: bool
    ) -> None:
        """As `_take_passes`; what the database refuses to store of one agent holds up nobody else.

        Adds passes that do not count to `overtaken`. Raises DatabaseUnavailable if the database is away.
        """
        try:
            overtaken += await self._take_passes(agent_ids, can_wait=can_wait)
        except Exception as error:
            if is_away(error):
                raise
            if len(agent_ids) == 1:
                self._set_aside(agent_ids[0], error)
                return
            middle = len(agent_ids) // 2
            await self._take_what_can_be(agent_ids[:middle], overtaken, can_wait=can_wait)
            await self._take_what_can_be(agent_ids[middle:], overtaken, can_wait=can_wait)
        else:
            for agent_id in agent_ids:
                self._refused.pop(agent_id, None)

    def _set_aside(self, agent_id: AgentId, error: Exception) -> None:
        """Its later passes are tried by themselves, and it is shown as pending until one is taken."""
        refused = self._routine.pop(agent_id)
        self._noted.pop(agent_id, None)
        if agent_id not in self._refused:
            log.error("agent %s: the database refuses to store its passes: %s", agent_id, error)
        self._refused[agent_id] = refused

    async def _take_passes(self, agent_ids: Sequence[AgentId], *, can_wait: bool) -> list[VerdictRefusal]:
        """Which passes do not count. Those that are not taken are kept."""
        self._under_way = {one: self._routine.pop(one) for one in agent_ids if one in self._routine}
        learned = self._learned & self._under_way.keys()
        self._learned -= learned
        noted = {one: self._noted.pop(one) for one in agent_ids if one in self._noted}
        passes = list(self._under_way.values())
        try:
            if not passes:
                return []
            return await self._store.record_passes(passes, learned, noted, can_wait=can_wait)
        except BaseException:
            self._routine = {**self._under_way, **self._routine}
            self._learned |= learned
            for agent_id, earlier in noted.items():
                self._noted[agent_id] = [*earlier, *self._noted.get(agent_id, ())]
            raise
        finally:
            self._under_way = {}

    def give_up(self) -> None:
        """Says what was never written. For the end."""
        for waiting in self._waiting.values():
            log.error(
                "agent %s: the verdict %s was not written before the verifier ended: %s",
                waiting.after.agent_id,
                waiting.verdict,
                waiting.problem,
            )

    async def _write_verdicts(self, verdicts: Sequence[_Waiting]) -> None:
        """Tries verdicts that wait, some at a time; when none of some is taken, the others are not tried."""
        for first in range(0, len(verdicts), _WRITTEN_AT_ONCE):
            some = [one for one in verdicts[first : first + _WRITTEN_AT_ONCE] if one.can_be_tried]
            results = await asyncio.gather(*map(self._try, some), return_exceptions=True)
            for one, result in zip(some, results, strict=True):
                if isinstance(result, DatabaseUnavailable):
                    self._note_away(result)
                elif isinstance(result, Exception):
                    self._settle(one, result)
            if some and all(isinstance(result, BaseException) for result in results):
                return

    async def _try(self, waiting: _Waiting) -> None:
        """One attempt. Raises DatabaseUnavailable."""
        after, notice = waiting.after, waiting.notice
        waiting.is_under_way, waiting.tried_at = True, time.monotonic()
        try:
            async with self._flushing:  # a batch under way may hold an older record, which must not come last
                self._routine.pop(after.agent_id, None)
                self._refused.pop(after.agent_id, None)
                self._learned.discard(after.agent_id)  # what a verdict writes has all of it
                waiting.events = [*self._noted.pop(after.agent_id, ()), *waiting.events]
            targets = self._targets()
            if waiting.ends_distrust and notice is None and targets:
                notice = CLEARED if await self._store.stands_revoked(after.agent_id) else None
            if notice is not None and targets and waiting.revocation is None:
                waiting.revocation = await self._sign(after, notice, waiting.judged_at)
            ruling = await self._store.record_change(
                after, waiting.revocation, targets, held_to=waiting.held_to, events=waiting.events
            )
        except DatabaseUnavailable as error:
            waiting.problem = str(error)
            raise
        finally:
            waiting.is_under_way = False
        self._settle(waiting, ruling)
        if ruling in (Ruling.COUNTS, Ruling.KNOWN):
            if waiting.revocation is not None:
                self._on_revocation()
            return
        refusal = VerdictRefusal(after, ruling)
        _log_refusal(refusal, waiting.verdict, is_rejection=waiting.held_to is not None)
        self._tell_of_refusals([refusal])

    def _settle(self, waiting: _Waiting, result: Ruling | Exception) -> None:
        self._waiting.pop(waiting.after.agent_id, None)
        if isinstance(result, Exception):
            waiting.ruled.set_exception(result)
            waiting.ruled.exception()  # whoever waited for it may be gone
        else:
            waiting.ruled.set_result(result)
        for subscriber in self._subscribers:
            subscriber.settled(waiting.after.agent_id)

    def _tell_of_refusals(self, refusals: Sequence[VerdictRefusal]) -> None:
        for subscriber in self._subscribers:
            subscriber.refused(refusals)

    def _note_away(self, error: DatabaseUnavailable) -> None:
        """Says once a minute what waits for the database."""
        self.lateness.because(remedy_of(error))
        if self._said_at is not None and time.monotonic() - self._said_at < _SAY_AGAIN_S:
            return
        self._said_at = time.monotonic()
        log.error(
            "%s; trying again, %d verdicts and the passes of %d agents wait and are shown as pending",
            error,
            len(self._waiting),
            len(self._routine),
        )

    async def _sign(self, record: AgentRecord, notice: Notify, now: int) -> StoredRevocation | None:
        agent_id = record.agent_id
        secrets = await self._store.secrets_of(agent_id)
        if secrets is None:
            return None
        return signed_notice(record, notice, secrets.revocation_key, now)


def _log_refusal(refusal: VerdictRefusal, verdict: str, *, is_rejection: bool) -> None:
    """What an operator's act has overtaken is worth an error only if it was a rejection."""
    is_loss = is_rejection or refusal.ruling is Ruling.TAKEN_OVER
    log.log(
        logging.ERROR if is_loss else logging.INFO,
        "agent %s: the verdict %r does not count: %s",
        refusal.record.agent_id,
        verdict,
        refusal.ruling.value,
    )
