"""When the roster looks at the database."""

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import pytest

from keylime.identifiers import AgentId
from keylime_verifier import roster
from keylime_verifier.journal import Journal
from keylime_verifier.notifier import Notifier
from keylime_verifier.poller import Poller
from keylime_verifier.records import AgentRecord, Standing
from keylime_verifier.roster import Roster
from keylime_verifier.store import AgentStore
from tests.fakes.running_verifier import eventually


class EmptyStore(AgentStore):
    """Owns no agents, and may be slow to say so."""

    def __init__(self) -> None:
        self.looks = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def standings(self, _owner: str) -> dict[AgentId, Standing]:
        self.looks += 1
        await self.gate.wait()
        return {}


class IdlePoller:
    """Polls nobody."""

    def polled(self) -> dict[AgentId, AgentRecord]:
        return {}


class Stage:
    """A roster at work."""

    def __init__(self) -> None:
        self.store = EmptyStore()
        self.poller = IdlePoller()
        self.roster = Roster(
            "me",
            self.store,
            cast(Poller, self.poller),
            cast(Journal, None),
            cast(Notifier, None),
            spread_s=0,
            let_go_limit_s=0,
        )

    def play(self, act: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            loop = asyncio.create_task(self.roster.run())
            try:
                await act()
            finally:
                loop.cancel()
                await asyncio.gather(loop, return_exceptions=True)

        asyncio.run(run())


def test_a_look_that_had_to_wait_for_the_database_does_not_put_off_the_next_one_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    minutes = itertools.count(0, 60)  # each look takes one
    monkeypatch.setattr(roster, "time", SimpleNamespace(monotonic=lambda: next(minutes)))
    monkeypatch.setattr(roster, "_LONGEST_REST_S", 0.01)
    stage = Stage()

    def has_looked(times: int) -> bool:
        return stage.store.looks == times

    async def act() -> None:
        for count in (1, 2):
            stage.roster.look()
            await eventually(functools.partial(has_looked, count))

    stage.play(act)
