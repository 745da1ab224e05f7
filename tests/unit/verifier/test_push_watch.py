"""From when on a verifier may tell of silent machines."""

from keylime_verifier.pushing.watch import Watch

DATABASE = 1_900_000_000.0


def seen(watch: Watch, *elapsed: float, ahead: float = DATABASE) -> list[bool]:
    return [watch.sees(at, ahead + at) for at in elapsed]


def test_a_verifier_watches_for_as_long_as_a_machine_may_be_silent_before_it_tells_of_any() -> None:
    assert seen(Watch(10), 100, 105, 109, 110, 115) == [False, False, False, True, True]


def test_after_an_outage_machines_get_the_same_time_again() -> None:
    watch = Watch(10)
    assert seen(watch, 0, 5, 10) == [False, False, True]
    watch.is_interrupted()
    assert seen(watch, 12, 17, 22) == [False, False, True]


def test_so_they_do_after_a_pause_of_the_process() -> None:
    assert seen(Watch(10), 0, 5, 10, 20, 31, 36, 41) == [False, False, True, True, False, False, True]


def test_so_they_do_when_the_databases_clock_is_set() -> None:
    for step in (-3600.0, 3600.0):
        watch = Watch(10)
        assert seen(watch, 0, 10) == [False, True]
        assert seen(watch, 15, 24, 25, ahead=DATABASE + step) == [False, False, True]
    assert seen(Watch(10), 0, 10) == seen(Watch(10), 0, 10, ahead=0.0)
