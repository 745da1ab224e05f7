"""Machines that remember what they answered, and when they were bad."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp

from keylime.http.server import Response
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.field_push_agent import FieldPushAgent, Refused
from tests.fakes.running_verifier import enrolment, verifier_authority
from tests.fakes.tls_material import client_context
from tests.truth.history import Answered, Truth


class KnownMachine(AttestingAgent):
    """An agent whose truth is known. It turns bad once, and may be good again after a reboot."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(agent_id, verifier_authority())
        self.answers: list[Answered] = []
        self.watched_since = 0.0
        self._bad_since: float | None = None
        self._good_again: float | None = None
        self.answer_quote = self._remember

    def turn_bad(self) -> None:
        """Runs something that no policy allows, from now on."""
        self._bad_since = time.monotonic()
        self.tamper()

    def turn_good(self) -> None:
        """Is rebooted and as it was: who asks from now on cannot know."""
        self.reboot()
        self._good_again = time.monotonic()

    @property
    def is_good(self) -> bool:
        """Whether it has always been good."""
        return self._bad_since is None

    @property
    def truth(self) -> Truth:
        """As the checker needs it."""
        return Truth(self._bad_since, self._good_again, self.watched_since)

    @property
    def is_bad_now(self) -> bool:
        """Whether what it shows now is bad."""
        return self._bad_since is not None and self._good_again is None

    def enrolment(self) -> dict[str, object]:
        """The body that adds it."""
        return enrolment(self)

    def _remember(self, results: dict[str, Any]) -> Response:
        self.answers.append(Answered(time.monotonic(), self.agent_id, self.is_bad_now))
        return Response(results=results)


class KnownPusher(KnownMachine):
    """One that attests by itself, each call to another verifier that listens; nobody tells it anything.

    What it answered is what was taken: evidence for which there was a 202.
    """

    def __init__(self, agent_id: str, ports: Callable[[], Sequence[int]], interval_s: float) -> None:
        super().__init__(agent_id)
        self._ports = ports
        self._interval_s = interval_s
        self._turn = itertools.count()
        self._life: asyncio.Task[None] | None = None

    def enrolment(self) -> dict[str, object]:
        without = {"v": None, "cloudagent_ip": ..., "cloudagent_port": ..., "mtls_cert": "disabled"}
        return enrolment(self, **without, attestation_mode="push", supported_version="2.6")

    def start(self) -> None:
        self._life = asyncio.create_task(self._live())

    async def stop(self) -> None:
        """Raises what ended it, if anything did."""
        life, self._life = self._life, None
        if life is not None:
            life.cancel()
            (ending,) = await asyncio.gather(life, return_exceptions=True)
            if not isinstance(ending, asyncio.CancelledError):
                raise AssertionError(f"{self.agent_id} has ended") from ending

    async def _live(self) -> None:
        tls = client_context(verifier_authority())
        async with FieldPushAgent(self.agent_id, "", tls, self.machine) as agent:
            while True:
                try:
                    await self._attest(agent)
                except Refused as refused:
                    if refused.answer.code == 401:
                        agent.token = None
                except (aiohttp.ClientError, TimeoutError, OSError):
                    pass
                await asyncio.sleep(self._interval_s)

    async def _attest(self, agent: FieldPushAgent) -> None:
        if not self._go_on(agent):
            return
        if agent.token is None:
            session = await agent.open_session()
            self._go_on(agent)
            await agent.prove(*session)
        self._go_on(agent)
        negotiation = await agent.negotiate()
        self._go_on(agent)
        is_bad = self.is_bad_now
        await agent.deliver(negotiation)
        self.answers.append(Answered(time.monotonic(), self.agent_id, is_bad))

    def _go_on(self, agent: FieldPushAgent) -> bool:
        """To the next verifier; whether there is one."""
        ports = self._ports()
        if ports:
            agent.url = f"https://127.0.0.1:{ports[next(self._turn) % len(ports)]}"
        return bool(ports)
