"""Streams of events: what a reader is sent, in which cases it is told of a gap, and when a stream ends."""

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest

from keylime.database.engine import DatabaseUnavailable
from keylime.http.exchange import HttpError
from keylime.identifiers import AgentId
from keylime.messages.history import EventsAfter, HistoryEvent
from keylime_verifier.api.event_streams import EventStreams, encoded_events


def event(number: int, agent_id: str = "a") -> HistoryEvent:
    return HistoryEvent(
        id=number,
        at=1,
        kind="state",
        agent_id=agent_id,
        policy=None,
        actor=None,
        request_id=None,
        details={"why": "a\nb"},
    )


class Told:
    """A history in memory; `is_away` stands for a database that is."""

    def __init__(self, count: int = 0, forgotten: int = 0) -> None:
        self.events = [event(number, f"agent-{number % 2}") for number in range(1, count + 1)]
        self.forgotten = forgotten
        self.is_away = False

    async def last_id(self) -> int:
        return len(self.events)

    async def events_after(self, after: int, agent_id: AgentId | None, limit: int, /) -> EventsAfter:
        if self.is_away:
            raise DatabaseUnavailable("database: gone")
        found = [
            one
            for one in self.events[self.forgotten :]
            if one.id > after and agent_id in (None, one.agent_id)
        ]
        return EventsAfter(found[:limit], first=self.forgotten + 1, last=len(self.events))


async def read(parts: AsyncGenerator[bytes, None], ids: list[int]) -> None:
    """The next event of a stream, after the heartbeats before it."""
    async with asyncio.timeout(100):
        async for part in parts:
            fields = dict(line.split(": ", 1) for line in part.decode().splitlines() if line)
            if "data" in fields:
                assert json.loads(fields["data"])["id"] == int(fields["id"])
                ids.append(int(fields["id"]))
                return


def test_an_event_is_one_line_with_its_id() -> None:
    ((seen, text),) = encoded_events(EventsAfter([event(7)], first=1, last=7), 6)
    assert seen == 7
    assert text.startswith(b"id: 7\ndata: {")
    assert text.endswith(b"}\n\n")
    assert text.count(b"\n") == 3


@pytest.mark.parametrize(
    ("after", "first", "last", "gap"),
    [
        (0, 1, 5, None),
        (4, 5, 9, None),
        (3, 5, 9, {"after": 3, "first": 5}),
        (9, 10, 9, None),
        (12, 5, 9, {"after": 12, "first": 10}),
        (0, 1, 0, None),
    ],
)
def test_what_cannot_be_told_any_more_is_said(
    after: int, first: int, last: int, gap: dict[str, int] | None
) -> None:
    pieces = list(encoded_events(EventsAfter([], first=first, last=last), after))
    if gap is None:
        assert pieces == []
        return
    ((seen, text),) = pieces
    lines = text.decode().splitlines()
    assert (seen, lines[:2]) == (gap["first"] - 1, ["event: gap", f"id: {seen}"])
    assert json.loads(lines[2].removeprefix("data: ")) == gap


def test_a_stream_tells_what_was_and_then_what_comes_and_ends_when_it_is_told_to() -> None:
    async def play() -> None:
        told = Told(250)
        streams = EventStreams(told)
        parts = await streams.follow(0, None)
        ids: list[int] = []
        for _ in range(250):
            await read(parts, ids)
        told.events.append(event(251))
        streams.look()
        await read(parts, ids)
        assert ids == list(range(1, 252))
        assert len(streams) == 1
        streams.end()
        assert [part async for part in parts] == []
        assert len(streams) == 0
        streams.close()
        with pytest.raises(HttpError):
            await streams.follow(0, None)

    asyncio.run(play())


def test_who_follows_one_agent_sees_what_happens_to_others_as_an_id_alone() -> None:
    async def play() -> None:
        told = Told(9)
        streams = EventStreams(told, heartbeat_s=0.01)
        parts = await streams.follow(2, AgentId("agent-0"))
        ids: list[int] = []
        for _ in range(3):
            await read(parts, ids)
        assert ids == [4, 6, 8]
        assert await anext(parts) == b"id: 9\n\n"
        told.forgotten = 9  # which is no gap for somebody who has seen them
        assert await anext(parts) == b"id: 9\n\n"
        await parts.aclose()

    asyncio.run(play())


def test_a_database_that_is_away_delays_a_stream_and_does_not_end_it() -> None:
    async def play() -> None:
        told = Told(1)
        streams = EventStreams(told)
        parts = await streams.follow(0, None)
        assert await anext(parts) == b"id: 0\n\n"
        told.is_away = True
        ids: list[int] = []
        reading = asyncio.create_task(read(parts, ids))
        await asyncio.sleep(0)
        told.is_away = False
        streams.look()
        await reading
        assert ids == [1]
        await parts.aclose()

    asyncio.run(play())


def test_there_are_only_so_many_streams_at_a_time() -> None:
    async def play() -> None:
        streams = EventStreams(Told(), most=1)
        first = await streams.follow(None, None)
        await anext(first)
        with pytest.raises(HttpError) as refused:
            await streams.follow(None, None)
        assert (refused.value.code, refused.value.retry_after_s) == (503, 5)
        await first.aclose()
        await (await streams.follow(None, None)).aclose()

    asyncio.run(play())
