"""Which verdicts count, given what the transaction that writes them finds."""

import dataclasses

import pytest
from msgspec.structs import replace

from keylime.messages.verifier import OperationalState
from keylime_verifier.agents.policy_categories import TextHash
from keylime_verifier.agents.records import AgentRecord, HeldVersions, Progress
from keylime_verifier.agents.shards import MemberId, ShardClaim
from keylime_verifier.polling.fencing import Ruling, StoredState, rule_on_pass, rule_on_rejection, was_told
from tests.unit.verifier.test_status import ENROLMENT

MINE, THEIRS = ShardClaim(MemberId("me"), 7), ShardClaim(MemberId("they"), 7)
HELD_TO = HeldVersions(TextHash("runtime"), TextHash("boot"))
PASS = AgentRecord("i", ENROLMENT, Progress(supported_version="2.5"), MINE, 2)
REJECTED = replace(
    PASS,
    progress=replace(
        PASS.progress,
        operational_state=OperationalState.INVALID_QUOTE,
        severity_level=5,
        is_polled=False,
    ),
)
FOUND = StoredState("i", 2, OperationalState.GET_QUOTE, None, True, MINE, HELD_TO)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (FOUND, Ruling.COUNTS),
        (None, Ruling.DELETED),
        (replace(FOUND, generation="j"), Ruling.ENROLLED_ANEW),
        (replace(FOUND, claim=THEIRS), Ruling.TAKEN_OVER),
        (replace(FOUND, claim=ShardClaim(MemberId("me"), 8)), Ruling.TAKEN_OVER),
        (replace(FOUND, claim=ShardClaim()), Ruling.TAKEN_OVER),
        (replace(FOUND, recalls=3), Ruling.RECALLED),
        (replace(FOUND, versions=HeldVersions()), Ruling.COUNTS),
    ],
)
def test_a_pass_counts_for_the_owner_in_its_epoch_only(found: StoredState | None, expected: Ruling) -> None:
    assert rule_on_pass(PASS, found) is expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (FOUND, Ruling.COUNTS),
        (replace(FOUND, claim=THEIRS), Ruling.COUNTS),
        (replace(FOUND, claim=ShardClaim()), Ruling.COUNTS),
        (replace(FOUND, recalls=9), Ruling.COUNTS),
        (replace(FOUND, state=OperationalState.FAILED, severity_level=6, is_polled=False), Ruling.COUNTS),
        (None, Ruling.DELETED),
        (replace(FOUND, generation="j"), Ruling.ENROLLED_ANEW),
        (
            replace(FOUND, versions=dataclasses.replace(HELD_TO, runtime=TextHash("newer"))),
            Ruling.POLICIES_REPLACED,
        ),
        (replace(FOUND, versions=HeldVersions(HELD_TO.runtime, None)), Ruling.POLICIES_REPLACED),
    ],
)
def test_a_rejection_counts_whoever_owns_the_shard(found: StoredState | None, expected: Ruling) -> None:
    assert rule_on_rejection(REJECTED, HELD_TO, found) is expected


INVALID = replace(FOUND, claim=THEIRS, state=OperationalState.INVALID_QUOTE)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (replace(INVALID, severity_level=5, is_polled=False), Ruling.KNOWN),
        (replace(INVALID, severity_level=6, is_polled=False), Ruling.KNOWN),
        (replace(INVALID, severity_level=5, is_polled=True), Ruling.COUNTS),  # ends the polling
        (replace(INVALID, severity_level=4, is_polled=True), Ruling.COUNTS),  # is graver
        (replace(INVALID, severity_level=5, is_polled=False, claim=MINE), Ruling.KNOWN),  # a repeated attempt
        (replace(INVALID, severity_level=5, is_polled=True, claim=MINE), Ruling.COUNTS),
    ],
)
def test_what_another_verifier_has_found_as_well_is_not_told_twice(
    found: StoredState, expected: Ruling
) -> None:
    assert rule_on_rejection(REJECTED, HELD_TO, found) is expected
    assert was_told(REJECTED, found) == (found.severity_level != 4)
