"""The database's time between two looks at it."""

import pytest

from keylime.database.clock import DatabaseClock, uptime


def test_it_goes_on_from_what_the_database_said_last() -> None:
    elapsed = [100.0]
    clock = DatabaseClock(lambda: elapsed[0])
    clock.observe(5_000.0, 99.9, 100.0)
    elapsed[0] = 107.5
    assert clock.now() == 5_007.5
    clock.observe(1_400.0, 107.4, 107.5)  # somebody has set the database's clock
    assert clock.now() == 1_400.0


def test_an_answer_that_took_long_does_not_set_it() -> None:
    clock = DatabaseClock(lambda: 109.0)
    clock.observe(5_000.0, 99.9, 100.0)
    clock.observe(5_000.5, 100.0, 109.0)
    assert clock.now() == 5_009.0


def test_but_it_is_better_than_none() -> None:
    clock = DatabaseClock(lambda: 109.0)
    clock.observe(5_000.5, 100.0, 109.0)
    assert clock.now() == 5_000.5


def test_this_machines_clock_stands_in_for_one_that_was_never_seen() -> None:
    assert DatabaseClock().now() > 1_700_000_000


def test_the_time_since_the_start_of_the_machine_does_not_go_back() -> None:
    first = uptime()
    assert uptime() >= first == pytest.approx(first)
