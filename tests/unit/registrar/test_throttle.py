"""How much work a source may cause, alone and among others."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime_registrar.throttle import Allowance, Throttle, fair_share

ALONE = Allowance(burst=3.0, rate=0.5, total=1000.0)


def source(number: int, network: int = 0) -> tuple[str, str]:
    return f"10.{network}.0.{number}/32", f"10.{network}.0.0/24"


def admits(throttle: Throttle, prefixes: tuple[str, ...], now: float, cost: float = 1.0) -> bool:
    """Whether it is admitted; the work is done and charged then."""
    if throttle.wait_s(prefixes, now) > 0:
        return False
    throttle.charge(prefixes, cost, now)
    return True


def test_r20_a_burst_is_admitted_and_then_only_the_rate() -> None:
    throttle = Throttle(ALONE)
    assert [admits(throttle, source(1), 100.0) for _ in range(5)] == [True, True, True, True, False]
    assert not admits(throttle, source(1), 101.9)
    assert admits(throttle, source(1), 102.1)


def test_r20_cheap_work_passes_where_dear_work_waits() -> None:
    throttle = Throttle(ALONE)
    cheap = sum(admits(throttle, source(1), 0.0, cost=0.001) for _ in range(10_000))
    dear = sum(admits(throttle, source(2), 0.0, cost=0.1) for _ in range(10_000))
    assert cheap == pytest.approx(3001, abs=2)
    assert dear == pytest.approx(31, abs=2)


def test_waiting_long_gives_no_more_than_the_burst() -> None:
    throttle = Throttle(ALONE)
    assert admits(throttle, source(1), 0.0)
    assert [admits(throttle, source(1), 1e6) for _ in range(5)] == [True, True, True, True, False]


def test_one_address_does_not_use_up_anothers_burst() -> None:
    throttle = Throttle(ALONE)
    assert admits(throttle, source(1), 0.0, cost=50.0)
    assert not admits(throttle, source(1), 0.0)
    assert admits(throttle, source(2), 0.0)


def test_memory_is_bounded_and_the_network_unseen_for_longest_is_forgotten() -> None:
    throttle = Throttle(ALONE, capacity=2)
    for network in (1, 2, 3):
        assert admits(throttle, source(1, network), 0.0, cost=50.0)
    assert throttle.wait_s(source(1, 1), 0.0) == 0  # forgotten
    assert throttle.wait_s(source(1, 3), 0.0) > 0  # remembered


def test_who_is_refused_learns_when_to_come_back() -> None:
    throttle = Throttle(ALONE)
    throttle.charge(source(1), 4.0, 0.0)
    assert throttle.wait_s(source(1), 0.0) == 2.0
    assert throttle.wait_s(source(1), 1.5) == 0.5
    assert throttle.wait_s(source(1), 2.0) == 0


def flooded(*, networks: int, addresses: int) -> Throttle:
    """Strangers have caused twice as much work as all may, evenly, a moment ago."""
    throttle = Throttle(Allowance(burst=1e9, rate=1e9, total=1.0, window_s=10.0))
    for network in range(1, networks + 1):
        for number in range(addresses):
            throttle.charge(source(number, network), 20.0 / networks / addresses, 0.0)
    return throttle


@pytest.mark.parametrize(("networks", "addresses"), [(64, 1), (1, 64), (32, 32), (2, 1)])
def test_n15_when_all_cause_too_much_a_quiet_source_passes_and_loud_ones_wait(
    networks: int, addresses: int
) -> None:
    throttle = flooded(networks=networks, addresses=addresses)
    assert throttle.wait_s(source(0, 1), 0.0) > 0
    assert admits(throttle, source(7, 100), 0.0, cost=0.001), "from a network of its own"
    assert admits(throttle, source(200, 1), 0.0, cost=0.001), "from a network that it shares with a stranger"
    assert all(admits(throttle, source(7, 100), 0.0, cost=0.002) for _ in range(5)), "a few at once"


def test_n15_who_waits_as_told_is_admitted() -> None:
    throttle = flooded(networks=64, addresses=1)
    wait_s = throttle.wait_s(source(0, 1), 0.0)
    assert 0 < wait_s < 60
    assert throttle.wait_s(source(0, 1), wait_s + 1.0) == 0


def test_n15_somebody_alone_has_all_there_is() -> None:
    throttle = Throttle(Allowance(burst=1e9, rate=1e9, total=1.0, window_s=10.0))
    assert sum(admits(throttle, source(1), 0.0, cost=0.1) for _ in range(1000)) == pytest.approx(101, abs=2)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.floats(0.01, 1000))
def test_shares_fill_the_room_and_nobody_who_wants_less_gets_less(amounts: list[float], room: float) -> None:
    share = fair_share(amounts, room)
    if math.isinf(share):
        assert sum(amounts) <= room * (1 + 1e-9)
    else:
        assert sum(min(amount, share) for amount in amounts) == pytest.approx(room)
        assert share >= room / len(amounts) * (1 - 1e-9)
