"""The database fails before or after the commit of each kind of write: no verdict is lost or told twice.

An error after the commit is what a connection that breaks at the wrong moment looks like: it was done, and
the verifier cannot know.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine.default import DefaultDialect

from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.eventual import eventually
from tests.fakes.running_verifier import NOT_TOLD, TOLD, RunningVerifier, running_verifier, verifier_authority

INVALID_QUOTE = 9
WRITES = [
    "UPDATE agents",
    "INSERT INTO revocations",
    "UPDATE recipients",
    "UPDATE members",
]
PATIENT = {"KEYLIME_VERIFIER_MAX_RETRIES": "100000", "KEYLIME_VERIFIER_LEASE": "1"}


class FailPoint:
    """Fails the commits of transactions that contain a statement, `times` times, once it is armed."""

    def __init__(self, statement: str, *, after: bool, times: int) -> None:
        self.statement, self.after, self.times = statement, after, times
        self.is_armed = False
        self.failed = 0
        self._concerned: set[int] = set()

    def executing(self, connection: sa.Connection, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(self.statement):
            self._concerned.add(id(connection.connection.dbapi_connection))

    def committing(self, commit: Callable[[Any], None], connection: Any) -> None:
        concerned = id(getattr(connection, "dbapi_connection", connection)) in self._concerned
        self._concerned.clear()
        fails = concerned and self.is_armed and self.failed < self.times
        if not fails or self.after:
            commit(connection)
        if fails:
            self.failed += 1
            raise sqlite3.OperationalError("canary")


@pytest.fixture
def fail_point(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FailPoint]:
    """Around every engine that is made from here on."""
    point: FailPoint = request.param
    commit = DefaultDialect.do_commit
    monkeypatch.setattr(
        DefaultDialect,
        "do_commit",
        lambda dialect, connection: point.committing(lambda it: commit(dialect, it), connection),  # type: ignore[no-untyped-call]
    )
    event.listen(sa.Engine, "before_cursor_execute", point.executing)
    yield point
    event.remove(sa.Engine, "before_cursor_execute", point.executing)


def points(times: int, moments: Iterable[str]) -> list[Any]:
    """Fail points by their names, such as "before UPDATE agents"."""
    return [
        pytest.param(
            FailPoint(moment.partition(" ")[2], after=moment.startswith("after"), times=times), id=moment
        )
        for moment in moments
    ]


def check_the_end(verifier: RunningVerifier, agents: list[AttestingAgent]) -> None:
    """One verdict, one revocation, delivered to everybody."""
    failed, _ = agents
    state = "SELECT operational_state, is_polled FROM agents WHERE agent_id = ?"
    assert verifier.rows(state, failed.agent_id) == [(INVALID_QUOTE, 0)]
    assert verifier.rows("SELECT agent_id FROM revocations") == [(failed.agent_id,)]
    assert verifier.rows(TOLD) == [(agent.agent_id,) for agent in agents]
    assert verifier.rows("SELECT state FROM deliveries") == []


async def until_told(verifier: RunningVerifier, agents: list[AttestingAgent]) -> None:
    await verifier.until_state(agents[0], INVALID_QUOTE)
    await eventually(lambda: all(agent.revocations for agent in agents))
    await eventually(lambda: verifier.rows(NOT_TOLD) == [(0,)])


@pytest.mark.parametrize(
    "fail_point",
    points(2, [f"{moment} {statement}" for statement in WRITES for moment in ("before", "after")]),
    indirect=True,
)
def test_s2_a_commit_that_fails_or_seems_to_costs_no_verdict_and_doubles_none(
    tmp_path: Path, fail_point: FailPoint
) -> None:
    async def play() -> None:
        agents = [AttestingAgent(name, verifier_authority()) for name in ("agent-1", "agent-2")]
        async with agents[0], agents[1], running_verifier(tmp_path, PATIENT) as verifier:
            for agent in agents:
                await verifier.add(agent)
                await verifier.until_passing(agent, rounds=2)
            fail_point.is_armed = True
            agents[0].tamper()
            await until_told(verifier, agents)
            await eventually(lambda: fail_point.failed)
            await verifier.until_passing(agents[1], rounds=2)
            check_the_end(verifier, agents)
            assert [len(agent.revocations) for agent in agents] == [1, 1]

    asyncio.run(play())


@pytest.mark.parametrize(
    "fail_point",
    points(10**9, ["before UPDATE agents", "after INSERT INTO revocations", "before UPDATE recipients"]),
    indirect=True,
)
def test_s2_what_fails_until_the_verifier_stops_is_made_good_after_its_next_start(
    tmp_path: Path, fail_point: FailPoint
) -> None:
    async def play() -> None:
        agents = [AttestingAgent(name, verifier_authority()) for name in ("agent-1", "agent-2")]
        async with agents[0], agents[1]:
            async with running_verifier(tmp_path, PATIENT) as verifier:
                for agent in agents:
                    await verifier.add(agent)
                    await verifier.until_passing(agent, rounds=2)
                fail_point.is_armed = True
                agents[0].tamper()
                await verifier.until_state(agents[0], INVALID_QUOTE)
                await eventually(lambda: fail_point.failed)
            fail_point.is_armed = False
            async with running_verifier(tmp_path, PATIENT) as verifier:
                await until_told(verifier, agents)
                await verifier.until_passing(agents[1], rounds=2)
                check_the_end(verifier, agents)

    asyncio.run(play())
