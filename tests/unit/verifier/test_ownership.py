"""Who takes and releases which shards, decided by each member for itself, in any order and with any delay."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.identifiers import AgentId
from keylime_verifier.agents.shards import SHARDS, MemberId, shard_of
from keylime_verifier.sharing.ownership import fair_share, next_moves

A = MemberId("a")
B = MemberId("b")
C = MemberId("c")
D = MemberId("d")
E = MemberId("e")

MEMBERS = (A, B, C, D, E)
member_sets = st.sets(st.sampled_from(MEMBERS), min_size=1)


@dataclass
class Group:
    """The database as the members see it."""

    alive: set[MemberId]
    owners: dict[int, MemberId | None] = field(default_factory=lambda: dict.fromkeys(range(SHARDS)))

    def act(self, me: MemberId) -> bool:
        """One step of a member; whether it changed anything."""
        moves = next_moves(me, self.alive, self.owners)
        for shard in moves.take:
            assert self.owners[shard] not in self.alive - {me}, "taken from a member that is alive"
            self.owners[shard] = me
        for shard in moves.release:
            assert self.owners[shard] == me
            self.owners[shard] = None
        return bool(moves.take or moves.release)

    def settle(self, order: list[MemberId]) -> None:
        """Steps in the given order, again and again, until nobody has anything left to do."""
        for _ in range(2 * len(MEMBERS)):
            changed = [self.act(member) for member in order if member in self.alive]
            if not any(changed):
                return
        raise AssertionError("they never come to rest")

    def shares(self) -> list[int]:
        return sorted(list(self.owners.values()).count(member) for member in self.alive)


@given(
    st.lists(st.tuples(member_sets, st.permutations(MEMBERS)), min_size=1, max_size=6),
    st.data(),
)
def test_whoever_comes_and_goes_all_shards_are_shared_out_fairly(
    history: list[tuple[set[MemberId], list[MemberId]]], data: st.DataObject
) -> None:
    group = Group(set())
    last_order: list[MemberId] = []
    for alive, order in history:
        last_order = order
        group.alive = set(alive)
        for member in data.draw(st.lists(st.sampled_from(sorted(alive)), max_size=4)):
            group.act(member)  # a few steps before the next change
    group.settle(last_order)
    shares = group.shares()
    assert sum(shares) == SHARDS
    assert shares[-1] - shares[0] <= 1


@given(member_sets)
def test_shares_add_up(alive: set[MemberId]) -> None:
    assert sum(fair_share(member, alive) for member in alive) == SHARDS


@given(member_sets, st.lists(st.sampled_from([*MEMBERS, None]), min_size=SHARDS, max_size=SHARDS))
def test_nothing_is_taken_from_the_living_or_given_up_without_need(
    alive: set[MemberId], owners: list[MemberId | None]
) -> None:
    group = Group(alive, dict(enumerate(owners)))
    for me in alive:
        moves = next_moves(me, alive, group.owners)
        assert not moves.take & {shard for shard, owner in group.owners.items() if owner in alive}
        left = owners.count(me) - len(moves.release) + len(moves.take)
        assert left >= min(owners.count(me), fair_share(me, alive))
        assert not (moves.take and moves.release)


def test_a_member_that_does_not_see_itself_yet_counts_all_the_same() -> None:
    moves = next_moves(B, {A}, dict.fromkeys(range(SHARDS), A))
    assert (moves.take, moves.release) == (frozenset(), frozenset())
    assert fair_share(B, {A}) == SHARDS // 2


@pytest.mark.parametrize(
    ("agent_id", "shard"),
    [("d432fbb3-d2f1-4a97-9ef7-75bd81c00000", 15), ("agent-1", 111)],
)
def test_the_shard_of_an_agent_never_changes(agent_id: str, shard: int) -> None:
    assert shard_of(AgentId(agent_id)) == shard, "stored with every agent, and computed by every release"


def test_nothing_is_given_up_for_a_member_that_may_be_dead() -> None:
    mine: dict[int, MemberId | None] = dict.fromkeys(range(SHARDS), A)
    assert next_moves(A, {A, B}, mine, {A}).release == frozenset()
    assert len(next_moves(A, {A, B}, mine, {A, B}).release) == SHARDS // 2


def test_a_row_that_is_left_over_does_not_keep_free_shards_from_a_verifier_that_starts() -> None:
    free: dict[int, MemberId | None] = dict.fromkeys(range(SHARDS))
    assert len(next_moves(A, {A, MemberId("left-over")}, free, {A}).take) == SHARDS


def test_nothing_is_taken_from_a_member_that_may_be_dead() -> None:
    half = {shard: B if shard % 2 else None for shard in range(SHARDS)}
    moves = next_moves(A, {A, B}, half, {A})
    assert len(moves.take) == SHARDS // 2
    assert not any(shard % 2 for shard in moves.take)


@given(st.integers(1, 60), st.integers(0, 40))
def test_members_of_whom_nothing_is_known_do_not_make_shards_go_to_and_fro(
    at_work: int, unknown: int
) -> None:
    known = {MemberId(f"k{number}") for number in range(at_work)}
    alive = known | {MemberId(f"u{number}") for number in range(unknown)}
    owners: dict[int, MemberId | None] = dict.fromkeys(range(SHARDS))
    for _ in range(3):
        for me in sorted(known):
            moves = next_moves(me, alive, owners, known)
            assert not moves.release
            owners |= dict.fromkeys(moves.take, me)
    assert None not in owners.values()
