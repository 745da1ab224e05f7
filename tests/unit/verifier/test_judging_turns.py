"""Appraisals share the loop with everything else."""

import asyncio
import time
from collections.abc import Generator

import pytest

from keylime_verifier.polling.answer_budget import ORDINARY_ANSWER, AnswerBudget
from keylime_verifier.polling.judging_turns import judged_in_turn

SHORT, LONG = 1000, 2 * ORDINARY_ANSWER


def appraisal(steps: int, step_s: float = 0.0) -> Generator[None, None, str]:
    """One whose steps take so long."""
    for _ in range(steps):
        until = time.perf_counter() + step_s
        while time.perf_counter() < until:
            pass
        yield
    return "verdict"


def turns_of(steps: Generator[None, None, str], size: int) -> list[int]:
    """How often others had their turn before each turn of an appraisal was over."""
    others = 0

    async def count() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    async def play() -> list[int]:
        budget = AnswerBudget()
        seen = []
        beside = asyncio.create_task(count())
        with budget.place(0) as place:
            assert place.admit(size)
            result = None
            while result is None:
                result, took_s = await judged_in_turn(steps, budget, place)
                assert took_s >= 0
                seen.append(others)
        beside.cancel()
        assert result == "verdict"
        return seen

    return asyncio.run(play())


def test_a_short_one_is_over_in_one_turn() -> None:
    # A machine that stands still for two milliseconds makes it several.
    assert any(turns_of(appraisal(5), SHORT) == [0] for _ in range(100))


def test_others_have_their_turn_when_one_goes_on() -> None:
    seen = turns_of(appraisal(3, step_s=0.003), SHORT)
    assert len(seen) >= 3
    assert seen[0] > 0
    assert sorted(set(seen[:-1])) == seen[:-1], "after each turn but the last"


def test_of_a_long_answer_each_step_is_a_turn() -> None:
    assert len(turns_of(appraisal(4), LONG)) == 5


def test_what_an_appraisal_raises_is_raised() -> None:
    def broken() -> Generator[None, None, str]:
        yield
        raise ValueError("no appraisal")

    with pytest.raises(ValueError, match="no appraisal"):
        turns_of(broken(), SHORT)
