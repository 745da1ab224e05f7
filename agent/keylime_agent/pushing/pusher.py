"""The work of an agent that attests by itself: session, offer, evidence, pause, and again, for ever."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn, Protocol

from keylime.errors import MalformedMessage, TpmError
from keylime.messages.push_attestation import evidence_document, negotiation_document, nothing_collected
from keylime.messages.push_document import Document
from keylime.messages.push_evidence import Asked, Collected
from keylime.request_id import begin_errand
from keylime.tpm.device import Certified
from keylime_agent.pushing.client import Negotiated, PendingSession, StepFailed
from keylime_agent.pushing.course import Course, LoggedIn, Outcome, Taken, TokenOver, VerifierRefused, advance
from keylime_agent.pushing.offers import CannotShow, Facts, boot_time_text, offers
from keylime_agent.pushing.pace import Pacing

log = logging.getLogger(__name__)


class PushVerifier(Protocol):
    """One verifier; raises Stopped."""

    @property
    def url(self) -> str: ...

    async def open_session(self) -> PendingSession: ...

    async def prove(self, session_id: str, attest: bytes, signature: bytes, /) -> Outcome: ...

    async def negotiate(self, token: str, offer: Document, /) -> Negotiated: ...

    async def deliver(self, token: str, path: str, evidence: Document, /) -> Outcome: ...


class EvidenceSource(Protocol):
    """One machine's evidence; raises TpmError, CannotShow, MalformedMessage."""

    async def facts(self) -> Facts: ...

    async def prove(self, challenge: bytes, /) -> Certified: ...

    async def collect(self, asked: Sequence[Asked], facts: Facts, /) -> list[Collected]: ...


class Pusher:
    """Attests to the first of `verifiers` that answers."""

    def __init__(
        self,
        verifiers: Sequence[PushVerifier],
        source: EvidenceSource,
        pacing: Pacing,
        *,
        boottime: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`boottime` is in seconds since the epoch."""
        self._verifiers = verifiers
        self._source = source
        self._pacing = pacing
        self._boot_time = boot_time_text(boottime)
        self._sleep = sleep
        self._chance = chance
        self._course = Course(len(verifiers))
        self._told = ""

    async def run(self) -> NoReturn:
        """Goes on for ever; ends by cancellation."""
        while True:
            begin_errand()
            before = self._course
            verifier = self._verifiers[before.current]
            try:
                outcome = await self._step(verifier, before.token)
            except StepFailed as stopped:
                outcome = stopped.outcome
            except TpmError as error:
                outcome = VerifierRefused(str(error))
            self._course, pause_s = advance(before, outcome, self._pacing, self._chance())
            self._tell(verifier.url, outcome, pause_s)
            if pause_s:
                await self._sleep(pause_s)

    async def _step(self, verifier: PushVerifier, token: str | None) -> Outcome:
        if token is None:
            challenge = await verifier.open_session()
            proof = await self._source.prove(challenge.nonce)
            return await verifier.prove(challenge.session_id, proof.attest, proof.signature)
        return await self._attest(verifier, token)

    async def _attest(self, verifier: PushVerifier, token: str) -> Outcome:
        facts = await self._source.facts()
        negotiated = await verifier.negotiate(token, negotiation_document(offers(facts), self._boot_time))
        try:
            evidence = evidence_document(await self._source.collect(negotiated.asked, facts))
        except (CannotShow, MalformedMessage, TpmError) as error:
            await verifier.deliver(token, negotiated.path, nothing_collected())
            return VerifierRefused(str(error))
        return await verifier.deliver(token, negotiated.path, evidence)

    def _tell(self, url: str, outcome: Outcome, pause_s: float) -> None:
        """What is new goes to the log; what is as before to its details."""
        match outcome:
            case LoggedIn():
                log.debug("%s has taken the proof of the attestation key", url)
                return
            case TokenOver():
                log.debug("%s: the token is over", url)
                return
            case Taken():
                text = f"attesting to {url}, about every {round(pause_s)} s"
            case _:
                text = f"{url}: {outcome.reason}"
        level = logging.DEBUG
        if text != self._told:
            level = logging.INFO if isinstance(outcome, Taken) else logging.WARNING
        self._told = text
        again = "" if isinstance(outcome, Taken) else f"; trying again in {pause_s:.0f} s"
        log.log(level, "%s%s", text, again)
