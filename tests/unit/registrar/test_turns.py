"""Whose turn it is: one call of each source, however many wait."""

import asyncio
from collections.abc import Sequence

import pytest

from keylime_registrar.turns import CallTurns, TooManyWaiting

HONEST = ("192.0.2.1/32", "192.0.2.0/24")


def stranger(number: int, network: int = 0) -> tuple[str, str]:
    return f"10.{network}.0.{number}/32", f"10.{network}.0.0/24"


async def order_of(sources: Sequence[tuple[str, ...]], turns: CallTurns) -> list[tuple[str, ...]]:
    """In which order calls that came in this order are done."""
    done: list[tuple[str, ...]] = []

    async def call(source: tuple[str, ...]) -> None:
        async with turns.taken(source):
            await asyncio.sleep(0)
            done.append(source)

    await asyncio.gather(*map(call, sources))
    return done


def test_n15_r20_a_newcomer_waits_for_one_call_of_each_source_at_most() -> None:
    flood = [stranger(1, network) for network in range(5)] * 50
    done = asyncio.run(order_of([*flood, HONEST], CallTurns(at_once=1)))
    assert done.index(HONEST) <= 6
    assert len(done) == 251


def test_n15_r20_neighbours_share_the_turns_of_their_network() -> None:
    flood = [stranger(number) for number in range(3)] * 50
    done = asyncio.run(order_of([*flood, stranger(99)], CallTurns(at_once=1)))
    assert done.index(stranger(99)) <= 4


def test_calls_of_one_source_are_done_in_the_order_of_their_coming() -> None:
    sources = [(f"2001:db8::{number}/64",) for number in range(4)]
    assert asyncio.run(order_of(sources, CallTurns(at_once=1))) == sources


def test_no_more_than_so_many_work_at_once() -> None:
    async def scenario() -> None:
        turns, working, most = CallTurns(at_once=3), 0, 0

        async def call(number: int) -> None:
            nonlocal working, most
            async with turns.taken(stranger(number % 5)):
                working += 1
                most = max(most, working)
                await asyncio.sleep(0)
                working -= 1

        await asyncio.gather(*map(call, range(50)))
        assert (working, most) == (0, 3)

    asyncio.run(scenario())


def test_who_has_too_many_waiting_is_told_so_and_others_are_not() -> None:
    async def scenario() -> None:
        turns = CallTurns(at_once=1, most_waiting=2)
        async with turns.taken(HONEST):
            waiting = [asyncio.create_task(order_of([stranger(1)], turns)) for _ in range(2)]
            await asyncio.sleep(0.01)
            with pytest.raises(TooManyWaiting):
                await order_of([stranger(1)], turns)
            waiting.append(asyncio.create_task(order_of([stranger(2)], turns)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*waiting)

    asyncio.run(scenario())


def test_who_leaves_while_waiting_or_at_work_leaves_no_turn_behind() -> None:
    async def scenario() -> None:
        turns = CallTurns(at_once=1)

        async def forever() -> None:
            async with turns.taken(stranger(1)):
                await asyncio.Event().wait()

        calls = [asyncio.create_task(forever()) for _ in range(4)]
        await asyncio.sleep(0.01)
        # One gets its turn in the moment in which it is cancelled.
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert await order_of([HONEST], turns) == [HONEST]

    asyncio.run(scenario())


def test_what_fails_passes_its_turn_on() -> None:
    async def scenario() -> None:
        turns = CallTurns(at_once=1)
        for _ in range(3):
            with pytest.raises(LookupError):
                async with turns.taken(HONEST):
                    raise LookupError
        assert await order_of([HONEST], turns) == [HONEST]

    asyncio.run(scenario())


def test_nobody_waits_for_ever_while_those_at_work_are_held_up() -> None:
    async def scenario() -> None:
        turns = CallTurns(at_once=1, longest_s=0.05)
        async with turns.taken(stranger(1)):
            with pytest.raises(TooManyWaiting):
                await order_of([HONEST], turns)
        assert await order_of([HONEST], turns) == [HONEST]

    asyncio.run(scenario())
