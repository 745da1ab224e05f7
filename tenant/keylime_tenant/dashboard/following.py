"""The verifier's events, followed once for all browsers that look at the page."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import msgspec

from keylime.errors import KeylimeError, MalformedMessage, PeerRefused
from keylime.http.event_source import StreamedEvent
from keylime.messages.envelope import parse_body
from keylime.messages.history import HistoryEvent
from keylime_tenant import history, news
from keylime_tenant.dashboard.chronicle import Chronicle

_AGAIN_S, _LONG_AGAIN_S = 2.0, 60.0
_MOST_WAITING = 100
_RECENT_S = 60.0  # what is older was there when the page was made


class ToldEvents(Protocol):
    """Where events come from, and in which version of the API."""

    async def version(self) -> str: ...


@dataclass(frozen=True, slots=True)
class BrowserNews:
    """What browsers are told of an event: the page has the rest."""

    agent_id: str
    text: str

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode({"agent_id": self.agent_id, "text": self.text})


class Listener:
    """One browser. What it does not take is dropped: it reads the whole page anyway."""

    def __init__(self) -> None:
        self.waiting: deque[BrowserNews] = deque(maxlen=_MOST_WAITING)
        self.called = asyncio.Event()


class EventFeed:
    """Follows the events, keeps the chronicle, tells listeners. `problem` is why nothing comes, if so."""

    def __init__(
        self,
        verifier: ToldEvents,
        open_source: Callable[[], news.ToldEvents],
        chronicle: Chronicle,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.problem = ""
        self.is_over = False
        self._verifier = verifier
        self._open = open_source
        self._chronicle = chronicle
        self._now = now
        self._seen = "0"  # all that is kept
        self._listeners: set[Listener] = set()

    @contextlib.contextmanager
    def listening(self) -> Iterator[Listener]:
        """A listener, for as long as it is used."""
        listener = Listener()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def end(self) -> None:
        """Ends what listeners wait for."""
        self.is_over = True
        for listener in self._listeners:
            listener.called.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            pause_s = _AGAIN_S
            try:
                await self._follow()
            except PeerRefused as error:
                is_old = error.code == 404
                pause_s = _LONG_AGAIN_S if is_old else _AGAIN_S
                self.problem = "the verifier's release is older: it tells no events" if is_old else str(error)
            except KeylimeError as error:
                self.problem = str(error)
            await asyncio.sleep(pause_s)

    async def _follow(self) -> None:
        path = f"/v{await self._verifier.version()}/events"
        async with contextlib.aclosing(self._open().follow(path, self._seen)) as events:
            async for event in events:
                self.problem = ""
                self.take(event)

    def take(self, told: StreamedEvent) -> None:
        """One block of the stream."""
        if told.id:
            self._seen = told.id
        if told.kind == "gap":
            self._tell(BrowserNews("", "events were missed"))
        if told.kind != "message" or not told.data:
            return
        try:
            event = parse_body(told.data, HistoryEvent)
        except MalformedMessage:  # of a later release
            return
        self._chronicle.take(event)
        if event.at >= self._now() - _RECENT_S:
            self._tell(BrowserNews(event.agent_id or "", history.headline(event)))

    def _tell(self, news: BrowserNews) -> None:
        for listener in self._listeners:
            listener.waiting.append(news)
            listener.called.set()
