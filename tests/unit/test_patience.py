"""How much may be waited, by whom."""

import asyncio
import time

from keylime import patience
from keylime.patience import OWN_WORK_S, Patience, current


def test_a_request_has_less_patience_than_work_of_our_own_and_only_within_its_block() -> None:
    assert current().left_s == OWN_WORK_S
    with patience.for_a_caller(3.0):
        assert current().left_s == 3.0
        with patience.at_most(2.0):
            assert current().left_s == 2.0
        with patience.at_most(5.0):
            assert current().left_s <= 3.0
    assert current().left_s == OWN_WORK_S


def test_all_waits_of_a_request_together_are_limited() -> None:
    with patience.for_a_caller(1000.0):
        for so_far in (0.03, 0.06):
            with current().waiting():
                time.sleep(0.03)
            assert 0 < current().left_s <= 1000 - so_far
    with patience.for_a_caller(0.05):
        for _ in range(2):
            with current().waiting():
                time.sleep(0.03)
        assert current().left_s == 0


def test_each_wait_of_our_own_begins_afresh() -> None:
    with patience.at_most(0.05):
        for _ in range(2):
            with current().waiting():
                time.sleep(0.03)
            assert current().left_s == 0.05


def test_a_wait_in_a_wait_has_what_is_left_of_it() -> None:
    waits = Patience(1000.0, in_sum=True)
    with waits.waiting():
        with waits.waiting():
            time.sleep(0.01)
            assert waits.left_s < 1000.0
        time.sleep(0.01)
    assert 0 < waits.left_s <= 999.98


def test_what_a_task_may_wait_is_what_its_beginner_may() -> None:
    async def scenario() -> None:
        async def left() -> float:
            return current().left_s

        with patience.at_most(2.0):
            task = asyncio.create_task(left())
        assert (await task, await left()) == (2.0, OWN_WORK_S)

    asyncio.run(scenario())
