"""A service that is told to end while it is still starting."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from keylime.service.daemon import StoppedEarly, started, unless


@asynccontextmanager
async def service(begins: asyncio.Event, steps: list[str]) -> AsyncIterator[str]:
    try:
        await begins.wait()
        steps.append("begun")
        yield "service"
    finally:
        steps.append("ended")


def test_a_service_that_starts_is_given_and_ended() -> None:
    async def scenario() -> None:
        stop, begins, steps = asyncio.Event(), asyncio.Event(), list[str]()
        begins.set()
        async with started(stop, service(begins, steps)) as given:
            assert (given, steps) == ("service", ["begun"])
            stop.set()
            await asyncio.sleep(0)  # what comes later is for whoever waits for it
        assert steps == ["begun", "ended"]

    asyncio.run(scenario())


def test_one_that_is_told_to_end_before_it_has_begun_is_given_up() -> None:
    async def scenario() -> None:
        stop, steps = asyncio.Event(), list[str]()
        asyncio.get_running_loop().call_soon(stop.set)
        async with started(stop, service(asyncio.Event(), steps)) as given:
            assert (given, steps) == (None, ["ended"])
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(scenario())


def test_a_stop_in_the_last_moment_counts_and_cancels_nothing_afterwards() -> None:
    async def scenario() -> None:
        stop = asyncio.Event()

        async def work() -> None:
            async with unless(stop):
                stop.set()
                for _ in range(3):
                    await asyncio.sleep(0)

        with pytest.raises(StoppedEarly):
            await work()
        await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_a_cancellation_by_somebody_else_stays_one() -> None:
    async def scenario() -> None:
        async def work() -> None:
            async with unless(asyncio.Event()):
                await asyncio.sleep(3600)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(scenario())
