"""Revocation messages at the agent: verified before anything in them is read, acted upon once.

They arrive by REST and by ZeroMQ; both end in one queue.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from keylime.errors import CredentialError
from keylime.messages.revocation import SignedRevocation
from keylime.pki.certificates import CLOCK_SKEW, parse_certificate
from keylime.pki.roles import NODE, extended_usages
from keylime.revocation.channel import RevocationSubscriber
from keylime.revocation.message import compact_document, delivery_key
from keylime.revocation.signing import verify_revocation
from keylime_agent.handled_revocations import HandledRevocations
from keylime_agent.revocation_rules import NOTHING_SAID, Decision, Incarnation, LastWord, decide

log = logging.getLogger(__name__)

_MAX_QUEUED = 256
# Messages of a channel that wait for a payload with the certificate, and the longest of them in bytes.
# Channels are kept apart, because REST is for clients with a certificate and ZeroMQ is for anybody.
_MAX_KEPT = 64
_MAX_LAST_WORDS = 4096
_MAX_KEPT_SIZE = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A message as it came, nothing in it verified; `at` is in seconds since the epoch."""

    signed: SignedRevocation
    channel: str
    at: float


class RevocationHandler:
    """Verifies messages with the certificate of the payload, and has the actions of each run once.

    What comes before the certificate waits for it: see `certificate_arrived`.
    """

    def __init__(
        self,
        certificate: Path,
        act: Callable[[bytes], Awaitable[None]],
        who_am_i: Callable[[], Incarnation],
        handled: HandledRevocations | None = None,
    ) -> None:
        """`who_am_i` is asked for each message, for payloads come and go."""
        self._certificate = certificate
        self._act = act
        self._who_am_i = who_am_i
        self._queue: asyncio.Queue[_Arrival] = asyncio.Queue(_MAX_QUEUED)
        self._kept: dict[str, dict[SignedRevocation, _Arrival]] = {}
        self._payloads = 0  # that have arrived so far
        self._handled = handled or HandledRevocations()
        self._last_words: dict[str, LastWord] = {}  # by agent, the one heard of last at the end

    def receive(self, signed: SignedRevocation, channel: str = "REST") -> None:
        """Queue a message that nothing is known of yet; `channel` is for the log."""
        try:
            self._queue.put_nowait(_Arrival(signed, channel, time.time()))
        except asyncio.QueueFull:
            log.warning("revocation message dropped: %d are waiting", _MAX_QUEUED)

    def certificate_arrived(self) -> None:
        """Look again at what came before there was a certificate to verify it with."""
        self._payloads += 1
        arrivals = [arrival for kept in self._kept.values() for arrival in kept.values()]
        self._kept.clear()
        for arrival in arrivals:
            if self._queue.full():
                self._keep(arrival)
            else:
                self._queue.put_nowait(arrival)

    async def run(self) -> None:
        """Work for ever."""
        while True:
            arrival = await self._queue.get()
            try:
                await self._handle(arrival)
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

    async def _handle(self, arrival: _Arrival) -> None:
        channel, payloads = arrival.channel, self._payloads
        try:
            certificate = await asyncio.to_thread(self._certificate.read_bytes)
        except OSError as error:
            if payloads != self._payloads:  # one has come meanwhile, and would not look at this again
                return await self._handle(arrival)
            waits = (
                "it waits for a payload" if self._keep(arrival) else "too much waits for a payload already"
            )
            log.warning(
                "revocation message cannot be verified (over %s), %s: its certificate %s cannot be read (%s)",
                channel,
                waits,
                self._certificate,
                error.strerror,
            )
            return
        try:
            message = verify_revocation(arrival.signed, certificate)
        except CredentialError as error:
            log.warning("revocation message ignored (over %s): %s", channel, error)
            return
        key, me = delivery_key(arrival.signed), await asyncio.to_thread(self._who_am_i)
        last_word = self._last_words.pop(message.agent_id, NOTHING_SAID)
        decision = decide(message, self._handled.get(key), me, arrival.at, last_word)
        self._last_words[message.agent_id] = last_word.after(message)
        while len(self._last_words) > _MAX_LAST_WORDS:
            del self._last_words[next(iter(self._last_words))]
        if decision is not Decision.ACT:
            log.info(
                "revocation message about agent %s over %s %s", message.agent_id, channel, decision.value
            )
            return
        # Before the actions: one that reboots the machine must not meet its message again.
        await asyncio.to_thread(self._handled.add, key, int(arrival.at), me.boot)
        log.info(
            "revocation message about agent %s (%s) over %s, event %s",
            message.agent_id,
            message.ip,
            channel,
            message.event_id,
        )
        await self._act(compact_document(message))

    def _keep(self, arrival: _Arrival) -> bool:
        """Whether the message waits now; one that came twice waits once."""
        kept = self._kept.setdefault(arrival.channel, {})
        is_known = arrival.signed in kept
        if not is_known and (len(kept) >= _MAX_KEPT or len(arrival.signed.msg) > _MAX_KEPT_SIZE):
            return False
        kept.setdefault(arrival.signed, arrival)
        return True


def incarnation(agent_id: str, payload: Path, boot: bytes) -> Incarnation:
    """The agent `agent_id` with the certificate in its payload, if there is one that can be read."""
    try:
        certificate = parse_certificate((payload / f"{agent_id}-cert.crt").read_bytes())
    except (OSError, CredentialError):
        return Incarnation(agent_id, None, boot)
    return Incarnation(agent_id, certificate.serial_number, boot, _made_at(certificate))


def _made_at(certificate: x509.Certificate) -> int | None:
    """When a certificate of our own authority was made. Others begin when their makers like."""
    try:
        is_ours = NODE in (extended_usages(certificate) or ())
    except ValueError:  # damaged extensions
        return None
    if not is_ours:
        return None
    return int((certificate.not_valid_before_utc + CLOCK_SKEW).timestamp())
