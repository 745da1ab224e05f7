"""The verifier's events, followed once for all browsers that look at the page."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import msgspec

from keylime.messages.history import HistoryEvent, HistoryGap
from keylime_tenant import history
from keylime_tenant.dashboard.chronicle import Chronicle
from keylime_tenant.news import ENDED, EventsVerifier, News, OpenStream, StreamBegun, news_of

_REFUSED_AGAIN_S = 60.0  # a verifier may get another release
_MOST_WAITING = 100
_RECENT_S = 60.0  # what is older was there when the page was made


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
        verifier: EventsVerifier,
        open_stream: OpenStream,
        chronicle: Chronicle,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.problem = ""
        self.is_over = False
        self._verifier = verifier
        self._open_stream = open_stream
        self._chronicle = chronicle
        self._now = now
        self._sleep = sleep
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
        stream = news_of(
            self._verifier,
            self._open_stream,
            after=0,  # all that is kept
            tell_trouble=self._miss,
            refused_again_s=_REFUSED_AGAIN_S,
            sleep=self._sleep,
        )
        async with contextlib.aclosing(stream):
            async for news in stream:
                self.take(news)

    def _miss(self, trouble: str) -> None:
        if trouble in (ENDED, self.problem):
            return
        self.problem = trouble
        self._tell(BrowserNews("", f"not live: {trouble}"))

    def take(self, news: News) -> None:
        """What the verifier tells."""
        match news:
            case StreamBegun():
                if self.problem:
                    self._tell(BrowserNews("", "live"))
                self.problem = ""
            case HistoryGap():
                self._tell(BrowserNews("", "events were missed"))
            case HistoryEvent():
                self._chronicle.take(news)
                if news.at >= self._now() - _RECENT_S:
                    self._tell(BrowserNews(news.agent_id or "", history.headline(news)))

    def _tell(self, news: BrowserNews) -> None:
        for listener in self._listeners:
            listener.waiting.append(news)
            listener.called.set()
