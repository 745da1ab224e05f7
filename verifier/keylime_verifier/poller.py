"""The polling engine: due agents are asked, appraised and judged, many at a time, none twice at once.

One heap of due times; a slow or silent agent delays nobody else; nothing that goes wrong with one agent ends
the loop. All deciding is done by `appraisal` and `lifecycle`; all writing by `Journal`.
"""

import asyncio
import functools
import heapq
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

from keylime.appraisal.appraise import appraise_stepwise
from keylime.appraisal.challenge import make_challenge
from keylime.appraisal.evidence import quote_finding
from keylime.appraisal.memo import AppraisalMemo
from keylime.appraisal.reference import Reference
from keylime.appraisal.severity import SeverityPolicy
from keylime.appraisal.verdict import Rejected, Verdict
from keylime.errors import CredentialError, KeylimeError, MalformedMessage, PeerRefused, PeerUnreachable
from keylime.identifiers import AgentId
from keylime.nonce import new_nonce
from keylime.payload.keys import encrypt_share
from keylime_verifier.agent_client import AgentClient, NoCommonVersion
from keylime_verifier.journal import Journal
from keylime_verifier.lifecycle import (
    Cadence,
    Command,
    Defect,
    Notify,
    Outcome,
    PollAfter,
    Polling,
    ProvideV,
    Refused,
    StopPolling,
    Unreachable,
    VDelivered,
    advance,
)
from keylime_verifier.records import AgentRecord, Enrolment, PolicyVersions

log = logging.getLogger("keylime.verifier")

ConnectAgent = Callable[[AgentRecord], AgentClient]
BuildReference = Callable[[AgentRecord], Awaitable[tuple[Reference, PolicyVersions]]]
ReadV = Callable[[AgentId], Awaitable[bytes | None]]

_JITTER = 0.05  # of the interval: agents added together drift apart
# Of the interval: agents that are due at almost the same time are asked together. To wake up for each of them
# costs more CPU, most of it for caches that have gone cold.
_TICK = 0.01


@dataclass(slots=True, eq=False)
class PolledAgent:
    """One agent under way. `dropped` tells a turn in flight that it no longer counts."""

    record: AgentRecord
    polling: Polling
    client: AgentClient | None = None  # made at the first turn: a bad record must fail there and not earlier
    reference: Reference | None = None
    versions: PolicyVersions | None = None  # of the policies in the reference
    references_forgotten: int = 0  # tells a turn that what it builds is outdated already
    dropped: bool = False
    turn: asyncio.Task[None] | None = None
    is_concluding: bool = False  # the turn has its outcome and is writing it down
    is_outdated: bool = False  # the client's certificate is no longer the one to show

    def forget_reference(self) -> None:
        """The next round builds it anew; what a round under way builds is not kept."""
        self.reference = None
        self.references_forgotten += 1


@dataclass(order=True, slots=True)
class _Due:
    at: float
    order: int
    agent: PolledAgent = field(compare=False)
    action: PollAfter | ProvideV = field(compare=False)


class Poller:
    """Polls the agents it was given until they are dropped, fail for good, or the poller is stopped."""

    def __init__(
        self,
        *,
        connect: ConnectAgent,
        build_reference: BuildReference,
        read_v: ReadV,
        journal: Journal,
        cadence: Cadence,
        severities: SeverityPolicy,
        max_concurrent: int,
    ) -> None:
        self._connect = connect
        self._build_reference = build_reference
        self._read_v = read_v
        self._journal = journal
        self._cadence = cadence
        self._tick_s = max(_TICK * cadence.quote_interval_s, 1e-6)
        self._severities = severities
        self._slots = asyncio.Semaphore(max_concurrent)
        self._memo = AppraisalMemo()
        self._agents: dict[AgentId, PolledAgent] = {}
        self._heap: list[_Due] = []
        self._order = itertools.count()
        self._wake = asyncio.Event()
        self._turns: set[asyncio.Task[None]] = set()
        self.defects = 0

    def adopt(self, record: AgentRecord, *, delay_s: float = 0.0) -> None:
        """Starts polling an agent, in place of anything known under its id."""
        self.drop(record.agent_id)
        agent = PolledAgent(record, _polling_of(record))
        self._agents[record.agent_id] = agent
        self._schedule(agent, PollAfter(delay_s, renew_key=True))

    def drop(self, agent_id: AgentId) -> None:
        """Forgets an agent; a request in flight is given up and its answer counts for nothing (S5)."""
        agent = self._agents.pop(agent_id, None)
        if agent is None:
            return
        agent.dropped = True
        agent.reference = None  # what is left of it waits in the heap until it would have been due
        if agent.turn is None:
            self._disconnect(agent)
        elif not agent.is_concluding:  # no transaction is cut off: the store refuses what is stale
            agent.turn.cancel()

    def forget_references(self, is_affected: Callable[[Enrolment], bool]) -> int:
        """The next rounds of some agents use their policies as they are stored then (S6); how many agents."""
        affected = [agent for agent in self._agents.values() if is_affected(agent.record.enrolment)]
        for agent in affected:
            agent.forget_reference()
        return len(affected)

    def hold_to(self, agent_id: AgentId, versions: PolicyVersions) -> None:
        """The next round of an agent uses these versions of its policies, if it has used others so far."""
        agent = self._agents.get(agent_id)
        if agent is not None and agent.versions != versions:
            agent.forget_reference()

    def reconnect(self) -> None:
        """The next round of every agent begins with a new connection; rounds under way keep theirs."""
        for agent in self._agents.values():
            agent.is_outdated = True
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
        while True:
            await self._wait_until_due()
            while self._heap and self._heap[0].at <= asyncio.get_running_loop().time():
                self._start_turn(heapq.heappop(self._heap))

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

    async def _wait_until_due(self) -> None:
        self._wake.clear()
        timer = None
        if self._heap:
            timer = asyncio.get_running_loop().call_at(self._heap[0].at, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    def _schedule(self, agent: PolledAgent, action: PollAfter | ProvideV) -> None:
        # Spreads load; no secret depends on it.
        delay_s = action.delay_s * (1 + random.uniform(-_JITTER, _JITTER))  # noqa: S311
        at = asyncio.get_running_loop().time() + delay_s
        if delay_s > self._tick_s:
            at = round(at / self._tick_s) * self._tick_s
        due = _Due(at, next(self._order), agent, action)
        heapq.heappush(self._heap, due)
        if self._heap[0] is due:
            self._wake.set()

    def _start_turn(self, due: _Due) -> None:
        agent = due.agent
        if agent.dropped:
            return
        agent.is_concluding = False
        agent.turn = asyncio.create_task(self._turn(agent, due.action))
        self._turns.add(agent.turn)
        agent.turn.add_done_callback(functools.partial(self._end_turn, agent))

    def _end_turn(self, agent: PolledAgent, task: "asyncio.Task[None]") -> None:
        self._turns.discard(task)
        if agent.turn is task:  # else the next one has begun already
            agent.turn = None
            if agent.dropped or agent.is_outdated:
                self._disconnect(agent)

    async def _turn(self, agent: PolledAgent, action: PollAfter | ProvideV) -> None:
        async with self._slots:
            outcome = await self._attempt(agent, action)
        agent.is_concluding = True
        try:
            await self._conclude(agent, outcome)
        except Exception:
            self.defects += 1
            log.exception("agent %s: an outcome was lost by a defect, asking again", agent.record.agent_id)
            if not agent.dropped:
                self._schedule(agent, PollAfter(self._cadence.retry_delay_s(1), renew_key=True))

    async def _attempt(self, agent: PolledAgent, action: PollAfter | ProvideV) -> Outcome:
        """What came of one action. Whatever goes wrong in here is an outcome, never the end of the loop."""
        try:
            if isinstance(action, ProvideV):
                return await self._provide_v(agent, action.public_key)
            return await self._attest(agent, renew_key=action.renew_key)
        except PeerUnreachable as error:
            return Unreachable(str(error))
        except NoCommonVersion as error:
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

    async def _attest(self, agent: PolledAgent, *, renew_key: bool) -> Verdict:
        client = self._client_of(agent)
        reference = agent.reference
        if reference is None:
            forgotten = agent.references_forgotten
            reference, versions = await self._build_reference(agent.record)
            if forgotten == agent.references_forgotten:
                agent.reference, agent.versions = reference, versions
        checkpoint = agent.record.progress.checkpoint.under_policy(reference.runtime_policy.content_hash)
        challenge = make_challenge(reference, checkpoint, new_nonce(), renew_key=renew_key)
        try:
            reply = await client.quote(challenge)
        except MalformedMessage as error:
            finding = quote_finding("invalid_data", "the agent's answer is not a quote", error=str(error))
            return Rejected((finding,), checkpoint.restarted())
        steps = appraise_stepwise(reply, challenge, reference, checkpoint, self._memo)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                verdict: Verdict = end.value
                return verdict
            await asyncio.sleep(0)

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
        if agent.dropped:
            return
        before = agent.record, agent.polling
        polling, commands = advance(agent.polling, outcome, self._cadence, self._severities)
        notices = [command for command in commands if isinstance(command, Notify)]
        version = before[0].progress.supported_version if agent.client is None else agent.client.version
        record = self._journal.judged(
            agent.record,
            polling,
            outcome,
            version=version,
            goes_on=not any(isinstance(command, StopPolling) for command in commands),
        )
        # Before it is written: while a database is away, nobody must see a pass that is no longer true.
        agent.record, agent.polling = record, polling
        try:
            is_ours = await self._journal.write(before[0], record, outcome, notices[0] if notices else None)
        except BaseException:
            agent.record, agent.polling = before
            raise
        if agent.dropped:
            return
        if not is_ours:  # an operator was faster, or another verifier has taken over
            self.drop(record.agent_id)
            return
        for command in commands:
            self._carry_out(agent, command)

    def _client_of(self, agent: PolledAgent) -> AgentClient:
        if agent.client is None:
            agent.client = self._connect(agent.record)
        agent.client.is_attested = agent.polling.attestation_count > 0
        return agent.client

    def _carry_out(self, agent: PolledAgent, command: Command) -> None:
        match command:
            case PollAfter() | ProvideV():
                self._schedule(agent, command)
            case StopPolling():
                log.warning(
                    "agent %s: %s (%s), stopping polling",
                    agent.record.agent_id,
                    agent.polling.state.text,
                    agent.polling.last_event_id,
                )
                self.drop(agent.record.agent_id)
            case Notify():
                pass  # written with the verdict, delivered from the outbox

    def _disconnect(self, agent: PolledAgent) -> None:
        client, agent.client, agent.is_outdated = agent.client, None, False
        if client is None:
            return
        task = asyncio.create_task(client.close())
        self._turns.add(task)
        task.add_done_callback(self._turns.discard)


def _polling_of(record: AgentRecord) -> Polling:
    """The state machine's view of a stored agent; one in the middle of something starts again."""
    progress = record.progress
    return Polling(
        agent=record.agent_id,
        state=progress.operational_state,
        attestation_count=progress.attestation_count,
        severity_rank=progress.severity_level,
        last_event_id=progress.last_event_id,
        has_v=record.enrolment.has_v,
        v_delivered_to=progress.v_delivered_to,
    )
