"""When the roster looks at the database."""

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable, Container, Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from keylime.identifiers import AgentId
from keylime_verifier.agents.records import AgentRecord, AgentVersion, HeldVersions, Progress
from keylime_verifier.agents.shards import MemberId, ShardClaim
from keylime_verifier.polling.poller import Poller
from keylime_verifier.polling.recorder import Recorder
from keylime_verifier.polling.store import AgentStore
from keylime_verifier.revocations.notifier import Notifier
from keylime_verifier.sharing import roster
from keylime_verifier.sharing.roster import Roster
from tests.fakes.eventual import eventually
from tests.unit.verifier.test_status import ENROLMENT


class EmptyStore(AgentStore):
    """Owns no agents, and may be slow to say so."""

    def __init__(self) -> None:
        self.looks = 0
        self.owned: list[AgentRecord] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def versions(self, _owner: str) -> dict[AgentId, AgentVersion]:
        self.looks += 1
        await self.gate.wait()
        return {one.agent_id: AgentVersion(one.row_version, HeldVersions()) for one in self.owned}

    async def load_polled(self, _owner: str, wanted: Sequence[AgentId]) -> list[AgentRecord]:
        return [one for one in self.owned if one.agent_id in wanted]


class IdlePoller:
    """Polls nobody, and remembers whom it was given."""

    def __init__(self) -> None:
        self.adopted: list[AgentRecord] = []
        self.known: dict[AgentId, AgentRecord] = {}

    def polled(self) -> dict[AgentId, AgentRecord]:
        return self.known

    def current(self, agent_id: AgentId) -> AgentRecord | None:
        return self.known.get(agent_id)

    def hold_to(self, agent_id: AgentId, versions: HeldVersions) -> None:
        pass

    def adopt(self, record: AgentRecord, *, delay_s: float) -> None:
        self.adopted.append(record)


class Waiting:
    """A recorder in which verdicts about some agents wait."""

    def __init__(self) -> None:
        self.agents: set[AgentId] = set()
        self.polled: Container[AgentId] = ()

    def waits(self, agent_id: AgentId) -> bool:
        return agent_id in self.agents

    def forget_refused(self, *, others_than: Container[AgentId]) -> None:
        self.polled = others_than


class Stage:
    """A roster at work."""

    def __init__(self) -> None:
        self.store = EmptyStore()
        self.poller = IdlePoller()
        self.recorder = Waiting()
        self.roster = Roster(
            MemberId("me"),
            self.store,
            cast(Poller, self.poller),
            cast(Recorder, self.recorder),
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


def test_an_agent_whose_verdict_waits_is_not_asked_for_another_one() -> None:
    stage = Stage()
    record = AgentRecord("i", ENROLMENT, Progress(supported_version="2.5"))

    async def act() -> None:
        stage.store.owned = [record]
        stage.recorder.agents = {record.agent_id}
        await stage.roster.reconcile()
        assert stage.poller.adopted == []
        assert record.agent_id in stage.recorder.polled
        stage.recorder.agents = set()
        stage.roster.settled(record.agent_id)
        await eventually(lambda: stage.poller.adopted == [record])

    stage.play(act)


def counted(generation: str, epoch: int, count: int) -> AgentRecord:
    progress = Progress(supported_version="2.5", attestation_count=count, last_successful_attestation=count)
    return AgentRecord(generation, ENROLMENT, progress, ShardClaim(MemberId("me"), epoch))


@pytest.mark.parametrize(("generation", "count"), [("i", 55), ("another", 54)])
def test_counts_that_were_shown_do_not_go_back_when_an_agent_is_read_anew(
    generation: str, count: int
) -> None:
    """Its passes that are not written yet are refused: somebody has asked for it to be judged again."""
    stage = Stage()
    known, stored = counted("i", 1, 55), counted(generation, 2, 54)

    async def act() -> None:
        stage.poller.known = {known.agent_id: known}
        stage.store.owned = [stored]
        stage.roster.look()
        await eventually(lambda: stage.poller.adopted)

    stage.play(act)
    (adopted,) = stage.poller.adopted
    assert (adopted.row_version, adopted.progress.attestation_count) == (stored.row_version, count)
    assert adopted.progress.last_successful_attestation == count
