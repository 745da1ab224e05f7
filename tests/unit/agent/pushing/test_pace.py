from datetime import UTC, datetime

import pytest

from keylime_agent.pushing.pace import LONGEST_S, Pacing, retry_after

PACING = Pacing(interval_s=60, initial_s=10, max_s=300)
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("asked_s", "spread", "pause_s"),
    [
        (2, 0, 2),
        (2, 1, 2.2),
        (None, 0, 60),
        (0, 0, 1),  # a verifier that always says 0 is not flooded
        (10**9, 0, LONGEST_S),  # nor does one that says a great number silence a machine
    ],
)
def test_what_a_verifier_asks_for_is_kept_to_within_bounds(
    asked_s: float | None, spread: float, pause_s: float
) -> None:
    assert PACING.regular(asked_s, spread) == pytest.approx(pause_s)


def test_an_interval_of_more_than_the_bound_is_the_operators_choice() -> None:
    assert Pacing(interval_s=7200, initial_s=10, max_s=300).regular(None, 0) == 7200


def test_pauses_double_up_to_their_limit_and_are_spread_over_half_of_them() -> None:
    assert [PACING.after_failures(n, None, 1) for n in range(1, 8)] == [10, 20, 40, 80, 160, 300, 300]
    assert [PACING.after_failures(n, None, 0) for n in (1, 7, 10_000)] == [5, 150, 150]


def test_the_first_pause_is_no_longer_than_what_the_verifier_is_used_to() -> None:
    assert [PACING.after_failures(n, 2.0, 1) for n in (1, 2, 3)] == [2, 4, 8]
    assert PACING.after_failures(1, 900.0, 1) == 10
    assert PACING.after_failures(1, 0.0, 0) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("17", 17),
        (" 0 ", 0),
        ("Sun, 01 Mar 2026 12:01:30 GMT", 90),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("1.5", None),
        ("-1", None),
        ("soon", None),
        ("9" * 5000, None),
        ("²", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds
