"""Revocation messages at the agent: verified before anything in them is read, acted upon once.

They arrive by REST and by ZeroMQ; both end in one queue.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from keylime.errors import CredentialError
from keylime.messages.revocation import SignedRevocation
from keylime.revocation.channel import RevocationSubscriber
from keylime.revocation.message import compact_document, delivery_key
from keylime.revocation.signing import verify_revocation
from keylime_agent.handled_revocations import HandledRevocations

log = logging.getLogger(__name__)

_MAX_WAITING = 256


class RevocationHandler:
    """Verifies messages with the certificate of the payload, and has the actions of each run once."""

    def __init__(
        self,
        certificate: Path,
        act: Callable[[bytes], Awaitable[None]],
        handled: HandledRevocations | None = None,
    ) -> None:
        self._certificate = certificate
        self._act = act
        self._queue: asyncio.Queue[tuple[SignedRevocation, str]] = asyncio.Queue(_MAX_WAITING)
        self._handled = handled or HandledRevocations()

    def receive(self, signed: SignedRevocation, channel: str = "REST") -> None:
        """Queue a message that nothing is known of yet; `channel` is for the log."""
        try:
            self._queue.put_nowait((signed, channel))
        except asyncio.QueueFull:
            log.warning("revocation message dropped: %d are waiting", _MAX_WAITING)

    async def run(self) -> None:
        """Work for ever."""
        while True:
            signed, channel = await self._queue.get()
            try:
                await self._handle(signed, channel)
            except Exception:
                log.exception("revocation message could not be processed")
            finally:
                self._queue.task_done()

    async def settled(self) -> None:
        """Wait until everything received so far has been processed."""
        await self._queue.join()

    async def listen(self, subscriber: RevocationSubscriber) -> None:
        """Take messages from ZeroMQ until the subscriber is closed."""
        async for signed in subscriber:
            self.receive(signed, "ZeroMQ")

    async def _handle(self, signed: SignedRevocation, channel: str) -> None:
        try:
            certificate = await asyncio.to_thread(self._certificate.read_bytes)
        except OSError as error:
            log.warning(
                "revocation message ignored (over %s): its certificate %s cannot be read (%s); "
                "it comes with a payload",
                channel,
                self._certificate,
                error.strerror,
            )
            return
        try:
            message = verify_revocation(signed, certificate)
        except CredentialError as error:
            log.warning("revocation message ignored (over %s): %s", channel, error)
            return
        key = delivery_key(signed)
        if key in self._handled:
            log.info(
                "revocation message about agent %s over %s was handled before", message.agent_id, channel
            )
            return
        # Before the actions: one that reboots the machine must not meet its message again.
        await asyncio.to_thread(self._handled.add, key)
        log.info(
            "revocation message about agent %s (%s) over %s, event %s",
            message.agent_id,
            message.ip,
            channel,
            message.event_id,
        )
        await self._act(compact_document(message))
