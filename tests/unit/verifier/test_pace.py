"""How many polls may be under way: few that cost time, any that wait, none in a turn that is over."""

import asyncio
from collections.abc import Callable

import pytest

from keylime_verifier.polling.pace import (
    FEWEST,
    LONGEST_TURN_S,
    MOMENT_S,
    MOST,
    SHORT_TURN_S,
    Load,
    Pace,
    lag_remark,
    may_start,
    next_limit,
)


@pytest.mark.parametrize(
    ("load", "limit", "expected"),
    [
        (Load(0, 0.0), 48, 48),
        (Load(40, 0.0), 48, 8),
        (Load(48, 0.0), 48, 0),
        (Load(60, 0.0), 48, 0),  # the limit has fallen since
        (Load(0, LONGEST_TURN_S), 48, 0),
        (Load(0, SHORT_TURN_S, most_s=SHORT_TURN_S), 48, 0),
        (Load(0, SHORT_TURN_S), 48, 48),
    ],
)
def test_so_many_polls_may_start(load: Load, limit: int, expected: int) -> None:
    assert may_start(load, limit) == expected


def test_long_turns_make_the_limit_fall_and_short_ones_rise_within_bounds() -> None:
    limit = MOST
    for _ in range(20):
        limit = next_limit(limit, 3 * LONGEST_TURN_S)
    assert limit == FEWEST
    assert next_limit(limit, 1.5 * LONGEST_TURN_S) == FEWEST, "neither long nor short"
    for _ in range(100):
        limit = next_limit(limit, LONGEST_TURN_S / 2)
    assert limit == MOST


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def play(act: Callable[[Pace, Clock], None]) -> None:
    """Runs `act` within one turn of a loop."""

    async def run() -> None:
        clock = Clock()
        act(Pace(clock), clock)

    asyncio.run(run())


def test_polls_that_wait_for_their_machines_keep_nobody_from_starting() -> None:
    def act(pace: Pace, clock: Clock) -> None:
        for number in range(MOST):
            pace.begin(number, 0.0)
        assert pace.may_start() == 0
        assert pace.look_again_s() == pytest.approx(MOMENT_S)
        clock.now += MOMENT_S / 2
        pace.end(0)
        clock.now -= MOMENT_S / 2
        assert pace.may_start() == 1
        pace.begin("another", 0.0)
        pace._end_turn()
        clock.now += MOMENT_S + 0.001
        assert pace.may_start() == pace._limit

    play(act)


def test_whoever_waits_is_told_of_an_end_also_when_the_limit_has_risen_meanwhile() -> None:
    async def run() -> None:
        clock = Clock()
        pace = Pace(clock)
        pace._limit = FEWEST
        for number in range(FEWEST):
            await pace.room(number)
        assert not pace.end("nobody waits")
        assert pace.may_start() == 0
        assert pace.look_again_s() == pytest.approx(MOMENT_S), "nothing that began will be slow"
        pace._limit = MOST
        assert pace.end(0)
        assert not pace.end(1)

    asyncio.run(run())


def test_a_poll_counts_again_when_its_answer_is_judged_until_it_is_over() -> None:
    async def run() -> None:
        clock = Clock()
        pace = Pace(clock)
        pace.begin("slow", 0.0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        clock.now += MOMENT_S + 0.001
        assert pace.may_start() == MOST
        await pace.room("slow")
        assert pace.may_start() == MOST - 1
        pace.end("slow")
        pace.end("slow")
        assert pace.may_start() == MOST

    asyncio.run(run())


def test_a_turn_that_has_run_long_begins_nothing_and_appraisals_wait_for_the_next() -> None:
    async def run() -> None:
        clock = Clock()
        pace = Pace(clock)
        await pace.room("first")
        clock.now += LONGEST_TURN_S
        assert pace.may_start() == 0
        assert pace.look_again_s() == 0.0
        waiting = asyncio.create_task(pace.room("second"))
        assert not waiting.done()
        await waiting  # the turns after it begin afresh
        assert pace.may_start() == MOST - 2

    asyncio.run(run())


def test_turns_are_shorter_while_somebody_waits_for_the_answer_to_a_request() -> None:
    def act(pace: Pace, clock: Clock) -> None:
        pace.others_wait = lambda: True
        pace.begin("poll", 0.0)
        clock.now += SHORT_TURN_S
        assert pace.may_start() == 0
        pace._end_turn()
        assert pace.may_start() > 0

    play(act)


def test_lag_is_the_worst_of_late_and_fades() -> None:
    def act(pace: Pace, clock: Clock) -> None:
        pace.begin("late", 8.0)
        pace.begin("punctual", 0.0)
        assert pace.lag_s == 8.0
        clock.now += 5.0
        assert pace.lag_s == pytest.approx(4.0)
        pace.begin("later", 6.0)
        assert pace.lag_s == 6.0

    play(act)


@pytest.mark.parametrize(
    ("lag_s", "interval_s", "said"),
    [
        (0.9, 0.0, None),
        (1.1, 0.0, "more than a second"),
        (4.0, 10.0, None),
        (5.1, 10.0, "more than 3 seconds"),
        (5.9, 10.0, "more than 3 seconds"),
        (61.0, 10.0, "more than a minute"),
    ],
)
def test_operators_are_told_of_a_lag_that_matters_in_words_that_stay(
    lag_s: float, interval_s: float, said: str | None
) -> None:
    remark = lag_remark(lag_s, interval_s)
    assert remark is None if said is None else said in str(remark) and "raise quote_interval" in str(remark)
