"""Writes outcomes down: routine passes together, everything else at once with its revocation."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from keylime.appraisal.severity import SeverityPolicy
from keylime.appraisal.verdict import Accepted, Incomplete, Rejected
from keylime.database.engine import DatabaseUnavailable
from keylime.errors import CredentialError
from keylime.identifiers import AgentId
from keylime.revocation.message import build_revocation
from keylime.revocation.signing import sign_revocation
from keylime_verifier.findings_log import log_findings
from keylime_verifier.lifecycle import Notify, Outcome, Polling, Refused, Unreachable
from keylime_verifier.progress import is_routine, progress_after
from keylime_verifier.records import AgentRecord, StoredRevocation
from keylime_verifier.store import AgentStore

log = logging.getLogger("keylime.verifier")

ResultT = TypeVar("ResultT")

_BATCH_INTERVAL_S = 1.0
_FIRST_RETRY_S = 0.2
_LONGEST_RETRY_S = 5.0


class Journal:
    """The poller's memory on disk. A database that goes away costs retries, not verdicts."""

    def __init__(
        self,
        store: AgentStore,
        severities: SeverityPolicy,
        targets: Sequence[tuple[str, str]],
        on_revocation: Callable[[], None],
    ) -> None:
        """`targets` are the (channel, target) pairs of enabled notifications; none means no revocations."""
        self._store = store
        self._severities = severities
        self._targets = targets
        self._on_revocation = on_revocation
        self._routine: dict[AgentId, AgentRecord] = {}
        self._flushing = asyncio.Lock()
        self.on_refused: Callable[[Sequence[AgentRecord]], None] = lambda _: None
        """Called with passes that were refused, because other verifiers poll the agents now."""

    def judged(
        self, record: AgentRecord, polling: Polling, outcome: Outcome, *, version: str, goes_on: bool
    ) -> AgentRecord:
        """The record after `outcome`, not written yet."""
        progress = progress_after(
            record.progress,
            polling,
            outcome,
            now=int(time.time()),
            version=version,
            goes_on=goes_on,
            severities=self._severities,
        )
        return replace(record, progress=progress)

    async def write(
        self, before: AgentRecord, after: AgentRecord, outcome: Outcome, notice: Notify | None
    ) -> bool:
        """Writes `after` with the revocation that `notice` asks for, now or, when it is routine, soon.

        False when an operator was faster, or another verifier has taken the agent over.
        """
        _log_outcome(before, after, outcome)
        if notice is None and is_routine(before.progress, after.progress):
            self._routine[after.agent_id] = after
            return True
        async with (
            self._flushing
        ):  # a batch under way may hold an older record, which must not be written last
            self._routine.pop(after.agent_id, None)
        revocation = None
        if notice is not None and self._targets:
            now = int(time.time())
            revocation = await _persistently(lambda: self._sign(after, notice, now))
        written = await _persistently(lambda: self._store.record_change(after, revocation, self._targets))
        if written and revocation is not None:
            self._on_revocation()
        return written

    async def run(self) -> None:
        """Writes routine passes once a second, for ever."""
        while True:
            await asyncio.sleep(_BATCH_INTERVAL_S)
            try:
                await self.flush()
            except DatabaseUnavailable as error:
                log.error("%s; the passes of the last rounds are kept and written later", error)

    async def flush(self) -> None:
        """Writes the routine passes gathered so far; keeps them when that fails."""
        async with self._flushing:
            batch, self._routine = self._routine, {}
            if not batch:
                return
            try:
                refused = await self._store.record_passes(list(batch.values()))
            except BaseException:
                self._routine = {**batch, **self._routine}
                raise
        if refused:
            self.on_refused(refused)

    async def _sign(self, record: AgentRecord, notice: Notify, now: int) -> StoredRevocation | None:
        agent_id = record.agent_id
        secrets = await self._store.secrets_of(agent_id)
        if secrets is None:
            return None
        enrolment = record.enrolment
        message = build_revocation(
            notice.kind,
            agent_id=agent_id,
            ip=enrolment.ip,
            port=enrolment.port,
            tpm_policy=enrolment.tpm_policy,
            meta_data=enrolment.meta_data,
            finding=notice.finding,
            severity_label=notice.severity_label,
            when=datetime.fromtimestamp(now).astimezone(),
        )
        try:
            signed = sign_revocation(message, secrets.revocation_key)
        except CredentialError as error:
            log.error("agent %s: its revocation cannot be signed and is sent unsigned: %s", agent_id, error)
            signed = sign_revocation(message, "")
        return StoredRevocation(uuid.uuid4().hex, agent_id, now, signed.msg, signed.signature)


async def _persistently(work: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """The result of `work`, tried until the database takes it: a verdict is never dropped."""
    delay_s = _FIRST_RETRY_S
    while True:
        try:
            return await work()
        except DatabaseUnavailable as error:
            log.error("%s; trying again in %.1f s", error, delay_s)
        await asyncio.sleep(delay_s)
        delay_s = min(2 * delay_s, _LONGEST_RETRY_S)


def _log_outcome(before: AgentRecord, after: AgentRecord, outcome: Outcome) -> None:
    """One line for each change of state, and the reasons of every rejection."""
    agent_id, state = after.agent_id, after.progress.operational_state
    match outcome:
        case Rejected() as verdict:
            log_findings(agent_id, verdict)
        case Accepted(_, _, notes):
            for note in notes:
                log.info("agent %s: %s", agent_id, note)
            if after.progress.checkpoint.reboots > before.progress.checkpoint.reboots:
                log.info("agent %s: rebooted, attested again from the first IMA entry", agent_id)
        case Incomplete(reason):
            log.info("agent %s: no verdict (%s), asking again", agent_id, reason)
        case Unreachable(reason):
            log.warning("agent %s: not reachable: %s", agent_id, reason)
        case Refused(reason):
            log.error("agent %s: %s", agent_id, reason)
        case _:
            pass
    if state is not before.progress.operational_state:
        log.info("agent %s: %s -> %s", agent_id, before.progress.operational_state.text, state.text)
