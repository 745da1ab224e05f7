"""Turns at costly work: a bounded queue that no source fills, and the next turn for who has cost least."""

from keylime.http.sources import source_prefixes
from keylime.http.turns import Turn, Turns

NOW = 1000.0


def turn(address: str, *, goes_first: bool = False) -> Turn:
    return Turn(source_prefixes(address), goes_first)


def joined(turns: Turns, *addresses: str) -> list[Turn]:
    """Those of the addresses that were taken in."""
    made = [turn(address) for address in addresses]
    return [one for one in made if turns.join(one, NOW) is not one]


def test_n7_one_address_waits_in_a_quarter_of_the_queue_and_its_network_in_half() -> None:
    turns = Turns(16)
    assert len(joined(turns, *["10.0.0.1"] * 10)) == 4
    assert len(joined(turns, *[f"10.0.0.{host}" for host in range(2, 20)])) == 4
    assert len(joined(turns, "192.0.2.1")) == 1


def test_n7_a_full_queue_makes_room_for_a_source_that_has_less_in_it() -> None:
    turns = Turns(4)
    first, second, *_ = joined(turns, "10.0.0.1", "10.0.0.2", "10.1.0.1", "10.2.0.1")
    assert not turns.has_room(turn("10.0.0.3"), NOW)
    assert turns.has_room(turn("192.0.2.1"), NOW)
    assert turns.join(turn("192.0.2.1"), NOW) is second
    assert turns.next(NOW) is first


def test_n7_a_full_queue_makes_room_for_a_source_that_has_cost_less() -> None:
    turns = Turns(4)
    costly = joined(turns, *[f"10.{number}.0.1" for number in range(4)])
    newcomer = turn("192.0.2.1")
    assert turns.join(newcomer, NOW) is newcomer, "of equals those stay that were there first"
    turns.charge(costly[2], 5, NOW)
    assert turns.join(newcomer, NOW) is costly[2]


def test_n7_the_next_turn_is_of_the_source_that_has_cost_least() -> None:
    turns = Turns(16)
    hostile, neighbour, honest = turn("10.0.0.1"), turn("10.0.0.2"), turn("192.0.2.1")
    turns.charge(hostile, 3, NOW)
    for one in (hostile, neighbour, honest):
        assert turns.join(one, NOW) is None
    assert [turns.next(NOW) for _ in range(4)] == [honest, hostile, neighbour, None]


def test_n7_what_a_source_has_cost_is_forgotten_in_time() -> None:
    turns = Turns(16)
    once, again = turn("10.0.0.1"), turn("10.1.0.1")
    turns.charge(once, 10, NOW)
    turns.charge(again, 1, NOW + 600)
    for one in (again, once):
        turns.join(one, NOW + 600)
    assert turns.next(NOW + 600) is once


def test_n7_what_is_remembered_of_sources_is_bounded() -> None:
    turns = Turns(16)
    for number in range(5000):
        turns.charge(turn(f"10.{number >> 8}.{number & 255}.1"), 0.5, NOW)
    turns.charge(worst := turn("192.0.2.1"), 50, NOW)
    assert len(turns._costs) <= 1100
    turns.join(worst, NOW)
    turns.join(other := turn("198.51.100.1"), NOW)
    assert turns.next(NOW) is other


def test_n7_administrators_go_first_and_strangers_never_take_their_places() -> None:
    turns = Turns(4)
    joined(turns, *[f"10.{number}.0.1" for number in range(9)])
    admin = turn("10.0.0.1", goes_first=True)
    turns.charge(admin, 100, NOW)
    assert turns.join(admin, NOW) is None
    assert turns.next(NOW) is admin
    admins = [turn("10.0.0.1", goes_first=True) for _ in range(9)]
    assert sum(turns.join(one, NOW) is None for one in admins) == 4


def test_n7_a_turn_that_is_given_up_makes_room() -> None:
    turns = Turns(1)
    (first,) = joined(turns, "10.0.0.1")
    turns.leave(first)
    turns.leave(first)
    assert joined(turns, "10.1.0.1")
