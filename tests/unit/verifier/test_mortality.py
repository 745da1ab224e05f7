"""Who is taken for dead, by whose clock, and what is missing then."""

import pytest

from keylime_verifier.agents.shards import MemberId
from keylime_verifier.sharing.signs_of_life import (
    ShardGap,
    Sign,
    SignsOfLife,
    lease_problem,
    missing_shards,
    taken_for_dead,
)

A = MemberId("a")
B = MemberId("b")
C = MemberId("c")
D = MemberId("d")
ME = MemberId("me")
ANOTHER = MemberId("another")

MOST_S = 7.5  # of a lease of ten seconds


def seen(*looks: tuple[float, dict[MemberId, float]]) -> SignsOfLife:
    watch = SignsOfLife()
    for now, shown in looks:
        watch = watch.after(shown, now, MOST_S)
    return watch


def test_who_shows_the_same_for_long_is_silent_whatever_the_mark_is() -> None:
    watch = seen((0, {A: 5, B: 5}), (5, {A: 6, B: 5}), (10, {A: 1, B: 5}), (15, {A: 9, B: 5}))
    assert watch.silent(15) == {B}
    assert watch.silent(16) == set()


def test_who_is_forgotten_by_the_others_is_silent_too_and_lives_when_it_is_back() -> None:
    watch = seen((0, {A: 5}), (5, {}), (10, {}), (15, {}), (20, {}), (25, {}))
    assert watch.silent(20) == {A}
    assert watch.after({A: 5}, 30, MOST_S).silent(1) == set()


def test_who_could_not_look_for_a_while_knows_little_of_the_dead() -> None:
    """While the database is away nobody can renew a lease."""
    watch = seen((0, {A: 5}), (5, {A: 5}), (600, {A: 5}))
    assert watch.silent(13) == set()
    assert watch.after({A: 6}, 605, MOST_S).silent(1) == set()


def test_looks_that_are_late_each_time_find_the_dead_all_the_same() -> None:
    assert seen((0, {A: 5}), (20, {A: 5}), (40, {A: 5}), (60, {A: 5})).silent(20) == {A}


@pytest.mark.parametrize(
    ("silent", "owned", "missing"),
    [
        (set(), {ME: 128, A: 128}, 0),
        ({A}, {ME: 128, A: 128}, 128),
        ({A}, {ME: 200, A: 56}, 56),
        (set(), {ME: 100, A: 156}, 0),
        (set(), {ME: 100, A: 100, None: 56}, 28),
        (set(), {ME: 128, A: 100, "unknown": 28}, 0),
        (set(), {ME: 100, A: 128, "unknown": 28}, 28),
    ],
)
def test_what_belongs_to_nobody_who_lives_is_missing_as_far_as_it_is_our_share(
    silent: set[MemberId], owned: dict[MemberId | None, int], missing: int
) -> None:
    assert missing_shards(ME, silent, {ME, A}, owned) == missing


def test_a_lease_that_does_not_move_is_a_problem_and_so_is_a_database_that_is_away() -> None:
    def problem(signs: SignsOfLife, now: float) -> str:
        return lease_problem(signs, ME, now, 15.0) or ""

    assert problem(SignsOfLife(), 0.0).startswith("not reached")
    alive = SignsOfLife({ME: Sign(1.0)}, looked_at=100.0)
    assert problem(alive, 114.9) == ""
    assert problem(alive, 115.0).startswith("not reached")
    for sign in (Sign(1.0, 15.0), Sign(None)):
        assert problem(SignsOfLife({ME: sign}, looked_at=100.0), 100.0).startswith("the lease has ended")
    assert problem(SignsOfLife({ANOTHER: Sign(1.0)}, looked_at=100.0), 100.0).startswith("the lease has")


def test_two_leases_of_silence_are_death_and_ten_minutes_for_other_groups() -> None:
    ours = SignsOfLife({ME: Sign(1.0, 99.0), A: Sign(1.0, 20.0), B: Sign(1.0, 15.0)})
    others = SignsOfLife({C: Sign(1.0, 599.0), D: Sign(1.0, 600.0)})

    def dead(within_s: float) -> set[MemberId]:
        return set(taken_for_dead(ours, others, ME, lease_s=10.0, within_s=within_s))

    assert dead(0.0) == {A, D}
    assert dead(5.0) == {A, B, C, D}


def test_a_gap_is_long_after_two_leases_and_ends_when_nothing_is_missing() -> None:
    gap = ShardGap().after(3, 100.0).after(2, 115.0)
    assert (gap.shards, gap.is_long(119.9, 10.0), gap.is_long(120.0, 10.0)) == (2, False, True)
    assert gap.after(0, 130.0) == ShardGap()
    assert not ShardGap().is_long(1000.0, 10.0)
