"""Who is taken for dead, by somebody who watches counters on a clock of his own."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime_verifier.agents.shards import MemberId
from keylime_verifier.sharing.liveness import Pulse, Watch

OTHER = MemberId("other")
OLD = MemberId("old")
NEW = MemberId("new")

LEASE_S = 6.0
INTERVAL_S = 2.0


def watched(*looks: tuple[float, int], lease_s: float = LEASE_S) -> Watch:
    """The watch over one member after looks (time, its counter)."""
    watch = Watch()
    for at, renewals in looks:
        watch = watch.look({OTHER: Pulse(renewals, lease_s)}, at=at, lease_s=LEASE_S)
    return watch


def test_who_does_not_renew_for_a_whole_lease_is_dead() -> None:
    looks = [(2.0 * number, 1) for number in range(4)]
    assert watched(*looks[:3]).silent() == frozenset()
    assert watched(*looks).silent() == {OTHER}
    assert watched(*looks).silent_s(OTHER) == 6.0


def test_who_renews_in_time_is_alive() -> None:
    assert watched(*((2.0 * number, number) for number in range(100))).silent() == frozenset()


def test_whoever_has_just_joined_takes_nobody_for_dead() -> None:
    assert watched((1000.0, 1)).silent() == frozenset()


def test_a_counter_that_goes_back_is_a_sign_of_life_too() -> None:
    assert watched((0, 9), (2, 9), (4, 9), (6, 3)).silent() == frozenset()


def test_a_time_without_looks_is_nobodys_silence() -> None:
    watch = watched((0, 1), (2, 1), (4, 1), (13, 1))
    assert watch.silent() == frozenset()
    for at in (15.0, 17.0):
        watch = watch.look({OTHER: Pulse(1, LEASE_S)}, at=at, lease_s=LEASE_S)
        assert watch.silent() == frozenset(), "a whole lease from the first look on"
    watch = watch.look({OTHER: Pulse(1, LEASE_S)}, at=19.0, lease_s=LEASE_S)
    assert watch.silent() == {OTHER}


def test_who_can_look_only_now_and_then_needs_more_looks() -> None:
    """On a machine that is too busy a dead member is found late, but found."""
    looks = [(5.0 * number, 1) for number in range(5)]
    assert watched(*looks[:4]).silent() == frozenset()
    assert watched(*looks).silent() == {OTHER}


def test_a_clock_that_goes_back_begins_anew() -> None:
    assert watched((100, 1), (102, 1), (50, 1), (54, 1)).silent() == frozenset()


def test_each_member_has_the_lease_that_it_asked_for() -> None:
    looks = [(2.0 * number, 1) for number in range(5)]
    assert watched(*looks, lease_s=60.0).silent() == frozenset()
    assert watched(*looks, lease_s=2.0).silent() == {OTHER}


def test_a_verifier_of_the_release_before_is_alive_while_it_prolongs_its_lease() -> None:
    watch, old = Watch(), Pulse(0, LEASE_S, 1_000.0)
    for number in range(10):
        watch = watch.look({OLD: replace(old, expires_at=1_000.0 + number)}, at=2.0 * number, lease_s=LEASE_S)
        assert watch.silent() == frozenset()


def test_who_is_gone_from_the_table_is_forgotten() -> None:
    watch = watched((0, 1), (2, 1)).look({}, at=4, lease_s=LEASE_S)
    assert (watch.silent(), watch.silent_s(OTHER)) == (frozenset(), 0.0)


@given(
    outage_begins=st.floats(10, 20),
    outage_s=st.floats(0, 60),
    phases=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    retries=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
)
def test_no_outage_of_the_database_is_anybodys_death(
    outage_begins: float, outage_s: float, phases: tuple[float, float], retries: tuple[float, float]
) -> None:
    """Two members renew at their own times; both fail during the outage, and try again at once after it."""
    outage_ends = outage_begins + outage_s
    events: list[tuple[float, int]] = []
    for member in (0, 1):
        at = INTERVAL_S * phases[member]
        while at < outage_ends + 30:
            if outage_begins <= at < outage_ends:
                at = outage_ends + retries[member]
            events.append((at, member))
            at += INTERVAL_S
    watches, counters = [Watch(), Watch()], [0, 0]
    for at, member in sorted(events):
        counters[member] += 1
        pulses = {MemberId(str(number)): Pulse(counter, LEASE_S) for number, counter in enumerate(counters)}
        watches[member] = watches[member].look(pulses, at=at, lease_s=LEASE_S)
        assert watches[member].silent() == frozenset()


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.9, 1.9])
def test_a_dead_member_is_known_within_two_leases(phase: float) -> None:
    died_at, watch, at = 10.0 + phase, Watch(), 0.0
    while not watch.silent():
        counter = int(min(at, died_at) / INTERVAL_S)
        watch = watch.look({OTHER: Pulse(counter, LEASE_S)}, at=at, lease_s=LEASE_S)
        at += INTERVAL_S
    assert watch.looked_at is not None
    assert watch.looked_at - died_at < 2 * LEASE_S


def test_at_work_is_who_was_seen_to_renew_or_to_join() -> None:
    first = Watch().look({OLD: Pulse(5, LEASE_S)}, at=0, lease_s=LEASE_S)
    assert first.at_work() == frozenset(), "it may be dead"
    joined = {OLD: Pulse(5, LEASE_S), NEW: Pulse(1, LEASE_S)}
    assert first.look(joined, at=2, lease_s=LEASE_S).at_work() == {NEW}
    moved = first.look({OLD: Pulse(6, LEASE_S)}, at=2, lease_s=LEASE_S)
    assert moved.at_work() == {OLD}
    assert moved.look({OLD: Pulse(6, LEASE_S)}, at=20, lease_s=LEASE_S).at_work() == frozenset()
