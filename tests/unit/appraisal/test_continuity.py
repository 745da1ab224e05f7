"""Clock and counters of a TPM from one quote to the next (attacks Q8, Q25, Q26; decisions T10, D10)."""

import pytest

from keylime.appraisal.checkpoint import BootSession
from keylime.appraisal.continuity import Continuity, judge_continuity
from keylime.tpm.structures import ClockInfo

BEFORE = BootSession(reset_count=5, restart_count=2, clock=1000, boottime=77)


@pytest.mark.parametrize(
    ("reset", "restart", "clock", "boottime", "expected"),
    [
        (5, 2, 1001, 77, Continuity.SAME_BOOT),
        (5, 2, 1000, 77, Continuity.SAME_BOOT),  # two quotes within one millisecond
        (6, 0, 1001, 77, Continuity.REBOOTED),
        (6, 0, 5, 99, Continuity.REBOOTED),
        (5, 3, 1001, 77, Continuity.RESUMED),
        (5, 2, 1001, 78, Continuity.RESUMED),
    ],
)
def test_what_goes_on_is_told_from_what_starts_anew(
    reset: int, restart: int, clock: int, boottime: int, expected: Continuity
) -> None:
    result = judge_continuity(BEFORE, ClockInfo(clock, reset, restart, True), boottime)
    assert (result.continuity, result.findings) == (expected, ())


@pytest.mark.parametrize(("reset", "restart", "clock"), [(4, 9, 2000), (5, 1, 2000), (5, 2, 999), (5, 2, 1)])
def test_nothing_may_go_back(reset: int, restart: int, clock: int) -> None:
    result = judge_continuity(BEFORE, ClockInfo(clock, reset, restart, True), 77)
    assert [finding.event_id for finding in result.findings] == ["qoute_validation.quote_validation"]
    assert not result.findings[0].recoverable


def test_an_unsafe_clock_that_went_back_is_reported_and_not_refused() -> None:
    result = judge_continuity(BEFORE, ClockInfo(1, 5, 2, False), 77)
    assert result.findings == ()
    assert result.notes


def test_the_first_quote_has_nothing_to_go_on_from() -> None:
    assert judge_continuity(None, ClockInfo(1, 1, 1, True), 0).continuity is Continuity.FIRST
