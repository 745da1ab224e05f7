"""Carries revocations from the outbox to their targets, at least once, slow targets delaying nobody."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from keylime.database.engine import DatabaseUnavailable
from keylime.errors import KeylimeError
from keylime.identifiers import AgentId
from keylime.messages.revocation import SignedRevocation
from keylime.revocation.channel import RevocationPublisher
from keylime_verifier.agent_client import AgentClient
from keylime_verifier.outbox import AGENT, DELIVERED, FAILED, PENDING, ZEROMQ, Outbox
from keylime_verifier.records import AgentRecord, Delivery

log = logging.getLogger("keylime.revocation_notifier")

_MAX_CONCURRENT = 50
_LONGEST_DELAY_S = 60.0
_LOOK_AGAIN_S = 30.0
_DATABASE_RETRY_S = 1.0

FindAgent = Callable[[AgentId], Awaitable[AgentRecord | None]]
ConnectAgent = Callable[[AgentRecord], AgentClient]


class Notifier:
    """Delivers what is pending, now and after every restart, until each target has it or is given up."""

    def __init__(
        self,
        outbox: Outbox,
        *,
        find_agent: FindAgent,
        connect: ConnectAgent,
        publisher: RevocationPublisher | None,
        retry_interval_s: float,
        max_attempts: int,
    ) -> None:
        self._outbox = outbox
        self._find_agent = find_agent
        self._connect = connect
        self._publisher = publisher
        self._retry_interval_s = retry_interval_s
        self._max_attempts = max_attempts
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)
        self._under_way: dict[tuple[str, str, str], asyncio.Task[None]] = {}

    def wake(self) -> None:
        """Tells that the outbox has something new."""
        self._wake.set()

    async def run(self) -> None:
        """Delivers for ever. Ends by cancellation; what is pending then is delivered after the next start."""
        try:
            while True:
                self._wake.clear()
                pause_s = _LOOK_AGAIN_S
                try:
                    # One that ends while the outbox is read may still be in the answer.
                    known = set(self._under_way)
                    for delivery in await self._outbox.pending():
                        if delivery.key not in known:
                            self._start(delivery)
                except DatabaseUnavailable as error:
                    log.error("%s; trying again", error)
                    pause_s = _DATABASE_RETRY_S
                # Not wait_for(): before Python 3.12 it loses a cancellation that comes with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()
        finally:
            for task in self._under_way.values():
                task.cancel()
            await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    def _start(self, delivery: Delivery) -> None:
        key = delivery.key
        if key not in self._under_way:
            task = asyncio.create_task(self._deliver(delivery))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))

    async def _deliver(self, delivery: Delivery) -> None:
        attempts = delivery.attempts
        while True:
            async with self._slots:
                error = await self._attempt(delivery)
            attempts += 1
            state = DELIVERED if error is None else PENDING if attempts < self._max_attempts else FAILED
            current = Delivery(delivery.revocation, delivery.channel, delivery.target, attempts - 1)
            try:
                await self._outbox.record_attempt(current, state, int(time.time()), error)
            except DatabaseUnavailable as unavailable:
                log.error("%s; the revocation will be delivered again", unavailable)
                return
            self._log(current, state, error)
            if state != PENDING:
                return
            await asyncio.sleep(min(self._retry_interval_s * 2 ** (attempts - 1), _LONGEST_DELAY_S))

    async def _attempt(self, delivery: Delivery) -> str | None:
        """None when delivered, else why not."""
        signed = SignedRevocation(delivery.revocation.message, delivery.revocation.signature)
        try:
            if delivery.channel == AGENT:
                await self._tell_agent(AgentId(delivery.target), signed)
            elif delivery.channel == ZEROMQ and self._publisher is not None:
                await self._publisher.publish(signed)
            else:
                return f"the channel {delivery.channel} is not enabled"
        except KeylimeError as error:
            return str(error)
        except Exception as error:
            log.exception("delivering a revocation over %s failed", delivery.channel)
            return type(error).__name__
        return None

    async def _tell_agent(self, agent_id: AgentId, signed: SignedRevocation) -> None:
        record = await self._find_agent(agent_id)
        if record is None:
            return  # deleted meanwhile: nobody is left to tell
        client = self._connect(record)
        try:
            await client.notify(signed)
        finally:
            await client.close()

    def _log(self, delivery: Delivery, state: str, error: str | None) -> None:
        where = f"{delivery.channel} {delivery.target}"
        about = delivery.revocation.agent_id
        if state == DELIVERED:
            log.info("revocation of agent %s delivered to %s", about, where)
        elif state == PENDING:
            log.warning("revocation of agent %s not delivered to %s yet: %s", about, where, error)
        else:
            log.error("revocation of agent %s given up for %s: %s", about, where, error)
