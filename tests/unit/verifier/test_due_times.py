"""When agents are asked next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime_verifier.polling.due_times import due_at, given_up_due_at, tick_s


@pytest.mark.parametrize(("chance", "at"), [(-1.0, 1001.9), (0.0, 1002.0), (1.0, 1002.1)])
def test_agents_that_were_added_together_drift_apart(chance: float, at: float) -> None:
    assert due_at(1000.0, 2.0, tick_s(2.0, 1000), chance) == pytest.approx(at)


def test_those_that_are_due_at_almost_the_same_time_are_asked_together() -> None:
    tick = tick_s(100.0, agents=100)
    assert tick == 5.0
    assert {due_at(now, 100.0, tick, 0.0) for now in (1000.0, 1001.0, 1002.0)} == {1100.0}
    assert due_at(1001.0, 100.0, tick, 0.01) == 1100.0


@pytest.mark.parametrize(("agents", "tick"), [(0, 0.5), (320, 0.5), (321, 0.25), (5000, 0.03125)])
def test_at_most_sixteen_are_asked_together(agents: int, tick: float) -> None:
    assert tick_s(10.0, agents) == tick
    assert agents * tick / 10.0 <= 16


@given(st.integers(0, 100_000), st.integers(0, 100_000))
def test_of_two_grids_the_finer_one_has_all_times_of_the_other(fewer: int, more: int) -> None:
    ticks = sorted((tick_s(7.0, fewer), tick_s(7.0, more)))
    assert (ticks[1] / ticks[0]).is_integer()


@given(st.floats(0.001, 1e6), st.floats(0.1, 3600.0), st.integers(1, 100_000), st.floats(-1.0, 1.0))
def test_nobody_is_moved_in_time_by_more_than_half_of_what_agents_drift(
    now: float, interval: float, agents: int, chance: float
) -> None:
    exact = now + interval * (1 + 0.05 * chance)
    assert abs(due_at(now, interval, tick_s(interval, agents), chance) - exact) <= interval * 0.025 + 1e-6


def test_what_is_due_within_a_tick_is_not_put_off_to_the_grid() -> None:
    assert due_at(1000.3, 0.0, 1.0, 1.0) == 1000.3
    assert due_at(1000.3, 0.5, 1.0, 0.0) == 1000.8


def test_an_interval_of_nothing_has_a_tick_all_the_same() -> None:
    assert tick_s(0.0, 100) > 0


def test_those_that_were_given_up_are_asked_at_a_rate() -> None:
    at, last = 1000.0, 0.0
    times = []
    for _ in range(300):
        last = given_up_due_at(at, last, agents=300)
        times.append(last)
    assert times[0] == 1000.0
    assert times[-1] == pytest.approx(1000.0 + 299 / 100)
    assert times == sorted(times)


def test_turns_of_agents_that_are_gone_are_not_waited_for() -> None:
    assert given_up_due_at(1000.0, 5000.0, agents=200) == 1002.0
