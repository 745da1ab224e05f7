"""Carries revocations from the outbox to their targets, at least once, slow targets delaying nobody.

Each target has a queue of its own and one connection: it gets its messages in order, and when it does not
answer, all that wait for it wait. What came of attempts is written down in batches.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from keylime.database.engine import DatabaseUnavailable
from keylime.errors import KeylimeError, OwnCertificateFailed, PeerUnreachable, WrongPeerKey
from keylime.identifiers import AgentId
from keylime.messages.revocation import SignedRevocation
from keylime.revocation.message import RevocationKind, kind_in
from keylime_verifier.agent_client import AgentClient
from keylime_verifier.agents.deliveries import (
    AGENT,
    DELIVERED,
    FAILED,
    GONE,
    PENDING,
    WRONG_KEY,
    Channel,
    DeliveryState,
)
from keylime_verifier.agents.records import AgentRecord, Delivery, DeliveryAttempt
from keylime_verifier.revocations.delivery_rules import (
    NOBODY,
    Looks,
    RetryPolicy,
    TargetQueue,
    goes_with,
    is_no_longer_ours,
    is_to_be_added,
    state_after,
)
from keylime_verifier.revocations.outbox import Outbox

log = logging.getLogger("keylime.revocation_notifier")

_WORDS = {
    RevocationKind.REVOCATION: "revocation of",
    RevocationKind.COMM_ERROR: "warning of the silence of",
    RevocationKind.CLEARED: "all-clear for",
}

# First attempts have slots of their own in each channel: targets that are known to be silent, and each
# attempt at one takes its full time, do not keep the news from the others.
_MAX_FIRST_ATTEMPTS = 200
_MAX_REPEATED_ATTEMPTS = 50
_MAX_READS = 2  # of agents' records at once: others want connections to the database, too
_PRUNE_INTERVAL_S = 3600.0
_DATABASE_RETRY_S = 1.0
_LAST_RECORD_S = 1.0

FindAgent = Callable[[AgentId], Awaitable[AgentRecord | None]]
ConnectAgent = Callable[[AgentRecord], AgentClient]
Send = Callable[[SignedRevocation], Awaitable[None]]
"""Takes a message to its target; returns when it is there. PeerUnreachable ends the attempt for all."""
Carrier = Callable[[str, contextlib.AsyncExitStack], Awaitable[Send]]
"""Opens the way to one target; the stack closes it."""


@dataclass(slots=True, eq=False)
class _Served:
    """A target's queue, and the event that ends the pauses of the task that serves it."""

    queue: TargetQueue
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, delivery: Delivery) -> None:
        self.queue.add(delivery)
        self.news.set()


class Notifier:
    """Delivers what is pending, now and after every restart, until each target has it or is given up."""

    def __init__(
        self,
        outbox: Outbox,
        carriers: Mapping[Channel, Carrier],
        retry_policy: RetryPolicy,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`carriers` by channel; what is pending for a channel without one is given up.

        `now` tells the time, in seconds since the epoch, that attempts are stamped with.
        """
        self._outbox = outbox
        self._carriers = carriers
        self._retry_policy = retry_policy
        self._now = now
        self._must_look = True
        self._prune_at = 0.0
        self._looks = Looks()
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()  # of reading and writing the outbox
        self._slots: dict[tuple[str, bool], asyncio.Semaphore] = {}
        self._served: dict[tuple[str, str], _Served] = {}  # by channel and target
        self._workers: set[asyncio.Task[None]] = set()
        self._attempts: dict[tuple[str, str, str], DeliveryAttempt] = {}  # not written down yet
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
        pruned = await self._outbox.prune(int(self._now() - self._retry_policy.history_s))
        self._prune_at = time.monotonic() + _PRUNE_INTERVAL_S
        if pruned:
            log.info("forgot %d revocations whose deliveries ended long ago", pruned)

    async def _record(self) -> None:
        batch, self._attempts = self._attempts, {}
        if not batch:
            return
        try:
            if not await self._outbox.record_attempts(list(batch.values())):
                self._must_look = True
        except BaseException:
            self._attempts = {**batch, **self._attempts}
            raise

    async def _look(self) -> float:
        """Reads what is pending if it is time for that; how many seconds it is until the next time."""
        began = time.monotonic()
        wait_s = self._looks.wait_s(began, has_news=self._must_look)
        if wait_s > 0:
            return wait_s
        self._must_look = False
        try:
            pending = await self._outbox.pending()
        except BaseException:
            self._must_look = True
            raise
        ended = time.monotonic()
        self._looks = self._looks.after(began, ended)
        self._take_in(pending)
        return self._looks.wait_s(ended, has_news=False)

    def _take_in(self, pending: Sequence[Delivery]) -> None:
        self._withdraw(is_no_longer_ours(pending))
        for delivery in pending:
            served = self._served.get((delivery.channel, delivery.target))
            if is_to_be_added(delivery, None if served is None else served.queue, self._attempts):
                (served or self._open_queue(delivery.channel, delivery.target)).add(delivery)

    @contextlib.asynccontextmanager
    async def without(self, shards: frozenset[int], limit_s: float) -> AsyncIterator[None]:
        """Within the block nothing is delivered for some shards, which are given up there.

        Attempts under way get up to `limit_s` seconds before. Raises DatabaseUnavailable when what came of
        them cannot be written down.
        """
        try:
            async with self._turn:
                self._withdraw(lambda delivery: goes_with(delivery, shards))
                deadline = asyncio.get_running_loop().time() + limit_s
                while any(goes_with(delivery, shards) for delivery in self._under_way.values()):
                    if asyncio.get_running_loop().time() > deadline:
                        break  # it may arrive twice, which is better than never
                    await asyncio.sleep(0.01)
                await self._record()
                yield
        finally:
            self.wake()  # what could not be given up is delivered on

    def _withdraw(self, is_meant: Callable[[Delivery], bool]) -> None:
        for served in self._served.values():
            if served.queue.withdraw(is_meant):
                served.news.set()

    def _open_queue(self, channel: Channel, target: str) -> _Served:
        served = self._served[channel, target] = _Served(TargetQueue(channel, target))
        worker = asyncio.create_task(self._serve(served))
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)
        return served

    async def _serve(self, served: _Served) -> None:
        """Delivers what waits for one target, until nothing does."""
        queue, failures = served.queue, 0
        try:
            while queue.waiting:
                served.news.clear()
                batch = list(queue.waiting.values())
                async with self._slot(queue.channel, is_first=failures == 0):
                    await self._deliver(queue, batch.copy())
                failures = queue.failures_after(batch, failures)
                if failures == 0:
                    await self._refill(served)
                if queue.waiting:
                    await _wait(served.news, self._retry_policy.delay_s(max(failures, 1)))
        finally:
            del self._served[queue.channel, queue.target]

    async def _refill(self, served: _Served) -> None:
        """Goes on in an agent's backlog, as far as its window allows."""
        queue = served.queue
        if queue.channel != AGENT:
            return
        async with self._turn:
            if queue.reached is None:
                self.wake()  # it had so many rows already that nothing of its backlog was read
                return
            try:
                following = await self._outbox.following(AgentId(queue.target), queue.reached, queue.room)
            except DatabaseUnavailable:
                self.wake()  # which says so, and looks again when it is back
                return
            for delivery in following:
                served.add(delivery)

    def _slot(self, channel: Channel, *, is_first: bool) -> asyncio.Semaphore:
        slots = _MAX_FIRST_ATTEMPTS if is_first else _MAX_REPEATED_ATTEMPTS
        return self._slots.setdefault((channel, is_first), asyncio.Semaphore(slots))

    async def _deliver(self, queue: TargetQueue, batch: list[Delivery]) -> None:
        """One attempt at each of `batch`, in order, over one connection."""
        waiting = PENDING
        try:
            async with contextlib.AsyncExitStack() as stack:
                send = await self._open(queue, stack)
                while batch:
                    if queue.holds(batch[0]):
                        refusal = await self._send(send, batch[0])
                        queue.is_silent = False
                        self._conclude(queue, batch[0], refusal)
                    batch.pop(0)
            return
        except OwnCertificateFailed as error:
            log.debug("messages for %s wait until our own certificate is mended: %s", queue.target, error)
            queue.is_silent = True
            return
        except WrongPeerKey as error:
            take_up = f"keylime_tenant -c update -u {queue.target}"
            reason, waiting = f"{error}; if it is the agent with a new key: {take_up}", WRONG_KEY
        except KeylimeError as error:
            reason = str(error)
        except Exception as error:
            log.exception("delivering a revocation over %s failed", queue.channel)
            reason = type(error).__name__
        queue.is_silent = True
        for delivery in batch:
            if queue.holds(delivery):
                self._conclude(queue, delivery, reason, waiting)

    async def _open(self, queue: TargetQueue, stack: contextlib.AsyncExitStack) -> Send:
        carrier = self._carriers.get(queue.channel)
        if carrier is None:
            raise KeylimeError(f"the channel {queue.channel} is not enabled any more")
        return await carrier(queue.target, stack)

    async def _send(self, send: Send, delivery: Delivery) -> str | None:
        """None when it arrived, else why it was refused. Raises PeerUnreachable for a silent target."""
        limit_s = self._retry_policy.attempt_limit_s
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

    def _conclude(
        self, queue: TargetQueue, delivery: Delivery, error: str | None, waiting: DeliveryState = PENDING
    ) -> None:
        """Notes an attempt; a delivery that is over leaves its queue, others are `waiting`."""
        tried, now = replace(delivery, attempts=delivery.attempts + 1), int(self._now())
        state = state_after(
            tried,
            error,
            now=now,
            waiting=waiting,
            is_enabled=tried.channel in self._carriers,
            retry_policy=self._retry_policy,
        )
        queue.conclude(tried, state)
        self._attempts[delivery.key] = DeliveryAttempt(tried, state, error, now)
        self._wake.set()
        _log(delivery, state, error)

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


async def _tell_nobody(_signed: SignedRevocation) -> None:
    """For a target that is gone."""
    raise KeylimeError(NOBODY)


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    # Not wait_for(): before Python 3.12 it loses a cancellation that comes together with the event.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await event.wait()


def _log(delivery: Delivery, state: DeliveryState, error: str | None) -> None:
    where = f"{delivery.channel} {delivery.target}"
    what = _WORDS[kind_in(delivery.revocation.message)]
    about = delivery.revocation.agent_id
    if state == DELIVERED:
        log.info("%s agent %s delivered to %s", what, about, where)
    elif state == GONE:
        log.info("%s agent %s not delivered to %s: %s", what, about, where, error)
    elif state == FAILED:
        log.error("%s agent %s given up for %s: %s", what, about, where, error)
    else:
        # A target may be away for days: one line tells it, `keylime_tenant -c revocations` the rest.
        level = logging.WARNING if delivery.attempts == 0 else logging.DEBUG
        log.log(level, "%s agent %s not delivered to %s yet: %s", what, about, where, error)
