"""An appraisal in turns of the loop: a short one in one of them, a long one with pauses for others."""

import asyncio
import time
from collections.abc import Generator
from typing import TypeVar

from keylime_verifier.polling.answer_budget import AnswerBudget, AnswerReservation

ResultT = TypeVar("ResultT")

_TURN_S = 0.002  # after which others have theirs: each turn of the loop costs as much as a short list


async def judged_in_turn(
    steps: Generator[None, None, ResultT], budget: AnswerBudget, place: AnswerReservation
) -> tuple[ResultT | None, float]:
    """What came of an appraisal after as many `steps` as a turn has time for, None of one that goes on.

    The other value is the time, in seconds, that it took. Others have had their turn when an appraisal that
    goes on returns.
    """
    async with budget.judging(place):
        began = time.perf_counter()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: ResultT = end.value
                return result, time.perf_counter() - began
            took_s = time.perf_counter() - began
            if place.is_long or took_s >= _TURN_S:
                break
    await asyncio.sleep(0)
    return None, took_s
