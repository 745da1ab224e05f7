"""Evidence is judged after its sender was answered: as work of our own, whatever the database does."""

import asyncio
from typing import Any, cast

import pytest

from keylime import patience
from keylime.database.engine import DatabaseUnavailable
from keylime.identifiers import AgentId
from keylime_verifier.polling.answer_budget import AnswerBudget
from keylime_verifier.pushing.judging import MOST_AT_ONCE, Evidence, Judging, NoRoom

AGENT = AgentId("a1")
EVIDENCE = Evidence(
    agent_id=AGENT, number=0, generation="generation", boot_time=0.0, collected=cast(Any, None)
)


class AwayAtFirst:
    """A store that answers at the second attempt, that there is no such agent any more."""

    def __init__(self) -> None:
        self.limits: list[tuple[float, bool]] = []

    async def find(self, _agent_id: AgentId) -> None:
        waits = patience.current()
        self.limits.append((waits.left_s, waits.in_sum))
        if len(self.limits) == 1:
            raise DatabaseUnavailable("database: cannot read an agent: no answer")


def judging(store: AwayAtFirst) -> Judging:
    return Judging(cast(Any, store), cast(Any, None), cast(Any, None), AnswerBudget())


def test_it_has_its_own_patience_and_is_not_given_up_when_the_database_is_away() -> None:
    async def act() -> None:
        store = AwayAtFirst()
        judges = judging(store)
        with patience.for_a_caller(0.5):
            judges.begin(EVIDENCE, judges.demand_room(0))
        await judges.close(100.0)
        assert store.limits == [(patience.OWN_WORK_S, False)] * 2
        assert judges.defects == 0

    asyncio.run(act())


def test_who_brings_more_than_can_wait_is_told_to_come_again() -> None:
    async def act() -> None:
        judges = judging(AwayAtFirst())
        for _ in range(MOST_AT_ONCE):
            judges.begin(EVIDENCE, judges.demand_room(0))
        with pytest.raises(NoRoom):
            judges.demand_room(0)
        await judges.close(100.0)
        judges.demand_room(0).close()

    asyncio.run(act())
