"""The polling engine: due agents are asked, appraised and judged, many at a time, none twice at once.

One heap of due times; a slow or silent agent delays nobody else; nothing that goes wrong with one agent ends
the loop. All deciding is done by `appraisal` and `lifecycle`; all writing by `Recorder`.
"""

import asyncio
import functools
import heapq
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

from keylime.appraisal.appraise import appraise_stepwise
from keylime.appraisal.challenge import make_challenge
from keylime.appraisal.evidence import quote_finding
from keylime.appraisal.memo import AppraisalMemo
from keylime.appraisal.reference import Reference
from keylime.appraisal.verdict import Rejected, Verdict
from keylime.errors import (
    AnswerPutOff,
    CredentialError,
    KeylimeError,
    MalformedMessage,
    OwnCertificateFailed,
    PeerRefused,
    PeerUnreachable,
    UnusableAnswer,
    WrongPeerKey,
)
from keylime.findings.severity import SeverityPolicy
from keylime.identifiers import AgentId
from keylime.messages.verifier import NOTHING_JUDGED, OperationalState
from keylime.nonce import new_nonce
from keylime.payload.keys import encrypt_share
from keylime_verifier.agent_client import MAX_ANSWER, AgentClient, NoCommonVersion
from keylime_verifier.agents.lifecycle import (
    Cadence,
    Command,
    Defect,
    Notify,
    Outcome,
    PollAfter,
    ProvideV,
    Refused,
    StopPolling,
    Unreachable,
    Unusable,
    VDelivered,
    WrongKey,
    advance,
    silence_remark,
)
from keylime_verifier.agents.progress import polling_of
from keylime_verifier.agents.records import AgentRecord, Enrolment, HeldVersions
from keylime_verifier.polling.answer_budget import AnswerBudget, AnswerReservation
from keylime_verifier.polling.due_times import due_at, given_up_due_at, tick_s
from keylime_verifier.polling.fencing import Ruling
from keylime_verifier.polling.judging_turns import judged_in_turn
from keylime_verifier.polling.meter import Meter
from keylime_verifier.polling.pace import Pace, lag_remark
from keylime_verifier.polling.polled_agent import PolledAgent
from keylime_verifier.polling.recorder import Recorder

log = logging.getLogger("keylime.verifier")

ConnectAgent = Callable[[AgentRecord], AgentClient]
BuildReference = Callable[[AgentRecord], Awaitable[tuple[Reference, HeldVersions]]]
ReadV = Callable[[AgentId], Awaitable[bytes | None]]

_TELL_S = 60.0


class _Due(NamedTuple):
    """Of two that are due at the same time the one comes first that was scheduled first."""

    at: float
    order: int
    agent: PolledAgent
    action: PollAfter | ProvideV


class Poller:
    """Polls the agents it was given until they are dropped, fail for good, or the poller is stopped."""

    def __init__(
        self,
        *,
        connect: ConnectAgent,
        build_reference: BuildReference,
        read_v: ReadV,
        recorder: Recorder,
        cadence: Cadence,
        severities: SeverityPolicy,
        max_concurrent: int,
        budget: AnswerBudget | None = None,
        pace: Pace | None = None,
        now: Callable[[], float] = time.time,
        meter: Meter | None = None,
    ) -> None:
        """`now` is the clock by which policies end."""
        self._now = now
        self._meter = meter or Meter()
        self._connect = connect
        self._build_reference = build_reference
        self._read_v = read_v
        self._recorder = recorder
        self._cadence = cadence
        self._severities = severities
        self._slots = asyncio.Semaphore(max_concurrent)
        # Each of those that were given up may take a time-out: a fleet of them delays nobody else.
        self._silent_slots = asyncio.Semaphore(max(max_concurrent // 4, 1))
        self._budget = AnswerBudget() if budget is None else budget
        self._pace = Pace() if pace is None else pace
        self._memo = AppraisalMemo()
        self._agents: dict[AgentId, PolledAgent] = {}
        self._heap: list[_Due] = []
        self._order = itertools.count()
        self._last_silent_at = 0.0  # when the last question to one that was given up is due
        self._wake = asyncio.Event()
        self._turns: set[asyncio.Task[None]] = set()
        self._tell_at = self._tell_lag_at = 0.0
        self._credentials = 0  # how often our certificates have changed
        self.defects = 0
        self.own_failures = 0  # rounds that our own certificate has cost

    def adopt(self, record: AgentRecord, *, delay_s: float = 0.0) -> None:
        """Starts polling an agent, in place of anything known under its id."""
        self.drop(record.agent_id)
        agent = PolledAgent(record, polling_of(record))
        self._agents[record.agent_id] = agent
        self._schedule(agent, PollAfter(delay_s, renew_key=True))

    def drop(self, agent_id: AgentId) -> None:
        """Forgets an agent; a request in flight is given up and its answer counts for nothing (S5)."""
        agent = self._agents.pop(agent_id, None)
        if agent is None:
            return
        agent.drop()
        if agent.turn is None:
            self._disconnect(agent)

    def forget_references(self, is_affected: Callable[[Enrolment], bool]) -> int:
        """The next rounds of some agents use their policies as they are stored then (S6); how many agents."""
        affected = [agent for agent in self._agents.values() if is_affected(agent.record.enrolment)]
        for agent in affected:
            agent.held.forget()
        return len(affected)

    def hold_to(self, agent_id: AgentId, versions: HeldVersions) -> None:
        """The next round of an agent uses these versions of its policies, if it has used others so far."""
        agent = self._agents.get(agent_id)
        if agent is not None:
            agent.held.expect(versions)

    def reconnect(self) -> None:
        """The next round of every agent begins with a new connection; rounds under way keep theirs."""
        self._credentials += 1
        for agent in self._agents.values():
            if agent.turn is None:
                self._disconnect(agent)

    def polled(self) -> dict[AgentId, AgentRecord]:
        """The freshest records of all agents that are being polled here."""
        return {agent_id: agent.record for agent_id, agent in self._agents.items()}

    def current(self, agent_id: AgentId) -> AgentRecord | None:
        """The freshest record of an agent that is being polled here."""
        agent = self._agents.get(agent_id)
        return None if agent is None else agent.record

    async def run(self) -> None:
        """Starts what is due, for ever. Ends by cancellation, which leaves the agents to `close`."""
        look_again_s: float | None = 0.0
        while True:
            await self._wait(look_again_s)
            look_again_s = self._start_due()

    def give_way(self, others_wait: Callable[[], bool]) -> None:
        """Has turns of the loop be shorter as long as others wait for theirs."""
        self._pace.others_wait = others_wait

    def lag_remark(self) -> str | None:
        """What operators are told of agents that are asked later than they should be, if anything."""
        return lag_remark(self._pace.lag_s, self._cadence.quote_interval_s)

    async def drop_all(self, agent_ids: Collection[AgentId], limit_s: float) -> None:
        """Drops agents; verdicts about them that are being written get up to `limit_s` seconds."""
        turns = [
            agent.turn
            for agent_id in agent_ids
            if (agent := self._agents.get(agent_id)) is not None and agent.turn is not None
        ]
        for agent_id in agent_ids:
            self.drop(agent_id)
        if turns:
            await asyncio.wait(turns, timeout=limit_s)

    async def close(self, drain_s: float) -> None:
        """Drops all agents; verdicts that are being written get up to `drain_s` seconds. For the end."""
        for agent_id in list(self._agents):
            self.drop(agent_id)
        deadline = asyncio.get_running_loop().time() + drain_s
        while self._turns:
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0:
                for task in self._turns:
                    task.cancel()
            await asyncio.wait(self._turns, timeout=max(left_s, 0.1))

    async def _wait(self, most_s: float | None) -> None:
        """Until something is due earlier than before, or places are free; for `most_s` if it is given."""
        self._wake.clear()
        timer = None
        if most_s is not None:
            timer = asyncio.get_running_loop().call_later(most_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    def _start_due(self) -> float | None:
        """Starts what is due, as much as may be; after how many seconds there may be more, if ever."""
        now = asyncio.get_running_loop().time()
        left = self._pace.may_start()
        while self._heap and self._heap[0].at <= now:
            if not self._heap[0].agent.is_dropped:
                if left <= 0:
                    self._tell_of_lag()
                    return self._pace.look_again_s()
                left -= 1
            self._start_turn(heapq.heappop(self._heap), now)
        return self._heap[0].at - now if self._heap else None

    def _schedule(self, agent: PolledAgent, action: PollAfter | ProvideV) -> None:
        # Spreads load; no secret depends on it.
        chance = random.uniform(-1, 1)  # noqa: S311
        tick = tick_s(self._cadence.quote_interval_s, len(self._agents))
        at = due_at(asyncio.get_running_loop().time(), action.delay_s, tick, chance)
        if agent.polling.state is OperationalState.FAILED:
            at = self._last_silent_at = given_up_due_at(at, self._last_silent_at, len(self._agents))
        due = _Due(at, next(self._order), agent, action)
        heapq.heappush(self._heap, due)
        if self._heap[0] is due:
            self._wake.set()

    def _start_turn(self, due: _Due, now: float) -> None:
        agent = due.agent
        if agent.is_dropped:
            return
        self._meter.began(now - due.at)
        self._pace.begin(agent, now - due.at)
        turn = asyncio.create_task(self._turn(agent, due.action))
        agent.begin(turn)
        self._turns.add(turn)
        turn.add_done_callback(functools.partial(self._end_turn, agent))

    def _end_turn(self, agent: PolledAgent, task: "asyncio.Task[None]") -> None:
        self._turns.discard(task)
        self._free(agent)
        if agent.end(task) and (agent.is_dropped or agent.credentials != self._credentials):
            self._disconnect(agent)

    def _free(self, agent: PolledAgent) -> None:
        """Lets others start: nothing is left to do about this one but to wait, if at all."""
        if self._pace.end(agent):
            self._wake.set()

    async def _turn(self, agent: PolledAgent, action: PollAfter | ProvideV) -> None:
        with self._budget.place(agent.long_answers) as place:
            outcome = await self._attempt_in_turn(agent, action, place)
            agent.long_answers += place.is_long
        self._free(agent)
        agent.conclude()
        try:
            await self._conclude(agent, outcome)
        except Exception:
            self.defects += 1
            log.exception("agent %s: an outcome was lost by a defect, asking again", agent.record.agent_id)
            if not agent.is_dropped:
                self._schedule(agent, PollAfter(self._cadence.retry_delay_s(1), renew_key=True))

    async def _attempt_in_turn(
        self, agent: PolledAgent, action: PollAfter | ProvideV, place: AnswerReservation
    ) -> Outcome:
        """What came of one action. An answer that is put off is asked for again when there is room for it."""
        was_given_up = agent.polling.state is OperationalState.FAILED
        while True:
            async with self._silent_slots if was_given_up else self._slots:
                try:
                    return await self._attempt(agent, action, place)
                except AnswerPutOff as error:
                    size = error.size
            self._free(agent)
            log.debug("agent %s: waits for room for %d bytes", agent.record.agent_id, size)
            await place.wait_for(min(size + size // 8, MAX_ANSWER))  # its list grows meanwhile

    async def _attempt(
        self, agent: PolledAgent, action: PollAfter | ProvideV, place: AnswerReservation
    ) -> Outcome:
        """What came of one action. Whatever goes wrong in here is an outcome, never the end of the loop."""
        try:
            if isinstance(action, ProvideV):
                return await self._provide_v(agent, action.public_key)
            if agent.polling.state is OperationalState.FAILED:
                await self._client_of(agent).probe()
            return await self._attest(agent, place, renew_key=action.renew_key)
        except AnswerPutOff:
            raise
        except OwnCertificateFailed as error:
            self._tell_of_own_certificate(error)
            return Defect(str(error))
        except UnusableAnswer as error:
            return Unusable(str(error))
        except WrongPeerKey as error:
            return WrongKey(str(error))
        except PeerUnreachable as error:
            return Unreachable(str(error))
        except NoCommonVersion as error:
            if error.offered is not None:
                log.warning(
                    "Agent %s new API version %s is lower or equal to previous version %s",
                    agent.record.agent_id,
                    error.offered,
                    agent.record.progress.supported_version,
                )
            return Refused(str(error), version=True)
        except PeerRefused as error:
            return Refused(f"the agent answered {error}")
        except KeylimeError as error:  # a record or policy that cannot be used, a database that is away
            self.defects += 1
            log.error("agent %s: cannot be attested now: %s", agent.record.agent_id, error)
            return Defect(str(error))
        except Exception as error:
            self.defects += 1
            log.exception(
                "agent %s: attestation failed because of a defect of the verifier", agent.record.agent_id
            )
            return Defect(type(error).__name__)

    def _tell_of_lag(self) -> None:
        """Once a minute, as `/readyz` says it all the time."""
        now = asyncio.get_running_loop().time()
        if now >= self._tell_lag_at and (remark := self.lag_remark()) is not None:
            self._tell_lag_at = now + _TELL_S
            log.warning("%s", remark)

    def _tell_of_own_certificate(self, error: OwnCertificateFailed) -> None:
        """Once a minute: it is the same for all agents, and no word about any of them."""
        self.own_failures += 1
        now = asyncio.get_running_loop().time()
        if now >= self._tell_at:
            self._tell_at = now + _TELL_S
            log.error("agents cannot be attested now, which is our own defect: %s", error)

    async def _attest(self, agent: PolledAgent, place: AnswerReservation, *, renew_key: bool) -> Verdict:
        client, agent_id = self._client_of(agent), agent.record.agent_id
        if agent.held.is_over(self._now()):
            agent.held.forget()
        reference = agent.held.reference
        if reference is None:
            forgets = agent.held.forgets
            reference, versions = await self._build_reference(agent.record)
            if reference.judges_nothing:
                log.warning("agent %s: attested, %s: no policy makes a demand", agent_id, NOTHING_JUDGED)
            agent.held.keep(reference, versions, forgets)
            agent.held_to = versions
        else:
            agent.held_to = agent.held.versions
        checkpoint = agent.record.progress.checkpoint.under_policy(
            reference.runtime_policy.content_hash, reference.succeeded
        )
        challenge = make_challenge(reference, checkpoint, new_nonce(), renew_key=renew_key)
        asked_at = time.perf_counter()
        try:
            answer = await client.quote(challenge, place.admit)
        except MalformedMessage as error:
            finding = quote_finding("invalid_data", "the agent's answer is not a quote", error=str(error))
            return Rejected((finding,), checkpoint.restarted())
        self._meter.asked(time.perf_counter() - asked_at)
        steps = appraise_stepwise(answer, challenge, reference, checkpoint, self._memo)
        verdict, took_s = None, 0.0
        while verdict is None:
            await self._pace.room(agent)
            verdict, more_s = await judged_in_turn(steps, self._budget, place)
            took_s += more_s
        self._meter.appraised(took_s)
        return verdict

    async def _provide_v(self, agent: PolledAgent, public_key: str) -> Outcome:
        share = await self._read_v(agent.record.agent_id)
        if share is None:
            return VDelivered(public_key)
        try:
            encrypted = encrypt_share(public_key, share)
        except CredentialError as error:
            return Refused(f"V cannot be encrypted to the agent's public key: {error}")
        await self._client_of(agent).provide_v(encrypted)
        return VDelivered(public_key)

    async def _conclude(self, agent: PolledAgent, outcome: Outcome) -> None:
        """Judges the outcome, writes it down, and only then acts on it."""
        if agent.is_dropped:
            return
        self._meter.concluded(outcome)
        before = agent.record, agent.polling
        polling, commands = advance(agent.polling, outcome, self._cadence, self._severities)
        notices = [command for command in commands if isinstance(command, Notify)]
        version = before[0].progress.supported_version if agent.client is None else agent.client.version
        if version != before[0].progress.supported_version:
            log.info(
                "Agent %s API version updated from %s to %s",
                before[0].agent_id,
                before[0].progress.supported_version,
                version,
            )
        goes_on = not any(isinstance(command, StopPolling) for command in commands)
        record = self._recorder.judged(agent.record, polling, outcome, version=version, goes_on=goes_on)
        # Before it is written: while a database is away, nobody must see a pass that is no longer true. What
        # is not written yet is shown as pending (`Recorder.unwritten`).
        agent.record, agent.polling = record, polling
        try:
            ruling = await self._recorder.write(
                before[0], record, outcome, notices[0] if notices else None, held_to=agent.held_to
            )
        except BaseException:
            agent.record, agent.polling = before
            raise
        if ruling is Ruling.COUNTS and not goes_on:
            log.warning(
                "Agent %s failed, stopping polling: %s (%s)",
                record.agent_id,
                polling.state.text,
                polling.last_event_id,
            )
        if agent.is_dropped:  # perhaps by whoever has seen what was written before this did
            return
        if ruling is not Ruling.COUNTS:  # an operator was faster, or another verifier
            self.drop(record.agent_id)
            return
        if remark := silence_remark(before[1], polling, commands, self._cadence):
            log.warning("agent %s: %s", polling.agent, remark)
        for command in commands:
            self._carry_out(agent, command)

    def _client_of(self, agent: PolledAgent) -> AgentClient:
        if agent.client is None:
            agent.client, agent.credentials = self._connect(agent.record), self._credentials
        agent.client.is_attested = agent.polling.attestation_count > 0
        return agent.client

    def _carry_out(self, agent: PolledAgent, command: Command) -> None:
        match command:
            case PollAfter() | ProvideV():
                self._schedule(agent, command)
            case StopPolling():
                self.drop(agent.record.agent_id)
            case Notify():
                pass  # written with the verdict, delivered from the outbox

    def _disconnect(self, agent: PolledAgent) -> None:
        client, agent.client = agent.client, None
        if client is None:
            return
        task = asyncio.create_task(client.close())
        self._turns.add(task)
        task.add_done_callback(self._turns.discard)
