"""References of agents that attest by themselves are kept exactly as long as they are what would be built."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from keylime.errors import PolicyError
from keylime.identifiers import AgentId
from keylime_verifier.agents.policy_categories import PolicyHashes, TextHash
from keylime_verifier.agents.records import AgentRecord, Enrolment, HeldVersions, Progress
from keylime_verifier.pushing.kept_references import KeptReferences
from tests.unit.verifier.test_status import ENROLMENT

RECORD = AgentRecord("first", ENROLMENT, Progress(supported_version="2.6"))
ONE: PolicyHashes = {("runtime", "a"): TextHash("1")}
OTHER: PolicyHashes = {("runtime", "a"): TextHash("2")}


class Builder:
    """Counts what it builds."""

    def __init__(self, until: int | None = None) -> None:
        self.now = 100.0
        self.built = 0
        self.until = until
        self.fails = False
        self.kept = KeptReferences(self.build, lambda: self.now, kept_s=60, most=3)

    async def build(self, _enrolment: Enrolment, policies: PolicyHashes) -> Any:
        if self.fails:
            raise PolicyError("it is gone")
        self.built += 1
        return object(), HeldVersions(policies["runtime", "a"], None, self.until)

    def of(self, record: AgentRecord = RECORD, policies: PolicyHashes = ONE) -> Any:
        return asyncio.run(self.kept.of(record, policies))


def test_the_same_policies_are_built_once() -> None:
    builder = Builder()
    assert builder.of() == builder.of(replace(RECORD, recalls=7), dict(ONE))
    assert builder.built == 1


@pytest.mark.parametrize(
    ("record", "policies", "now"),
    [
        (replace(RECORD, generation="second"), ONE, 100.0),
        (RECORD, OTHER, 100.0),
        (RECORD, {}, 100.0),
        (RECORD, ONE, 150.0),  # when a policy ends
        (RECORD, ONE, 99.0),  # a clock that was set back
    ],
)
def test_anything_else_is_built_anew_or_nothing_is(
    record: AgentRecord, policies: PolicyHashes, now: float
) -> None:
    builder = Builder(until=150)
    builder.of()
    builder.now, builder.fails = now, True
    with pytest.raises(PolicyError):
        builder.of(record, policies)
    builder.now, builder.fails = 100.0, False
    builder.of()
    assert builder.built == 2, "what did not hold once is not used again"


def test_who_does_not_come_any_more_is_forgotten() -> None:
    builder = Builder()
    for number in range(5):
        builder.now += 10
        builder.of(replace(RECORD, enrolment=replace(ENROLMENT, agent_id=AgentId(f"agent-{number}"))))
    assert len(builder.kept) == 3
    builder.now += 45
    builder.of(replace(RECORD, enrolment=replace(ENROLMENT, agent_id=AgentId("agent-4"))))
    assert len(builder.kept) == 2, "agents 3 and 4: the one before has not come for 65 seconds"
    builder.now += 100
    builder.of()
    assert len(builder.kept) == 1
