"""`GET /events`: what happens, as server-sent events, to administrators who follow it.

Each stream reads what was committed after the id that it has sent last, so that nobody who comes back with
that id, to whichever verifier, misses an event or gets one twice. What is sent waits for the reader: of a
slow one no more is held than one part.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Protocol

import msgspec

from keylime.database.engine import DatabaseUnavailable
from keylime.errors import MalformedMessage
from keylime.http.exchange import HttpError, Request, Response, Role
from keylime.http.openapi import STREAM_TYPE
from keylime.http.operation import Operation, QueryField
from keylime.http.routing import Route
from keylime.identifiers import AgentId, parse_agent_id
from keylime.messages.history import EventsAfter, HistoryEvent, HistoryGap

log = logging.getLogger("keylime.verifier")

MOST_STREAMS = 64
"""In one process: what each of them reads costs the database a query for every change."""

_HEARTBEAT_S = 15.0
_LONGEST_S = 3600.0  # then its reader comes back, with a certificate that is looked at again
_AT_ONCE = 100  # events
_DATABASE_AWAY_S = 1.0
_COME_BACK_S = 5.0
_MAX_ID = (1 << 63) - 1
_RETRY = b"retry: 1000\n\n"
_RESUME = "Last-Event-ID"


class Events(Protocol):
    """What happened, as it was written down."""

    async def last_id(self) -> int: ...

    async def events_after(self, after: int, agent_id: AgentId | None, limit: int, /) -> EventsAfter: ...


def encoded_events(found: EventsAfter, after: int) -> Iterator[tuple[int, bytes]]:
    """What a reader is sent who has seen `after`: each piece with the id that it has seen then."""
    if after > found.last:  # of another history; who waited for it would miss this one's
        yield found.last, _gap(HistoryGap(after=after, first=found.last + 1))
    elif after < found.first - 1:
        yield found.first - 1, _gap(HistoryGap(after=after, first=found.first))
    for event in found.events:
        yield event.id, _event(event)


def _event(event: HistoryEvent) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (event.id, msgspec.json.encode(event))


def _heartbeat(seen: int) -> bytes:
    """No event, but what to resume by, also where nothing has happened to the agent in question."""
    return b"id: %d\n\n" % seen


def _gap(gap: HistoryGap) -> bytes:
    return b"event: gap\nid: %d\ndata: %b\n\n" % (gap.first - 1, msgspec.json.encode(gap))


class EventStreams:
    """Every stream of this process."""

    def __init__(
        self, events: Events, *, most: int = MOST_STREAMS, heartbeat_s: float = _HEARTBEAT_S
    ) -> None:
        self._events = events
        self._most = most
        self._heartbeat_s = heartbeat_s
        self._open: set[_Stream] = set()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._open)

    def look(self) -> None:
        """Something may have happened."""
        for stream in self._open:
            stream.news.set()

    def end(self) -> None:
        """Ends what is open now; its readers come back."""
        for stream in self._open:
            stream.is_over = True
            stream.news.set()

    def close(self) -> None:
        """Ends everything, for good."""
        self._is_closed = True
        self.end()

    async def follow(self, after: int | None, agent_id: AgentId | None) -> AsyncGenerator[bytes, None]:
        """What happens from now on, or after an id; to one agent, or to everything.

        Raises HttpError when there are too many already, or DatabaseUnavailable.
        """
        if self._is_closed or len(self._open) >= self._most:
            raise HttpError(503, "too many follow the events of this verifier", retry_after_s=_COME_BACK_S)
        begin = await self._events.last_id() if after is None else after
        return self._parts(begin, agent_id)

    async def _parts(self, after: int, agent_id: AgentId | None) -> AsyncGenerator[bytes, None]:
        stream = _Stream(self._is_closed)
        self._open.add(stream)
        end = time.monotonic() + _LONGEST_S
        try:
            yield _heartbeat(after)
            while not stream.is_over and time.monotonic() < end:
                stream.news.clear()
                pause_s = self._heartbeat_s
                try:
                    found = await self._events.events_after(after, agent_id, _AT_ONCE)
                except DatabaseUnavailable as error:
                    log.debug("%s; events are told when it is back", error)
                    pause_s = _DATABASE_AWAY_S
                else:
                    for seen, piece in encoded_events(found, after):
                        yield piece
                        after = seen
                    if len(found.events) == _AT_ONCE:
                        continue
                    after = found.last  # what happened to others is seen as well
                if not await _happens(stream.news, pause_s):
                    yield _heartbeat(after)
        finally:
            self._open.discard(stream)


class _Stream:
    def __init__(self, is_over: bool) -> None:
        self.news = asyncio.Event()
        self.is_over = is_over


async def _happens(news: asyncio.Event, within_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await news.wait()
    return news.is_set()


class EventHandlers:
    """What administrators follow."""

    def __init__(self, streams: EventStreams) -> None:
        self._streams = streams

    def routes(self) -> list[Route]:
        """The route of the events."""
        return [
            Route(
                "GET",
                "/events",
                Role.ADMIN,
                self.follow,
                action="follow_events",
                about=Operation(
                    "What happens, as server-sent events: from now on, or after an event.",
                    HistoryEvent,
                    query={
                        "after": QueryField("Begin after the event with this id; 0 for all that is kept."),
                        "agent_id": QueryField("Only what happens to this agent."),
                    },
                    headers={_RESUME: QueryField("The last id that was seen; more important than `after`.")},
                    is_stream=True,
                ),
            )
        ]

    async def follow(self, request: Request) -> Response:
        resumed = request.headers.get(_RESUME, "").strip()
        text = resumed or request.query.get("after", "")
        after = _id(_RESUME if resumed else "after", text) if text else None
        agent_id = request.query.get("agent_id")
        try:
            agent = None if agent_id is None else parse_agent_id(agent_id)
        except MalformedMessage as error:
            raise HttpError(400, f"agent_id: {error}") from error
        parts = await self._streams.follow(after, agent)
        headers = {"Content-Type": STREAM_TYPE, "Cache-Control": "no-store"}
        return Response(raw=_RETRY, rest=parts, headers=headers)


def _id(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= _MAX_ID):
        raise HttpError(400, f"{name} is not the id of an event")
    return int(text)
