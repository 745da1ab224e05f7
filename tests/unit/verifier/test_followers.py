"""Events brought to other places: in order, none left out, and on where it stopped."""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from keylime.errors import PeerUnreachable
from keylime.messages.history import HistoryEvent
from keylime_verifier.following.follower import Follower
from keylime_verifier.following.journal import EventLines
from keylime_verifier.following.poster import event_message
from tests.fakes.eventual import eventually
from tests.unit.verifier.test_event_streams import Told, event


def ids_in(path: Path) -> list[int]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


async def bring_all(told: Told, journal: EventLines) -> None:
    follower = Follower(told, journal, "test")
    while await follower.step():
        pass


def test_a_file_has_what_happened_since_it_was_first_named_and_goes_on_after_a_restart(
    tmp_path: Path,
) -> None:
    async def play() -> None:
        told, note, path = Told(3), tmp_path / "told.json", tmp_path / "events.jsonl"
        await bring_all(told, EventLines(note, path))
        assert not path.exists()
        told.events += [event(number) for number in range(4, 254)]
        await bring_all(told, EventLines(note, path))
        assert ids_in(path) == list(range(4, 254))
        told.events.append(event(254))
        note.write_text('{"id":251}')  # it was killed before it noted the last ones
        await bring_all(told, EventLines(note, path))
        assert ids_in(path) == list(range(4, 255))
        path.rename(tmp_path / "rotated")
        told.events.append(event(255))
        await bring_all(told, EventLines(note, path))
        assert ids_in(path) == [255]
        assert path.stat().st_mode & 0o077 in (0, 0o040)

    asyncio.run(play())


def test_the_log_has_each_event_as_a_message_of_json(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        told = Told(0)
        journal = EventLines(tmp_path / "told.json", None)
        await bring_all(told, journal)
        told.events += [event(1), event(2)]
        await bring_all(told, journal)

    caplog.set_level(logging.INFO, "keylime.events")
    asyncio.run(play())
    lines = [record.getMessage() for record in caplog.records if record.name == "keylime.events"]
    assert [json.loads(line)["id"] for line in lines] == [1, 2]


class Receiver:
    """A place that is away for a while."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.through: int | None = 0
        self.is_away = True

    async def seen(self) -> int | None:
        return self.through

    async def bring(self, events: Sequence[HistoryEvent], seen: int) -> None:
        if self.is_away:
            self.is_away = False
            raise PeerUnreachable("nobody there")
        self.ids += [one.id for one in events]
        self.through = seen


def play_with(told: Told, receiver: Receiver, is_mine: Callable[[], bool], wanted: list[int]) -> None:
    async def play() -> None:
        follower = Follower(told, receiver, "receiver", is_mine)
        running = asyncio.create_task(follower.run())
        try:
            await eventually(lambda: receiver.ids == wanted)
            told.events.append(event(len(told.events) + 1))
            follower.look()
            if is_mine():
                await eventually(lambda: receiver.ids == [*wanted, len(told.events)])
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(play())


def test_what_a_place_does_not_take_comes_later_and_then_what_happens(
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = Receiver()
    play_with(Told(2), receiver, lambda: True, [1, 2])
    assert receiver.ids == [1, 2, 3]
    assert "events wait, receiver does not take them: nobody there" in caplog.text


def test_another_process_s_place_is_left_alone() -> None:
    receiver = Receiver()
    play_with(Told(2), receiver, lambda: False, [])
    assert receiver.ids == []


@pytest.mark.parametrize(
    ("through", "forgotten", "expected", "words"),
    [(9, 0, [], "taken back to before event 9"), (1, 3, [4, 5], "events 2 to 3 were forgotten")],
)
def test_what_cannot_be_told_any_more_is_said(
    through: int, forgotten: int, expected: list[int], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        receiver = Receiver()
        receiver.is_away, receiver.through = False, through
        await Follower(Told(5, forgotten), receiver, "receiver").step()
        assert receiver.ids == expected
        assert receiver.through == 5

    asyncio.run(play())
    assert words in caplog.text


def test_an_event_comes_over_the_webhook_in_the_envelope_of_revocations() -> None:
    message = event_message(event(7))
    document = json.loads(message.msg)
    assert (document["type"], document["id"], document["kind"], message.signature) == (
        "event",
        7,
        "state",
        "",
    )
