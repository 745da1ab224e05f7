"""Evidence is judged after its sender was answered: as work of our own, whatever the database does."""

import asyncio
from typing import Any, cast

import pytest

from keylime import patience
from keylime.database.engine import DatabaseUnavailable
from keylime.errors import PolicyError
from keylime_verifier.agents.lifecycle import Defect, Outcome
from keylime_verifier.agents.policy_categories import PolicyHashes
from keylime_verifier.agents.records import AgentRecord, Enrolment, Progress
from keylime_verifier.polling.answer_budget import AnswerBudget
from keylime_verifier.polling.meter import Meter
from keylime_verifier.pushing.judging import MOST_AT_ONCE, Judging, ReceivedEvidence, TooMuchEvidence
from keylime_verifier.pushing.kept_references import KeptReferences
from tests.unit.verifier.test_status import ENROLMENT

RECORD = AgentRecord("generation", ENROLMENT, Progress(supported_version="2.6"))
EVIDENCE = ReceivedEvidence(record=RECORD, policies={}, number=0, boot_time=0.0, collected=cast(Any, None))


class AwayAtFirst:
    """Policies that are there at the second attempt, and then of no use."""

    def __init__(self) -> None:
        self.limits: list[tuple[float, bool]] = []

    async def build(self, _enrolment: Enrolment, _policies: PolicyHashes) -> Any:
        waits = patience.current()
        self.limits.append((waits.left_s, waits.in_sum))
        if len(self.limits) == 1:
            raise DatabaseUnavailable("database: cannot read a policy: no answer")
        raise PolicyError("every runtime policy of the agent has ended")


class Counting(Meter):
    """Counts defects."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def pushed(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


class Ends:
    """As the journal: which attestations end without a verdict."""

    def __init__(self) -> None:
        self.unjudged_numbers: list[int] = []

    async def unjudged(self, record: AgentRecord, number: int) -> None:
        assert record is RECORD
        self.unjudged_numbers.append(number)

    def hurry(self) -> None:
        pass


def judging(policies: Any, meter: Meter, journal: Ends | None = None) -> Judging:
    return Judging(
        KeptReferences(policies.build, lambda: 0.0, kept_s=60),
        cast(Any, journal or Ends()),
        AnswerBudget(),
        meter,
    )


class Useless:
    """Policies of which nothing can be made."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def build(self, _enrolment: Enrolment, _policies: PolicyHashes) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [PolicyError("it is gone"), KeyError("a defect")])
def test_evidence_that_cannot_be_judged_ends_its_attestation_without_a_verdict(error: Exception) -> None:
    async def act() -> None:
        journal, meter = Ends(), Counting()
        judges = judging(Useless(error), meter, journal)
        judges.begin(EVIDENCE, judges.demand_room(0))
        await judges.close(100.0)
        assert journal.unjudged_numbers == [EVIDENCE.number]
        assert [type(one) for one in meter.outcomes] == [Defect]

    asyncio.run(act())


class Broken(Ends):
    """One that has a defect, too."""

    async def unjudged(self, record: AgentRecord, number: int) -> None:
        raise KeyError("another defect")


def test_when_that_cannot_be_written_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        judges = judging(Useless(PolicyError("it is gone")), Meter(), Broken())
        judges.begin(EVIDENCE, judges.demand_room(0))
        await judges.close(100.0)

    asyncio.run(act())
    assert f"agent {RECORD.agent_id}: attestation 0 waits until it is given up" in caplog.text


def test_it_has_its_own_patience_and_is_not_given_up_when_the_database_is_away() -> None:
    async def act() -> None:
        policies = AwayAtFirst()
        meter = Counting()
        judges = judging(policies, meter)
        with patience.for_a_caller(0.5):
            judges.begin(EVIDENCE, judges.demand_room(0))
        await judges.close(100.0)
        assert policies.limits == [(patience.OWN_WORK_S, False)] * 2
        assert [type(one) for one in meter.outcomes] == [Defect], "that they are of no use is said, once"

    asyncio.run(act())


def test_who_brings_more_than_can_wait_is_told_to_come_again() -> None:
    async def act() -> None:
        judges = judging(AwayAtFirst(), Meter())
        for _ in range(MOST_AT_ONCE):
            judges.begin(EVIDENCE, judges.demand_room(0))
        with pytest.raises(TooMuchEvidence):
            judges.demand_room(0)
        await judges.close(100.0)
        judges.demand_room(0).close()

    asyncio.run(act())
