"""How often one address may register."""

from keylime_registrar.throttle import Throttle


def test_a_burst_is_admitted_and_then_only_the_rate() -> None:
    throttle = Throttle(rate=2.0, burst=3)
    assert [throttle.admits("a", 100.0) for _ in range(4)] == [True, True, True, False]
    assert [throttle.admits("a", 100.5), throttle.admits("a", 100.5)] == [True, False]


def test_waiting_long_gives_no_more_than_the_burst() -> None:
    throttle = Throttle(rate=2.0, burst=2)
    assert throttle.admits("a", 0.0)
    assert [throttle.admits("a", 1e6) for _ in range(3)] == [True, True, False]


def test_one_address_does_not_use_up_anothers_share() -> None:
    throttle = Throttle(rate=1.0, burst=1)
    assert throttle.admits("a", 0.0)
    assert not throttle.admits("a", 0.0)
    assert throttle.admits("b", 0.0)


def test_memory_is_bounded_and_the_address_unseen_for_longest_is_forgotten() -> None:
    throttle = Throttle(rate=1.0, burst=1, capacity=2)
    assert throttle.admits("a", 0.0)
    assert throttle.admits("b", 0.0)
    assert throttle.admits("c", 0.0)
    assert throttle.admits("a", 0.0)  # forgotten
    assert not throttle.admits("c", 0.0)  # remembered
