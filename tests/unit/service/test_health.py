"""Checks, their reports, and loops that are started again."""

import asyncio
import logging

import pytest

from keylime.service.background import SupervisedLoop, accompanied
from keylime.service.health import Health
from tests.fakes.eventual import eventually


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Part:
    """Something that is checked; counts how often."""

    def __init__(self, problem: str | None = None) -> None:
        self.problem = problem
        self.asked = 0

    async def check(self) -> str | None:
        self.asked += 1
        return self.problem


def test_liveness_is_about_vital_parts_and_readiness_about_all() -> None:
    async def scenario() -> None:
        health, loop, database = Health(), Part(), Part("not available")
        health.add("loop", loop.check, vital=True)
        health.add("database", database.check)
        assert (await health.alive()).is_good
        report = await health.ready()
        assert (report.is_good, report.problems) == (False, {"database": "not available"})

    asyncio.run(scenario())


def test_a_check_under_way_ends_with_the_watch_before_what_it_uses_is_closed() -> None:
    async def scenario() -> None:
        events: list[str] = []
        begun = asyncio.Event()

        async def check() -> str | None:
            begun.set()
            try:
                await asyncio.sleep(100)
            finally:
                events.append("check ended")
            return None

        health = Health()
        health.add("database", check)
        async with accompanied(health.watch()):
            await begun.wait()
            asking = asyncio.create_task(health.ready())
        events.append("database closed")
        assert events == ["check ended", "database closed"]
        assert (await asking).problems == {"database": "it is being stopped"}

    asyncio.run(scenario())


def test_however_many_ask_a_part_is_checked_once_a_second() -> None:
    async def scenario() -> None:
        clock, part = Clock(), Part()
        health = Health(clock=clock)
        health.add("part", part.check)
        await asyncio.gather(*(health.ready() for _ in range(50)))
        assert part.asked == 1
        part.problem = "gone"
        clock.now += 0.9
        assert (await health.ready()).is_good
        clock.now += 0.2
        assert (await health.ready()).problems == {"part": "gone"}
        assert part.asked == 2

    asyncio.run(scenario())


def test_a_check_that_hangs_fails_and_is_not_begun_again_beside_itself() -> None:
    async def scenario() -> None:
        begun, release = 0, asyncio.Event()

        async def check() -> str | None:
            nonlocal begun
            begun += 1
            await release.wait()
            return None

        health = Health(limit_s=0.02)
        health.add("slow", check)
        for _ in range(3):
            assert (await health.ready()).problems == {"slow": "no answer within 0.02 s"}
        release.set()
        assert (await health.ready()).is_good
        assert begun == 1

    asyncio.run(scenario())


def test_a_check_with_a_defect_is_no_good_and_keeps_its_details_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def check() -> str | None:
        raise RuntimeError("the secret is 42")

    async def scenario() -> None:
        health = Health()
        health.add("part", check)
        assert (await health.ready()).problems == {"part": "cannot be checked"}

    asyncio.run(scenario())
    assert "the secret is 42" in caplog.text


def test_a_loop_that_ends_is_started_again_and_only_told_when_it_keeps_ending(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)

    async def scenario() -> None:
        clock, starts = Clock(), asyncio.Queue[int]()
        ends = asyncio.Semaphore(0)

        async def work() -> None:
            starts.put_nowait(1)
            await ends.acquire()
            raise RuntimeError("a defect")

        loop = SupervisedLoop("poller", work, clock=clock, pause_s=0)
        assert await loop.problem() == "not running"
        async with accompanied(loop.run()):
            for expected in (None, None, None, "keeps failing"):
                await starts.get()
                assert await loop.problem() == expected
                ends.release()
            await starts.get()
            clock.now += 31
            assert await loop.problem() is None
        assert await loop.problem() == "not running"

    asyncio.run(scenario())
    assert caplog.text.count("the poller ended because of a defect") == 4


def test_companions_end_with_the_block_whatever_ends_it() -> None:
    async def scenario() -> None:
        ended = asyncio.Event()

        async def companion() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def fail_in_the_block() -> None:
            async with accompanied(companion()):
                await asyncio.sleep(0)
                raise KeyError

        with pytest.raises(KeyError):
            await fail_in_the_block()
        assert ended.is_set()

    asyncio.run(scenario())


def test_what_is_wrong_and_what_is_well_again_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        caplog.set_level(logging.INFO)
        part, health = Part("the disk is full: make room"), Health(watch_interval_s=0.001)
        health.add("part", part.check)
        watching = asyncio.create_task(health.watch())
        await eventually(lambda: part.asked >= 5)
        part.problem = None
        asked = part.asked
        await eventually(lambda: part.asked >= asked + 5)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(scenario())
    told = [record.message for record in caplog.records if record.name == "keylime.service.health"]
    assert told == ["not ready: part: the disk is full: make room", "part: well again"]


def test_what_a_watch_has_found_is_no_answer_to_those_who_ask() -> None:
    async def scenario() -> None:
        part, health = Part(), Health(watch_interval_s=3600)
        health.add("part", part.check)
        watching = asyncio.create_task(health.watch())
        await eventually(lambda: part.asked)
        part.problem = "gone"
        assert (await health.ready()).problems == {"part": "gone"}
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(scenario())
