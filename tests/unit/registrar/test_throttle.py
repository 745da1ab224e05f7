"""How often one address may register."""

from keylime_registrar.throttle import Throttle


def admits(throttle: Throttle, address: str, now: float) -> bool:
    return throttle.wait_s(address, now) == 0


def test_a_burst_is_admitted_and_then_only_the_rate() -> None:
    throttle = Throttle(rate=2.0, burst=3)
    assert [admits(throttle, "a", 100.0) for _ in range(4)] == [True, True, True, False]
    assert [admits(throttle, "a", 100.5), admits(throttle, "a", 100.5)] == [True, False]


def test_waiting_long_gives_no_more_than_the_burst() -> None:
    throttle = Throttle(rate=2.0, burst=2)
    assert admits(throttle, "a", 0.0)
    assert [admits(throttle, "a", 1e6) for _ in range(3)] == [True, True, False]


def test_one_address_does_not_use_up_anothers_share() -> None:
    throttle = Throttle(rate=1.0, burst=1)
    assert admits(throttle, "a", 0.0)
    assert not admits(throttle, "a", 0.0)
    assert admits(throttle, "b", 0.0)


def test_memory_is_bounded_and_the_address_unseen_for_longest_is_forgotten() -> None:
    throttle = Throttle(rate=1.0, burst=1, capacity=2)
    assert admits(throttle, "a", 0.0)
    assert admits(throttle, "b", 0.0)
    assert admits(throttle, "c", 0.0)
    assert admits(throttle, "a", 0.0)  # forgotten
    assert not admits(throttle, "c", 0.0)  # remembered


def test_who_is_refused_learns_when_to_come_back() -> None:
    throttle = Throttle(rate=0.5, burst=1)
    assert throttle.wait_s("a", 0.0) == 0
    assert throttle.wait_s("a", 0.5) == 1.5
    assert throttle.wait_s("a", 1.9) > 0
    assert throttle.wait_s("a", 2.0) == 0
