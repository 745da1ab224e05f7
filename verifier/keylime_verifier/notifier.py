"""Carries revocations from the outbox to their targets, at least once, slow targets delaying nobody.

Each target has a queue of its own and one connection: it gets its messages in order, and when it does not
answer, all that wait for it wait. What came of attempts is written down in batches.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from keylime.database.engine import DatabaseUnavailable
from keylime.errors import KeylimeError, PeerUnreachable
from keylime.identifiers import AgentId
from keylime.messages.revocation import SignedRevocation
from keylime_verifier.agent_client import AgentClient
from keylime_verifier.outbox import AGENT, AGENT_WINDOW, DELIVERED, FAILED, PENDING, ZEROMQ, Outbox
from keylime_verifier.ownership import shard_of
from keylime_verifier.records import AgentRecord, Attempt, Delivery

log = logging.getLogger("keylime.revocation_notifier")

# First attempts have slots of their own in each channel: targets that are known to be silent, and each
# attempt at one takes its full time, do not keep the news from the others.
_MAX_FIRST_ATTEMPTS = 200
_MAX_REPEATED_ATTEMPTS = 50
_MAX_READS = 2  # of agents' records at once: others want connections to the database, too
_FEWEST_ATTEMPTS = 3  # also of what became too old while the verifier was not running
_LONGEST_DELAY_S = 60.0
_LOOK_AGAIN_S = 30.0
_PRUNE_INTERVAL_S = 3600.0
_DATABASE_RETRY_S = 1.0
_LAST_RECORD_S = 1.0
_REST = 5.0  # times as long as a look took: when a fleet falls at once, there is news all the time
_LONG_LOOK_S = 0.02

FindAgent = Callable[[AgentId], Awaitable[AgentRecord | None]]
ConnectAgent = Callable[[AgentRecord], AgentClient]
Send = Callable[[SignedRevocation], Awaitable[None]]
"""Takes a message to its target; returns when it is there. PeerUnreachable ends the attempt for all."""
Carrier = Callable[[str, contextlib.AsyncExitStack], Awaitable[Send]]
"""Opens the way to one target; the stack closes it."""


@dataclass(frozen=True, slots=True)
class Persistence:
    """How long and how often: seconds. `retention_s` bounds retries, `history_s` what is kept."""

    retry_interval_s: float
    attempt_limit_s: float
    retention_s: float
    history_s: float

    def delay_s(self, failures: int) -> float:
        """The pause after that many attempts in vain: longer each time, up to a minute."""
        return min(self.retry_interval_s * 2.0 ** min(failures - 1, 16), _LONGEST_DELAY_S)

    def is_over(self, age_s: float, attempts: int) -> bool:
        """Whether to give up."""
        return age_s >= self.retention_s and attempts >= _FEWEST_ATTEMPTS


@dataclass(slots=True, eq=False)
class _Queue:
    """What waits for one target, by revocation id, oldest first."""

    channel: str
    target: str
    waiting: dict[str, Delivery] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    reached: int | None = None  # the number of the last one that came from the backlog
    is_silent: bool = False  # since the last attempt

    def has_use_for(self, delivery: Delivery) -> bool:
        """Whether it is new, and it makes sense to try."""
        is_new = delivery.revocation.revocation_id not in self.waiting
        return is_new and not (self.is_silent and delivery.number is not None)

    def add(self, delivery: Delivery) -> None:
        self.waiting[delivery.revocation.revocation_id] = delivery
        self.reached = self.reached if delivery.number is None else delivery.number
        self.news.set()

    def withdraw(self, revocation_ids: Collection[str]) -> None:
        for revocation_id in revocation_ids:
            del self.waiting[revocation_id]
        self.reached = None
        self.news.set()


class Notifier:
    """Delivers what is pending, now and after every restart, until each target has it or is given up."""

    def __init__(self, outbox: Outbox, carriers: Mapping[str, Carrier], persistence: Persistence) -> None:
        """`carriers` by channel; what is pending for a channel without one is given up."""
        self._outbox = outbox
        self._carriers = carriers
        self._persistence = persistence
        self._must_look = True
        self._prune_at = 0.0
        self._look_at = self._rest_until = 0.0
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()  # of reading and writing the outbox
        self._slots: dict[tuple[str, bool], asyncio.Semaphore] = {}
        self._queues: dict[tuple[str, str], _Queue] = {}  # by channel and target
        self._workers: set[asyncio.Task[None]] = set()
        self._attempts: dict[tuple[str, str, str], Attempt] = {}  # not written down yet
        self._under_way: dict[tuple[str, str, str], Delivery] = {}

    def wake(self) -> None:
        """Tells that the outbox has something new."""
        self._must_look = True
        self._wake.set()

    async def run(self) -> None:
        """Delivers for ever. Ends by cancellation; what is pending then is delivered after the next start."""
        try:
            while True:
                self._wake.clear()
                try:
                    async with self._turn:
                        await self._record()
                        pause_s = await self._look()
                    await self._prune()
                except DatabaseUnavailable as error:
                    log.error("%s; trying again", error)
                    pause_s = _DATABASE_RETRY_S
                await _wait(self._wake, pause_s)
        finally:
            await self._end()

    async def _prune(self) -> None:
        if time.monotonic() < self._prune_at:
            return
        pruned = await self._outbox.prune(int(time.time() - self._persistence.history_s))
        self._prune_at = time.monotonic() + _PRUNE_INTERVAL_S
        if pruned:
            log.info("forgot %d revocations whose deliveries ended long ago", pruned)

    async def _record(self) -> None:
        batch, self._attempts = self._attempts, {}
        if not batch:
            return
        try:
            await self._outbox.record_attempts(list(batch.values()))
        except BaseException:
            self._attempts = {**batch, **self._attempts}
            raise

    async def _look(self) -> float:
        """Reads what is pending if it is time for that; how many seconds it is until the next time."""
        began = time.monotonic()
        due = self._rest_until if self._must_look else self._look_at
        if began < due:
            return due - began
        self._must_look = False
        try:
            pending = await self._outbox.pending()
        except BaseException:
            self._must_look = True
            raise
        now = time.monotonic()
        self._look_at = now + _LOOK_AGAIN_S
        if now - began > _LONG_LOOK_S:
            self._rest_until = now + _REST * (now - began)
        self._take_in(pending)
        return _LOOK_AGAIN_S

    def _take_in(self, pending: Sequence[Delivery]) -> None:
        ours = {delivery.key for delivery in pending}
        agents = {delivery.target for delivery in pending if delivery.channel == AGENT}
        self._withdraw(
            # Of an agent's backlog only a part is read; it is ours as a whole or not at all.
            lambda one: one.target not in agents if one.channel == AGENT else one.key not in ours
        )
        for delivery in pending:
            queue = self._queues.get((delivery.channel, delivery.target))
            # One that ended while the outbox was read may still be in the answer.
            if delivery.key not in self._attempts and (queue is None or queue.has_use_for(delivery)):
                (queue or self._open_queue(delivery.channel, delivery.target)).add(delivery)

    @contextlib.asynccontextmanager
    async def without(self, shards: frozenset[int], limit_s: float) -> AsyncIterator[None]:
        """Within the block nothing is delivered for some shards, which are given up there.

        Attempts under way get up to `limit_s` seconds before. Raises DatabaseUnavailable when what came of
        them cannot be written down.
        """
        try:
            async with self._turn:
                self._withdraw(lambda delivery: _goes_with(delivery, shards))
                deadline = asyncio.get_running_loop().time() + limit_s
                while any(_goes_with(delivery, shards) for delivery in self._under_way.values()):
                    if asyncio.get_running_loop().time() > deadline:
                        break  # it may arrive twice, which is better than never
                    await asyncio.sleep(0.01)
                await self._record()
                yield
        finally:
            self.wake()  # what could not be given up is delivered on

    def _withdraw(self, is_meant: Callable[[Delivery], bool]) -> None:
        for queue in self._queues.values():
            meant = [name for name, delivery in queue.waiting.items() if is_meant(delivery)]
            if meant:
                queue.withdraw(meant)

    def _open_queue(self, channel: str, target: str) -> _Queue:
        queue = self._queues[channel, target] = _Queue(channel, target)
        worker = asyncio.create_task(self._serve(queue))
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)
        return queue

    async def _serve(self, queue: _Queue) -> None:
        """Delivers what waits for one target, until nothing does."""
        failures = 0
        try:
            while queue.waiting:
                queue.news.clear()
                batch = list(queue.waiting.values())
                async with self._slot(queue.channel, is_first=failures == 0):
                    await self._deliver(queue, batch.copy())
                if any(delivery.revocation.revocation_id not in queue.waiting for delivery in batch):
                    failures = 0
                    await self._refill(queue)
                else:
                    failures += 1
                if queue.waiting:
                    await _wait(queue.news, self._persistence.delay_s(max(failures, 1)))
        finally:
            del self._queues[queue.channel, queue.target]

    async def _refill(self, queue: _Queue) -> None:
        """Goes on in an agent's backlog, as far as its window allows."""
        if queue.channel != AGENT:
            return
        async with self._turn:
            if queue.reached is None:
                self.wake()  # it had so many rows already that nothing of its backlog was read
                return
            room = AGENT_WINDOW - len(queue.waiting)
            try:
                following = await self._outbox.following(AgentId(queue.target), queue.reached, room)
            except DatabaseUnavailable:
                self.wake()  # which says so, and looks again when it is back
                return
            for delivery in following:
                queue.add(delivery)

    def _slot(self, channel: str, *, is_first: bool) -> asyncio.Semaphore:
        slots = _MAX_FIRST_ATTEMPTS if is_first else _MAX_REPEATED_ATTEMPTS
        return self._slots.setdefault((channel, is_first), asyncio.Semaphore(slots))

    async def _deliver(self, queue: _Queue, batch: list[Delivery]) -> None:
        """One attempt at each of `batch`, in order, over one connection."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                send = await self._open(queue, stack)
                while batch:
                    if batch[0].revocation.revocation_id in queue.waiting:
                        refusal = await self._send(send, batch[0])
                        queue.is_silent = False
                        self._conclude(queue, batch[0], refusal)
                    batch.pop(0)
            return
        except KeylimeError as error:
            reason = str(error)
        except Exception as error:
            log.exception("delivering a revocation over %s failed", queue.channel)
            reason = type(error).__name__
        queue.is_silent = True
        for delivery in batch:
            if delivery.revocation.revocation_id in queue.waiting:
                self._conclude(queue, delivery, reason)

    async def _open(self, queue: _Queue, stack: contextlib.AsyncExitStack) -> Send:
        carrier = self._carriers.get(queue.channel)
        if carrier is None:
            raise KeylimeError(f"the channel {queue.channel} is not enabled any more")
        return await carrier(queue.target, stack)

    async def _send(self, send: Send, delivery: Delivery) -> str | None:
        """None when it arrived, else why it was refused. Raises PeerUnreachable for a silent target."""
        limit_s = self._persistence.attempt_limit_s
        self._under_way[delivery.key] = delivery
        try:
            async with asyncio.timeout(limit_s):
                await send(SignedRevocation(delivery.revocation.message, delivery.revocation.signature))
        except TimeoutError as error:
            raise PeerUnreachable(f"not done within {limit_s:g} s") from error
        except PeerUnreachable:
            raise
        except KeylimeError as error:
            return str(error)
        finally:
            del self._under_way[delivery.key]
        return None

    def _conclude(self, queue: _Queue, delivery: Delivery, error: str | None) -> None:
        """Notes an attempt; a delivery that is over leaves its queue."""
        tried, now = replace(delivery, attempts=delivery.attempts + 1), int(time.time())
        state = self._state_after(tried, error, now)
        if state != PENDING:
            queue.waiting.pop(delivery.revocation.revocation_id, None)
        elif delivery.revocation.revocation_id in queue.waiting:  # else another verifier carries it now
            queue.waiting[delivery.revocation.revocation_id] = tried
        self._attempts[delivery.key] = Attempt(tried, state, error, now)
        self._wake.set()
        _log(delivery, state, error)

    def _state_after(self, tried: Delivery, error: str | None, now: int) -> str:
        if error is None:
            return DELIVERED
        if tried.channel not in self._carriers:
            return FAILED
        age_s = now - tried.revocation.created_at
        return FAILED if self._persistence.is_over(age_s, tried.attempts) else PENDING

    async def _end(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        try:
            async with asyncio.timeout(_LAST_RECORD_S):
                await self._record()
        except (TimeoutError, DatabaseUnavailable):
            log.error("the last deliveries could not be written down; they will be repeated")


def agent_carrier(find_agent: FindAgent, connect: ConnectAgent) -> Carrier:
    """Posts messages to agents, where they are now. One that was deleted has nobody left to tell."""
    reading = asyncio.Semaphore(_MAX_READS)

    async def open_way(target: str, stack: contextlib.AsyncExitStack) -> Send:
        async with reading:
            record = await find_agent(AgentId(target))
        if record is None:
            return _tell_nobody
        client = connect(record)
        stack.push_async_callback(client.close)
        return client.notify

    return open_way


def broadcast(send: Send) -> Carrier:
    """A carrier for channels that know their one target themselves."""

    async def open_way(_target: str, _stack: contextlib.AsyncExitStack) -> Send:
        return send

    return open_way


def _goes_with(delivery: Delivery, shards: frozenset[int]) -> bool:
    """Whether a delivery is another verifier's to make when `shards` are."""
    if delivery.channel == ZEROMQ:
        return False
    about = delivery.target if delivery.channel == AGENT else delivery.revocation.agent_id
    return shard_of(AgentId(about)) in shards


async def _tell_nobody(_signed: SignedRevocation) -> None:
    """For a target that is gone."""


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    # Not wait_for(): before Python 3.12 it loses a cancellation that comes together with the event.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await event.wait()


def _log(delivery: Delivery, state: str, error: str | None) -> None:
    where = f"{delivery.channel} {delivery.target}"
    about = delivery.revocation.agent_id
    if state == DELIVERED:
        log.info("revocation of agent %s delivered to %s", about, where)
    elif state == FAILED:
        log.error("revocation of agent %s given up for %s: %s", about, where, error)
    else:
        # A target may be away for days: one line tells it, `keylime_tenant -c revocations` the rest.
        level = logging.WARNING if delivery.attempts == 0 else logging.DEBUG
        log.log(level, "revocation of agent %s not delivered to %s yet: %s", about, where, error)
