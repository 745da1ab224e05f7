"""Whose turn it is to write: urgent work first, nobody last for ever, no turn lost to a cancellation."""

import asyncio
import contextlib

from keylime.database.write_turn import Urgency, WriteTurn


class Scene:
    """Writers that note their names when it is their turn; the clock stands still."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turn = WriteTurn(lambda: self.now)
        self.order: list[str] = []

    async def write(self, name: str, urgency: Urgency = Urgency.USUAL) -> None:
        async with self.turn.taken(urgency):
            self.order.append(name)
            await asyncio.sleep(0)

    async def begun(self, name: str, urgency: Urgency = Urgency.USUAL) -> "asyncio.Task[None]":
        """A writer that has got in line."""
        task = asyncio.create_task(self.write(name, urgency))
        await asyncio.sleep(0)
        return task


def test_what_can_wait_goes_after_what_cannot_and_else_the_order_of_arrival_counts() -> None:
    async def act(scene: Scene) -> None:
        async with scene.turn.taken():
            writers = [
                await scene.begun("passes", Urgency.CAN_WAIT),
                await scene.begun("verdict"),
                await scene.begun("agent"),
            ]
        await asyncio.gather(*writers)
        assert scene.order == ["verdict", "agent", "passes"]

    asyncio.run(act(Scene()))


def test_what_goes_first_goes_before_all_that_wait_however_long_they_have() -> None:
    async def act(scene: Scene) -> None:
        async with scene.turn.taken():
            writers = [await scene.begun("passes", Urgency.CAN_WAIT), await scene.begun("agent")]
            scene.now += 1.1
            writers.append(await scene.begun("failure", Urgency.FIRST))
        await asyncio.gather(*writers)
        assert scene.order == ["failure", "passes", "agent"]

    asyncio.run(act(Scene()))


def test_what_has_waited_for_a_second_goes_before_usual_work() -> None:
    async def act(scene: Scene) -> None:
        async with scene.turn.taken():
            writers = [await scene.begun("passes", Urgency.CAN_WAIT), await scene.begun("verdict")]
            scene.now += 1.1
        await asyncio.gather(*writers)
        assert scene.order == ["passes", "verdict"]

    asyncio.run(act(Scene()))


def test_a_turn_is_handed_on_by_whoever_is_cancelled_before_or_just_after_being_called() -> None:
    async def act(scene: Scene) -> None:
        async with scene.turn.taken():
            first, second, third = [await scene.begun(name) for name in ("first", "second", "third")]
            second.cancel()
        first.cancel()  # it has been called, and has not run since
        await third
        for cancelled in (first, second):
            with contextlib.suppress(asyncio.CancelledError):
                await cancelled
        await scene.write("last")
        assert scene.order == ["third", "last"]

    asyncio.run(act(Scene()))
