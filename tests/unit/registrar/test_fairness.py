"""Who makes room: strangers who take all they can, beside agents that take what they need."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from keylime_registrar.fairness import PendingAttempt, Source, surplus
from tests.effort import examples, tried

CAPACITY = 1 << 20
HONEST_SIZE = 4096


def numbered(*sources: Source, size: int = 1) -> list[PendingAttempt]:
    return [PendingAttempt(number, source, size) for number, source in enumerate(sources)]


def test_while_there_is_room_nobody_goes() -> None:
    assert surplus([], 0) == frozenset()
    assert surplus(numbered(("a",), ("a",)), 2) == frozenset()


def test_the_fullest_source_loses_its_oldest() -> None:
    attempts = numbered(("quiet",), ("loud",), ("loud",), ("loud",), ("other",))
    assert surplus(attempts, 4) == {1}
    assert surplus(attempts, 3) == {1, 2}


def test_of_equally_full_ones_the_source_with_the_oldest_attempt_loses_it() -> None:
    assert surplus(numbered(("a",), ("b",), ("c",)), 2) == {0}


def test_a_newcomer_stays_however_full_it_is() -> None:
    assert surplus(numbered(*[("loud",)] * 100, ("newcomer",)), 50) == frozenset(range(51))


def test_many_addresses_of_one_network_and_many_keys_of_one_address_are_one_source() -> None:
    network = [("network", number, 0) for number in range(6)]
    address = [("other", 0, number) for number in range(4)]
    quiet = [("quiet", 0, 0), ("quiet", 0, 0)]
    attempts = numbered(*quiet, *address, *network)
    assert surplus(attempts, 6) == {2, 3, 6, 7, 8, 9}


def test_one_key_under_many_ids_loses_before_another_key_of_its_address() -> None:
    attempts = numbered(("n", "a", "other key"), *[("n", "a", "one key")] * 5)
    assert surplus(attempts, 2) == {1, 2, 3, 4}


def test_what_is_large_counts_for_more() -> None:
    small = [PendingAttempt(number, ("small", number), 10) for number in range(5)]
    large = [PendingAttempt(number, ("large", number), 100) for number in range(5, 7)]
    assert surplus([*small, *large], 160) == {5}


sources = st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3))


@given(st.lists(st.tuples(sources, st.integers(1, 50)), max_size=60), st.integers(0, 600))
def test_what_is_left_fits_and_not_one_more_than_needed_goes(
    items: Sequence[tuple[Source, int]], capacity: int
) -> None:
    attempts = [PendingAttempt(number, source, size) for number, (source, size) in enumerate(items)]
    gone = surplus(attempts, capacity)
    left = [attempt for attempt in attempts if attempt.attempt_id not in gone]
    assert total(left) <= capacity
    if gone:
        assert total(left) + max(a.size for a in attempts if a.attempt_id in gone) > capacity
    assert gone == by_the_definition(attempts, capacity)


def total(attempts: Iterable[PendingAttempt]) -> int:
    return sum(attempt.size for attempt in attempts)


def by_the_definition(attempts: Sequence[PendingAttempt], capacity: int) -> frozenset[int]:
    """The rule as it is written: the fullest source, level by level, gives up its oldest, again and again."""
    left = list(attempts)
    while total(left) > capacity:
        candidates = left
        for level in range(len(left[0].source)):
            sizes: Counter[object] = Counter()
            for attempt in candidates:
                sizes[attempt.source[level]] += attempt.size
            most = max(sizes.values())
            oldest = min(a.attempt_id for a in candidates if sizes[a.source[level]] == most)
            chosen = next(a.source[level] for a in candidates if a.attempt_id == oldest)
            candidates = [a for a in candidates if a.source[level] == chosen]
        left.remove(min(candidates, key=lambda attempt: attempt.attempt_id))
    return frozenset(a.attempt_id for a in attempts) - frozenset(a.attempt_id for a in left)


@pytest.mark.parametrize("beside", tried(range(0, 64, 7)))
def test_r20_64_prefixes_displace_no_attempt_of_an_agent_wherever_they_are(beside: int) -> None:
    """Some of them are neighbours of the agent, in its own network; the others have a network each."""
    agent = PendingAttempt(0, ("honest network", "honest", "EK"), HONEST_SIZE)
    strangers = [
        PendingAttempt(
            number,
            ("honest network", f"neighbour {number % 64}", number)
            if number % 64 < beside
            else (f"network {number % 64}", number % 64, number),
            2500,
        )
        for number in range(1, 30_000)
    ]
    gone = surplus([agent, *strangers], 8 << 20)
    assert 0 not in gone
    assert len(gone) > 20_000


@dataclass
class Room:
    """The registrar's memory of attempts: added one by one, tidied up now and then."""

    attempts: list[PendingAttempt] = field(default_factory=list)
    added: int = 0

    def add(self, source: Source, size: int) -> int:
        self.added += 1
        self.attempts.append(PendingAttempt(self.added, source, size))
        return self.added

    def tidy(self) -> None:
        gone = surplus(self.attempts, CAPACITY)
        self.attempts = [attempt for attempt in self.attempts if attempt.attempt_id not in gone]

    def has(self, attempt_id: int) -> bool:
        return any(attempt.attempt_id == attempt_id for attempt in self.attempts)


class FloodBesideAgents(RuleBasedStateMachine):
    """Strangers with 64 prefixes, ids, keys and sizes as they like; agents with one attempt each."""

    def __init__(self) -> None:
        super().__init__()
        self.room = Room()
        self.honest: dict[int, int] = {}  # by number of the agent

    @rule(
        prefixes=st.lists(st.integers(0, 63), min_size=1, max_size=8),
        count=st.integers(1, 200),
        size=st.integers(2100, 60_000),
        keys=st.integers(1, 50),
    )
    def strangers_register(self, prefixes: list[int], count: int, size: int, keys: int) -> None:
        for number in range(count):
            prefix = prefixes[number % len(prefixes)]
            self.room.add((f"network {prefix}", prefix, number % keys), size)

    @rule(prefixes=st.integers(0, 63), count=st.integers(50, 400))
    def neighbours_register(self, prefixes: int, count: int) -> None:
        for number in range(count):
            self.room.add(("honest network 0", f"neighbour {prefixes}", number), 2100)

    @rule(agent=st.integers(0, 7))
    def an_agent_registers(self, agent: int) -> None:
        if agent not in self.honest:
            source = (f"honest network {agent % 2}", f"agent {agent}", agent)
            self.honest[agent] = self.room.add(source, HONEST_SIZE)

    @rule(agent=st.integers(0, 7))
    def an_agent_proves_itself(self, agent: int) -> None:
        if (attempt_id := self.honest.pop(agent, None)) is not None:
            assert self.room.has(attempt_id)
            self.room.attempts = [a for a in self.room.attempts if a.attempt_id != attempt_id]

    @rule()
    def room_is_made(self) -> None:
        self.room.tidy()
        assert total(self.room.attempts) <= CAPACITY

    @invariant()
    def no_agent_is_displaced(self) -> None:
        # Honest networks have less than the share of each: two of them with 64 others, in 1 MiB, have
        # 15 KiB each, or 16 KiB where nobody has less; room for four agents beside one another.
        for attempt_id in self.honest.values():
            assert self.room.has(attempt_id)


FloodBesideAgents.TestCase.settings = settings(
    max_examples=examples(40), stateful_step_count=25, deadline=None
)
test_r20_no_attempt_of_an_agent_is_ever_displaced = FloodBesideAgents.TestCase
