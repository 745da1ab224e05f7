"""Judges evidence in the background, after its agent has been told that it is there.

The same appraisal as for agents that are polled; here it is only put together.
"""

import asyncio
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import msgspec

from keylime import patience
from keylime.appraisal.appraise import appraise_stepwise
from keylime.appraisal.memo import AppraisalMemo
from keylime.appraisal.reference import Reference
from keylime.appraisal.verdict import Accepted, Incomplete, Rejected, Verdict
from keylime.errors import KeylimeError
from keylime.identifiers import AgentId
from keylime_verifier.agents.lifecycle import Defect
from keylime_verifier.agents.policy_categories import PolicyHashes
from keylime_verifier.agents.records import AgentRecord
from keylime_verifier.polling.answer_budget import AnswerBudget, AnswerReservation
from keylime_verifier.polling.fencing import Ruling
from keylime_verifier.polling.judging_turns import judged_in_turn
from keylime_verifier.polling.meter import Meter
from keylime_verifier.pushing.collected import Collected, answer_of, challenge_of
from keylime_verifier.pushing.insistence import insisting
from keylime_verifier.pushing.journal import Judged, PushedVerdicts, gravest_text
from keylime_verifier.pushing.kept_references import KeptReferences
from keylime_verifier.pushing.negotiation import boottime_in, quoted_pcrs

log = logging.getLogger("keylime.verifier")

MOST_AT_ONCE = 500
"""Pieces of evidence that wait for their verdict."""


class ReceivedEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence that was received: for which attestation of an agent, of which boot.

    The record and its policies are as they were read with the request that brought it; whoever writes the
    verdict sees whether they still are.
    """

    record: AgentRecord
    policies: PolicyHashes
    number: int
    boot_time: float
    collected: Collected

    @property
    def agent_id(self) -> AgentId:
        """Whose it is."""
        return self.record.agent_id


class TooMuchEvidence(KeylimeError):
    """Evidence that is not taken now: too much waits for a verdict, or there is no room for its logs."""


class Judging:
    """What is under way of it in this process."""

    def __init__(
        self, references: KeptReferences, journal: PushedVerdicts, budget: AnswerBudget, meter: Meter
    ) -> None:
        self._references = references
        self._journal = journal
        self._budget = budget
        self._meter = meter
        self._memo = AppraisalMemo()
        self._tasks: set[asyncio.Task[None]] = set()

    def demand_room(self, size: int) -> "Room":
        """Room for evidence whose logs have `size` bytes. Raises TooMuchEvidence."""
        if len(self._tasks) >= MOST_AT_ONCE:
            raise TooMuchEvidence("too much evidence waits for its verdict")
        stack = ExitStack()
        place = stack.enter_context(self._budget.place(0))
        if not place.admit(size):
            stack.close()
            raise TooMuchEvidence("there is no room for a log of this length now")
        return Room(place, stack)

    def begin(self, evidence: ReceivedEvidence, room: "Room") -> None:
        """Judges `evidence`, and gives the room back when that is done."""
        task = asyncio.create_task(self._judge(evidence, room.place))
        self._tasks.add(task)

        def over(_task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            room.close()

        task.add_done_callback(over)

    async def close(self, limit_s: float) -> None:
        """Ends what is under way; verdicts that are nearly there get so many seconds."""
        if self._tasks:
            self._journal.hurry()
            await asyncio.wait(self._tasks, timeout=limit_s)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _judge(self, evidence: ReceivedEvidence, place: AnswerReservation) -> None:
        # Whoever has sent it has got his answer: what comes now is work of our own.
        with patience.for_long_work(patience.OWN_WORK_S):
            await self._judge_patiently(evidence, place)

    async def _judge_patiently(self, evidence: ReceivedEvidence, place: AnswerReservation) -> None:
        if await self._has_verdict(evidence, place):
            return
        try:
            await self._journal.unjudged(evidence.record, evidence.number)
        except Exception:
            log.exception(
                "agent %s: attestation %d waits until it is given up", evidence.agent_id, evidence.number
            )

    async def _has_verdict(self, evidence: ReceivedEvidence, place: AnswerReservation) -> bool:
        """Whether it could be judged."""
        agent_id, record = evidence.agent_id, evidence.record
        try:
            of_agent = partial(self._references.of, record, evidence.policies)
            reference, held_to = await insisting(agent_id, of_agent)
            verdict = await self._verdict(evidence, record, reference, place)
            ruling = await self._journal.judged(
                Judged(record=record, number=evidence.number, verdict=verdict, held_to=held_to)
            )
        except KeylimeError as error:
            self._meter.pushed(Defect(str(error)))
            log.error("agent %s: attestation %d cannot be judged now: %s", agent_id, evidence.number, error)
        except Exception:
            self._meter.pushed(Defect("see the log"))
            log.exception(
                "agent %s: attestation %d failed because of a defect of the verifier",
                agent_id,
                evidence.number,
            )
        else:
            _log_verdict(evidence, verdict, ruling)
            return True
        return False

    async def _verdict(
        self, evidence: ReceivedEvidence, record: AgentRecord, reference: Reference, place: AnswerReservation
    ) -> Verdict:
        collected = evidence.collected
        checkpoint = record.progress.checkpoint.under_policy(
            reference.runtime_policy.content_hash, reference.succeeded
        )
        if not collected.asked >= quoted_pcrs(reference):
            return Incomplete("its policies have demanded more since it was asked", checkpoint)
        if collected.ima_entry not in (0, checkpoint.ima.next_entry):
            return Incomplete("its IMA list has been judged otherwise since it was asked", checkpoint)
        answer = answer_of(collected, reference, boottime_in(checkpoint, evidence.boot_time))
        steps = appraise_stepwise(answer, challenge_of(collected), reference, checkpoint, self._memo)
        verdict = None
        while verdict is None:
            verdict, _ = await judged_in_turn(steps, self._budget, place)
        return verdict


@dataclass(frozen=True, slots=True)
class Room:
    """What is held of the budget for one piece of evidence."""

    place: AnswerReservation
    _stack: ExitStack

    def close(self) -> None:
        """Gives it back."""
        self._stack.close()


def _log_verdict(evidence: ReceivedEvidence, verdict: Verdict, ruling: Ruling) -> None:
    number, agent_id = evidence.number, evidence.agent_id
    if ruling is not Ruling.COUNTS:
        log.info("agent %s: the verdict on attestation %d does not count: %s", agent_id, number, ruling.value)
        return
    match verdict:  # monitors look for the first words
        case Accepted():
            log.info("Attestation %d for agent '%s' successfully passed verification", number, agent_id)
        case Rejected(findings):
            log.warning(
                "Attestation %d for agent '%s' failed verification: %s",
                number,
                agent_id,
                gravest_text(findings),
            )
        case Incomplete(reason):
            log.info("Attestation %d for agent '%s' has no verdict: %s", number, agent_id, reason)
