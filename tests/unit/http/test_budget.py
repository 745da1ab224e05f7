"""Room for bodies: bounded in sum, shared out by source, and lost by those that hold it without progress."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.http.budget import BodyBudget, BodyClaim, State
from keylime.http.sources import source_prefixes

MIB = 1 << 20


class Scene:
    """A budget under a clock that the test moves."""

    def __init__(self, total: int = 64 * MIB) -> None:
        self.budget = BodyBudget(total)
        self.now = 1000.0

    def ask(self, address: str, size: int = 4 * MIB) -> BodyClaim:
        claim, _ = self.budget.claim(source_prefixes(address), size, self.now)
        return claim

    def later(self, seconds: float) -> list[BodyClaim]:
        """Who gets room within some seconds, in which everybody who waits is looked after."""
        granted: list[BodyClaim] = []
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            granted += self.budget.settle(self.now).granted
        return granted

    def send(self, claim: BodyClaim, count: int) -> bool:
        return self.budget.receive(claim, count, self.now)[0]


def neighbours(count: int, network: int = 0) -> list[str]:
    return [f"10.0.{network}.{host}" for host in range(1, count + 1)]


def networks(count: int) -> list[str]:
    return [f"10.{number}.0.1" for number in range(count)]


def states(claims: list[BodyClaim]) -> dict[State, int]:
    return {state: sum(claim.state is state for claim in claims) for state in State}


def test_n7_the_sum_of_all_bodies_is_bounded_whoever_sends_them() -> None:
    scene = Scene()
    claims = [scene.ask(address) for address in networks(60)]
    assert states(claims)[State.HELD] == 16
    assert scene.budget.in_use == 64 * MIB


def test_n7_one_address_has_a_quarter_and_its_network_half() -> None:
    scene = Scene()
    assert states([scene.ask("10.0.0.1") for _ in range(10)])[State.HELD] == 4
    assert states([scene.ask(address) for address in neighbours(9)])[State.HELD] == 0
    scene = Scene()
    assert states([scene.ask(address) for address in neighbours(20)])[State.HELD] == 8
    assert scene.budget.exceeds_share(scene.ask("10.0.0.1"))
    assert not scene.budget.exceeds_share(scene.ask("10.0.1.1"))


def test_n7_a_single_body_may_be_larger_than_a_share_but_not_than_the_whole() -> None:
    scene = Scene()
    assert scene.ask("10.0.0.1", 60 * MIB).state is State.HELD
    assert Scene().ask("10.0.0.1", 65 * MIB).state is State.WAITING


def test_n7_a_body_that_is_held_without_progress_loses_to_one_that_waits() -> None:
    scene = Scene()
    held = [scene.ask(address) for address in networks(16)]
    assert all(claim.state is State.HELD for claim in held)
    newcomer = scene.ask("192.0.2.1")
    assert newcomer.state is State.WAITING
    assert scene.later(1) == [], "everybody may take a moment to begin"
    assert scene.later(2) == [newcomer]
    assert states(held)[State.ENDED] == 1


def test_n7_without_anybody_waiting_nobody_loses() -> None:
    scene = Scene()
    held = [scene.ask(address) for address in networks(16)]
    scene.later(60)
    assert all(claim.state is State.HELD for claim in held)


def test_n7_who_makes_progress_keeps_his_room_and_who_trickles_does_not() -> None:
    scene = Scene()
    fast, *slow = [scene.ask(address) for address in networks(16)]
    waiting = [scene.ask(f"192.0.{number}.1") for number in range(15)]
    for _ in range(40):
        scene.send(fast, MIB // 20)
        for claim in slow:
            if claim.state is State.HELD:
                scene.send(claim, 10)
        scene.later(0.1)
    assert fast.state is State.HELD
    assert all(claim.state is State.ENDED for claim in slow)
    assert all(claim.state is State.HELD for claim in waiting)


def test_n7_a_body_that_has_come_is_kept_until_it_is_answered() -> None:
    scene = Scene()
    held = [scene.ask(address) for address in networks(16)]
    for claim in held:
        scene.send(claim, 4 * MIB)
        scene.budget.complete(claim)
    newcomer = scene.ask("192.0.2.1")
    assert scene.later(60) == []
    scene.budget.release(held[3])
    assert scene.later(0.1) == [newcomer]


def test_n7_the_fullest_source_yields_to_a_quiet_one_at_once() -> None:
    scene = Scene()
    full = [scene.ask(address) for address in neighbours(8)]
    for address in networks(4)[1:]:
        full.extend(scene.ask(address) for _ in range(2))
    assert scene.budget.in_use < 64 * MIB
    while scene.budget.in_use < 64 * MIB:
        full.append(scene.ask(f"10.99.{len(full)}.1"))
    newcomer = scene.ask("192.0.2.1")
    assert scene.later(0.1) == [newcomer]
    (loser,) = [claim for claim in full if claim.state is State.ENDED]
    assert loser.prefixes[-1] == "10.0.0.0/24"


def test_n7_a_stranger_with_64_prefixes_does_not_keep_an_honest_one_out() -> None:
    """All of them hold what they can, and are back as soon as they have lost it."""
    scene = Scene()
    hostile = networks(64)
    claims = {address: scene.ask(address) for address in hostile}
    honest = scene.ask("192.0.2.1")
    for _ in range(600):
        scene.later(0.1)
        for address in hostile:
            if claims[address].state is State.ENDED:
                claims[address] = scene.ask(address)
        if honest.state is State.ENDED:  # too many were waiting
            honest = scene.ask("192.0.2.1")
        if honest.state is State.HELD:
            break
    assert honest.state is State.HELD


def test_n7_those_that_wait_are_bounded_and_the_fullest_source_gives_way() -> None:
    scene = Scene(MIB)
    crowd = [scene.ask("10.0.0.1", MIB) for _ in range(200)]
    assert states(crowd) == {State.HELD: 1, State.WAITING: 64, State.ENDED: 135}
    honest = scene.ask("192.0.2.1", MIB)
    assert honest.state is State.WAITING
    assert states(crowd)[State.WAITING] == 63


def test_n8_a_body_of_unknown_length_grows_as_it_comes_and_not_over_the_sum() -> None:
    scene = Scene(2 * MIB)
    claim = scene.ask("10.0.0.1", 0)
    other = scene.ask("10.1.0.1", MIB)
    scene.send(other, MIB)
    scene.budget.complete(other)
    assert all(scene.send(claim, 1 << 16) for _ in range(16))
    assert not scene.send(claim, 1 << 16)
    assert scene.budget.in_use <= 2 * MIB
    scene.budget.release(other)
    assert scene.send(claim, 1 << 16)


addresses = st.sampled_from([*networks(5), *neighbours(5), "2001:db8::1", "garbage"])
sizes = st.integers(0, 3 * MIB)
steps = st.lists(
    st.tuples(st.sampled_from(["ask", "send", "complete", "release", "wait"]), addresses, sizes), max_size=60
)


@given(steps)
def test_n7_whatever_happens_the_books_balance(steps: list[tuple[str, str, int]]) -> None:
    scene = Scene(8 * MIB)
    claims: list[BodyClaim] = []
    for step, address, size in steps:
        held = [claim for claim in claims if claim.state is State.HELD]
        match step:
            case "ask":
                claims.append(scene.ask(address, size))
            case "wait":
                scene.later(size % 50 / 10)
            case "send" if held:
                scene.send(held[size % len(held)], size)
            case "complete" if held:
                scene.budget.complete(held[size % len(held)])
            case "release" if claims:
                scene.budget.release(claims[size % len(claims)])
            case _:
                pass
        in_use = sum(claim.size for claim in claims if claim.state is State.HELD)
        assert scene.budget.in_use == in_use <= 8 * MIB
    for claim in claims:
        scene.budget.release(claim)
    assert scene.budget.in_use == 0
    assert scene.ask("192.0.2.1", 8 * MIB).state is State.HELD


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_n7_a_tiny_body_counts_as_what_its_connection_costs(size: int) -> None:
    scene = Scene(MIB)
    claims = [scene.ask(address, size) for address in networks(200)]
    assert states(claims)[State.HELD] == 32
