"""Who may have a long answer now, and who is next."""

import asyncio
from collections.abc import Coroutine

from keylime_verifier.agent_client import MAX_ANSWER
from keylime_verifier.polling.answer_budget import (
    LONG_ANSWERS,
    ORDINARY_ANSWER,
    AnswerBudget,
    AnswerReservation,
)

MIB = 1 << 20


def run(coroutine: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


def test_the_longest_answer_fits() -> None:
    assert MAX_ANSWER <= LONG_ANSWERS


def test_n12_ordinary_answers_are_always_admitted_and_long_ones_while_there_is_room() -> None:
    async def play() -> None:
        budget = AnswerBudget(10 * MIB)
        with budget.place(0) as first, budget.place(0) as second:
            assert first.admit(8 * MIB)
            assert first.admit(5 * MIB)
            assert first.is_long
            assert not second.admit(3 * MIB)
            assert second.admit(ORDINARY_ANSWER)
            assert not second.is_long
            assert second.admit(2 * MIB)
            assert not first.admit(9 * MIB)
            assert budget.held == 10 * MIB
        assert budget.held == 0

    run(play())


def test_n12_agents_that_had_fewer_long_answers_go_first() -> None:
    order: list[str] = []

    async def wait(budget: AnswerBudget, name: str, long_before: int) -> None:
        with budget.place(long_before) as place:
            await place.wait_for(10 * MIB)
            order.append(name)
            await asyncio.sleep(0)

    async def play() -> None:
        budget = AnswerBudget(10 * MIB)
        with budget.place(0) as place:
            assert place.admit(10 * MIB)
            waiting = [("each time", 7), ("again", 1), ("new", 0), ("newer", 0)]
            tasks = [asyncio.create_task(wait(budget, name, before)) for name, before in waiting]
            await asyncio.sleep(0)
            assert order == []
        await asyncio.gather(*tasks)
        assert budget.held == 0

    run(play())
    assert order == ["new", "newer", "again", "each time"]


def test_n12_who_needs_less_need_not_wait_for_who_needs_more_but_not_for_ever() -> None:
    async def play() -> None:
        budget = AnswerBudget(10 * MIB)
        with budget.place(0) as holder, budget.place(0) as large:
            assert holder.admit(5 * MIB)
            waiting = asyncio.create_task(large.wait_for(8 * MIB))
            await asyncio.sleep(0)
            with budget.place(9) as small:
                assert small.admit(2 * MIB)
            assert large.waits_since is not None
            large.waits_since -= 3600
            with budget.place(9) as small:
                assert not small.admit(2 * MIB)
                small_waiting = asyncio.create_task(small.wait_for(2 * MIB))
                await asyncio.sleep(0)
                assert not small_waiting.done()
                budget.release(holder)
                await waiting
                await small_waiting
                assert budget.held == 10 * MIB

    run(play())


def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    async def wait(place: AnswerReservation) -> None:
        await place.wait_for(8 * MIB)

    async def play() -> None:
        budget = AnswerBudget(10 * MIB)
        with budget.place(0) as holder:
            assert holder.admit(5 * MIB)
            with budget.place(0) as place:
                waiting = asyncio.create_task(wait(place))
                await asyncio.sleep(0)
                assert place.waits_since is not None
                place.waits_since -= 3600
                with budget.place(1) as other:
                    also_waiting = asyncio.create_task(other.wait_for(MIB))
                    await asyncio.sleep(0)
                    assert not also_waiting.done()
                    waiting.cancel()
                    await also_waiting
                await asyncio.gather(waiting, return_exceptions=True)
        assert budget.held == 0

    run(play())


def test_long_answers_are_judged_one_slice_at_a_time_with_pauses_between() -> None:
    order: list[str] = []

    async def judge(budget: AnswerBudget, name: str, size: int) -> None:
        with budget.place(0) as place:
            assert place.admit(size)
            for _ in range(2):
                async with budget.judging(place):
                    order.append(name)

    async def play() -> None:
        budget = AnswerBudget(10 * MIB)
        await asyncio.gather(
            judge(budget, "a", 2 * MIB), judge(budget, "b", 2 * MIB), judge(budget, "c", 1000)
        )

    run(play())
    assert sorted(order) == ["a", "a", "b", "b", "c", "c"]
    assert [name for name in order if name != "c"] == ["a", "b", "a", "b"]
