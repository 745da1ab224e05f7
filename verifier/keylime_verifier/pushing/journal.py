"""Writes verdicts about agents that attest by themselves, and that they are silent.

Passes that change nothing but counters and positions are written a few times a second; everything else at
once, before all that waits for its turn to be written.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
from msgspec.structs import replace

from keylime.appraisal.verdict import Accepted, Incomplete, Rejected, Verdict
from keylime.database.engine import DatabaseUnavailable, is_away
from keylime.database.transactions import Database
from keylime.database.write_turn import Urgency
from keylime.findings.finding import Finding
from keylime.messages.push_attestation import Evaluation
from keylime.messages.verifier import OperationalState
from keylime_verifier.agents.lifecycle import Notify, Outcome, Unreachable
from keylime_verifier.agents.progress import polling_of
from keylime_verifier.agents.pushing import (
    OVERDUE,
    Happening,
    Overdue,
    PushRules,
    failure_reason,
    progress_of,
    pushed_after,
    stand_after,
)
from keylime_verifier.agents.records import AgentRecord, HeldVersions, PushState, StoredRevocation
from keylime_verifier.polling.fencing import Ruling
from keylime_verifier.polling.meter import Meter
from keylime_verifier.polling.outcomes import events_of, log_outcome
from keylime_verifier.polling.store import AgentStore
from keylime_verifier.polling.unwritten import Unwritten
from keylime_verifier.pushing.change_writer import ChangeWriter
from keylime_verifier.pushing.insistence import insisting
from keylime_verifier.pushing.verdict_writes import (
    AttestationEnd,
    Change,
    end_attestation,
    is_plain,
)
from keylime_verifier.revocations.notices import CLEARED, signed_notice

log = logging.getLogger("keylime.verifier")

_GATHERING_S = 0.25  # between two transactions that write plain passes
_ATTEMPTS = 20  # to work a verdict out on what others have written meanwhile


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict about evidence, the agent as it was judged, and by which versions of its policies."""

    record: AgentRecord
    number: int
    verdict: Verdict
    held_to: HeldVersions


class PushedVerdicts:
    """Nothing is forgotten before the database has taken it, or has shown that it does not count."""

    def __init__(
        self,
        database: Database,
        store: AgentStore,
        rules: PushRules,
        *,
        token_s: float | None,
        targets: Callable[[], Sequence[tuple[str, str]]],
        on_revocation: Callable[[], None],
        lateness: Unwritten,
        meter: Meter,
        now: Callable[[], float],
        on_written: Callable[[AgentRecord, AttestationEnd | None], None] = lambda _record, _end: None,
    ) -> None:
        """`token_s` is how long a token holds after a pass, None if a pass does not lengthen it.

        `now` tells the time, in seconds since the epoch, that is shown with verdicts; `on_written` hears of
        each record that is stored.
        """
        self._database = database
        self._store = store
        self._rules = rules
        self._token_s = token_s
        self._targets = targets
        self._on_revocation = on_revocation
        self._lateness = lateness
        self._meter = meter
        self._now = now
        self._on_written = on_written
        self._urgent = ChangeWriter(database, Urgency.FIRST)
        self._passes = ChangeWriter(database, Urgency.CAN_WAIT, apart_s=_GATHERING_S)

    async def judged(self, judged: Judged) -> Ruling:
        """Writes what comes of a verdict; when this returns, it is written, or does not count.

        The attestation is over then. Evidence that passed does so also where a later one has been judged.
        """
        with self._lateness.verdict():
            ruling = await self._judged(judged)
            if ruling is not Ruling.COUNTS:
                has_passed = ruling is Ruling.KNOWN and isinstance(judged.verdict, Accepted)
                await self._end(judged.record, judged.number, "pass" if has_passed else "pending")
            return ruling

    async def unjudged(self, record: AgentRecord, number: int) -> None:
        """An attestation is over whose evidence could not be judged: it has no verdict."""
        await self._end(record, number, "pending")

    async def _end(self, record: AgentRecord, number: int, evaluation: Evaluation) -> None:
        end = AttestationEnd(number=number, evaluation=evaluation, at=self._now())
        work = partial(end_attestation, record=record, conclusion=end)
        await insisting(record.agent_id, partial(self._database.write, "end an attestation", work))

    async def _judged(self, judged: Judged) -> Ruling:
        record: AgentRecord | None = judged.record
        agent_id = judged.record.agent_id
        for _ in range(_ATTEMPTS):
            if record is None or record.generation != judged.record.generation or record.push is None:
                return Ruling.ENROLLED_ANEW
            if _is_outdated(record.push, judged):
                return Ruling.KNOWN
            ruling = await self._apply(record, judged)
            if ruling is not Ruling.RECALLED:
                return ruling
            record = await insisting(agent_id, partial(self._store.find, agent_id))
        return Ruling.RECALLED

    async def overdue(self, silent: Sequence[AgentRecord], heard_after: float) -> list[Ruling]:
        """Writes together that agents are silent, which each is told once; `heard_after` as in `Change`.

        What the database refuses to store of one is logged, and holds up no other. Raises DatabaseUnavailable
        if it is away, or takes no passes, those of the silent ones perhaps; then nothing is written later.
        """
        if (waits_s := self._passes.waits_s) > self._rules.longest_pause_s / 2:
            raise DatabaseUnavailable(f"passes have waited for {waits_s:.0f} s to be written")
        happening = Overdue()
        changes = [
            replace(await self._change(record, happening, None), heard_after=heard_after) for record in silent
        ]
        rulings: list[Ruling] = []
        away: BaseException | None = None
        for change, result in zip(changes, await self._written(changes), strict=True):
            if isinstance(result, Ruling):
                self._tell(change, happening, result)
                rulings.append(result)
            elif isinstance(result, Exception) and not is_away(result):
                log.error("agent %s: that it is silent cannot be stored: %s", change.before.agent_id, result)
            else:
                away = result
        if away is not None:
            raise away
        return rulings

    async def _apply(self, before: AgentRecord, judged: Judged) -> Ruling:
        change = await self._change(before, judged.verdict, judged)
        (result,) = await self._written([change])
        if isinstance(result, BaseException):
            raise result
        self._tell(change, judged.verdict, result)
        return result

    async def _change(self, before: AgentRecord, happening: Happening, judged: Judged | None) -> Change:
        now = self._now()
        push = before.push or PushState()
        polling, notice = stand_after(polling_of(before), happening, self._rules)
        after = replace(
            before,
            progress=progress_of(before.progress, polling, happening, now=int(now), rules=self._rules),
            push=pushed_after(
                push, happening, -1 if judged is None else judged.number, int(now), self._rules
            ),
        )
        held_to = None if judged is None else judged.held_to
        targets = self._targets()
        if notice is None and targets and _ends_distrust(before, after):
            stands_revoked = partial(self._store.stands_revoked, before.agent_id)
            notice = CLEARED if await insisting(before.agent_id, stands_revoked) else None
        return Change(
            before=before,
            after=after,
            conclusion=None if judged is None else self._conclusion(judged, before, now),
            held_to=held_to if isinstance(happening, Rejected) else None,
            revocation=await self._signed(before, happening, notice)
            if targets and notice is not None
            else None,
            targets=targets,
            events=events_of(before, after, _outcome(happening), held_to),
        )

    def _tell(self, change: Change, happening: Happening, ruling: Ruling) -> None:
        """Says what was written."""
        if ruling is not Ruling.COUNTS:
            return
        self._on_written(replace(change.after, recalls=change.before.recalls + 1), change.conclusion)
        outcome = _outcome(happening)
        log_outcome(change.before, change.after, outcome)
        self._meter.pushed(outcome)
        if change.conclusion is not None and change.conclusion.token_until is not None:
            log.debug("Extended auth token for agent '%s' after a pass", change.before.agent_id)
        if change.revocation is not None:
            self._on_revocation()

    def _conclusion(self, judged: Judged, before: AgentRecord, now: float) -> AttestationEnd:
        match judged.verdict:
            case Accepted(checkpoint):
                old, new = before.progress.checkpoint.boot, checkpoint.boot
                is_first = old is None or new is None or old.boottime != new.boottime
                until = None if self._token_s is None else now + self._token_s
                return AttestationEnd(
                    number=judged.number, evaluation="pass", at=now, is_kept=is_first, token_until=until
                )
            case Rejected(findings):
                reason = failure_reason(findings)
                return AttestationEnd(
                    number=judged.number, evaluation="fail", reason=reason, at=now, is_kept=True
                )
            case Incomplete():
                return AttestationEnd(number=judged.number, evaluation="pending", at=now)

    async def _signed(
        self, record: AgentRecord, happening: Happening, notice: Notify
    ) -> StoredRevocation | None:
        read = partial(self._store.secrets_of, record.agent_id)
        is_silence = isinstance(happening, Overdue)
        secrets = await (read() if is_silence else insisting(record.agent_id, read))
        if secrets is None:
            return None
        return signed_notice(record, notice, secrets.revocation_key, int(time.time()))

    async def _written(self, changes: Sequence[Change]) -> list[Ruling | BaseException]:
        """All plain, or none of them."""
        writer = self._passes if all(map(is_plain, changes)) else self._urgent
        return await writer.written(changes)

    def hurry(self) -> None:
        """What waits is written now."""
        self._passes.hurry()

    async def run(self) -> None:
        """Writes what waits, for ever; a defect of one way of writing ends both."""
        async with asyncio.TaskGroup() as writing:
            writing.create_task(self._urgent.run())
            writing.create_task(self._passes.run())


def _outcome(happening: Happening) -> Outcome:
    return Unreachable(OVERDUE) if isinstance(happening, Overdue) else happening


def _is_outdated(push: PushState, judged: Judged) -> bool:
    """Whether a later attestation has been judged: then a pass says nothing new, and a failure still does."""
    is_late = push.judged is not None and push.judged >= judged.number
    return is_late and not isinstance(judged.verdict, Rejected)


def _ends_distrust(before: AgentRecord, after: AgentRecord) -> bool:
    """Whether others may have been warned of an agent that passes now."""
    passes = after.progress.operational_state is OperationalState.GET_QUOTE
    return passes and before.progress.operational_state is not OperationalState.GET_QUOTE


def gravest_text(findings: Sequence[Finding]) -> str:
    """The first finding in a few words, for a line of the log."""
    return findings[0].event_id if findings else "no finding"
