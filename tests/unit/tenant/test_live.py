"""The fleet of `top`: by events where there are some, by asking where there are none."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from keylime.errors import PeerRefused, PeerUnreachable
from keylime.http.event_source import StreamedEvent
from keylime.identifiers import AgentId
from keylime_tenant.fleet_view import Fleet
from keylime_tenant.live import LiveFleet
from keylime_tenant.told_status import ToldStatus, told_status
from tests.fakes.eventual import eventually
from tests.fakes.followed_verifier import BEGUN, block, told


class Verifier:
    """Statuses in memory, and a stream of what a test says."""

    place = "the verifier"

    def __init__(self, *, tells_events: bool = True) -> None:
        self.agents = {"a": 1, "b": 1}
        self.asked: list[str] = []
        self.followed: list[tuple[str, str]] = []
        self.told: asyncio.Queue[StreamedEvent | None] = asyncio.Queue()
        self.tells_events = tells_events
        self.is_away = False

    async def version(self) -> str:
        return "2.6"

    def _status(self, agent: str) -> ToldStatus:
        return told_status({"attestation_count": self.agents[agent]})

    async def statuses(self, _verifier_id: str, /) -> dict[str, ToldStatus]:
        self.asked.append("all")
        if self.is_away:
            raise PeerUnreachable("nobody there")
        return {agent: self._status(agent) for agent in self.agents}

    async def status(self, agent_id: AgentId, /) -> ToldStatus | None:
        self.asked.append(agent_id)
        return self._status(agent_id) if agent_id in self.agents else None

    async def follow(self, path: str, after: str) -> AsyncGenerator[StreamedEvent, None]:
        self.followed.append((path, after))
        if self.is_away:
            raise PeerUnreachable("nobody there")
        if not self.tells_events:
            raise PeerRefused(404, "Not Found")
        yield BEGUN
        while (one := await self.told.get()) is not None:
            yield one


def play(verifier: Verifier, act: Callable[[LiveFleet], object]) -> None:
    async def run() -> None:
        live = LiveFleet(verifier, lambda: verifier, "", lambda: None)
        running = asyncio.create_task(live.run())
        try:
            await eventually(lambda: len(live.fleet.statuses) == 2)
            await act(live)  # type: ignore[misc]
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


def test_only_the_agents_are_asked_for_to_whom_something_happened() -> None:
    verifier = Verifier()

    async def act(live: LiveFleet) -> None:
        await eventually(lambda: verifier.asked.count("all") == 2)  # the second when events began
        verifier.agents["a"] = 5
        del verifier.agents["b"]
        for one in (told(8, agent_id="a"), told(9, agent_id="b"), told(10, agent_id=None), BEGUN):
            verifier.told.put_nowait(one)
        await eventually(lambda: set(live.fleet.statuses) == {"a"})
        assert live.fleet.statuses["a"].attestation_count == 5
        assert {"a", "b"} <= set(verifier.asked)
        before = verifier.asked.count("all")
        verifier.told.put_nowait(block(12, "gap", after=11, first=13))
        await eventually(lambda: verifier.asked.count("all") > before)
        verifier.told.put_nowait(None)  # the verifier ends it
        await eventually(lambda: len(verifier.followed) == 2)
        assert verifier.followed == [("/v2.6/events", ""), ("/v2.6/events", "12")]

    play(verifier, act)


def test_an_older_verifier_is_asked_again_and_again() -> None:
    verifier = Verifier(tells_events=False)

    async def act(live: LiveFleet) -> None:
        verifier.agents["a"] = 2
        await eventually(lambda: live.fleet.statuses["a"].attestation_count == 2)
        await eventually(lambda: verifier.asked.count("all") >= 3)
        assert len(verifier.followed) == 1

    play(verifier, act)


def test_what_is_told_of_no_agent_may_concern_all_of_them() -> None:
    verifier = Verifier()

    async def act(_live: LiveFleet) -> None:
        await eventually(lambda: verifier.asked.count("all") == 2)
        verifier.told.put_nowait(told(8, "policy_replaced", agent_id=None))
        await eventually(lambda: verifier.asked.count("all") == 3)

    play(verifier, act)


def test_a_verifier_that_has_gone_is_said_to_be_at_once() -> None:
    verifier = Verifier()

    async def act(live: LiveFleet) -> None:
        await eventually(lambda: verifier.asked.count("all") == 2)
        verifier.is_away = True
        verifier.told.put_nowait(None)
        async with asyncio.timeout(20):  # and not at the next look, after half a minute
            await eventually(lambda: live.fleet.problem == "nobody there")
        assert set(live.fleet.statuses) == {"a", "b"}

    play(verifier, act)


def test_what_was_asked_before_is_shown_until_it_is_asked_again() -> None:
    verifier = Verifier()
    verifier.is_away = True
    first = Fleet({"a": told_status({})}, 5.0)

    async def run() -> None:
        live = LiveFleet(verifier, lambda: verifier, "", lambda: None, first)
        assert live.fleet == first
        running = asyncio.create_task(live.run())
        try:
            await eventually(lambda: live.fleet.problem != "")
            assert live.fleet == Fleet(first.statuses, 5.0, "nobody there")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())
