"""A fleet's statuses as they are: by a verifier's events where it tells them, else by asking again."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from keylime.errors import KeylimeError
from keylime.identifiers import AgentId, parse_agent_id
from keylime.messages.history import HistoryEvent
from keylime_tenant.errors import CommandFailed
from keylime_tenant.fleet_view import Fleet
from keylime_tenant.news import EventsVerifier, News, OpenStream, news_of
from keylime_tenant.told_status import ToldStatus

_POLL_S = 2.0
_COUNT_S = 30.0  # while events come: passes that are routine are told by none
_MOST_SINGLE = 20  # agents that are asked for one by one; of more the whole list is


class StatusVerifier(EventsVerifier, Protocol):
    """Who tells statuses, too."""

    async def statuses(self, verifier_id: str, /) -> Mapping[str, ToldStatus]: ...

    async def status(self, agent_id: AgentId, /) -> ToldStatus | None: ...


class LiveFleet:
    """The statuses; `on_change` is called when they are other ones, or cannot be had."""

    def __init__(
        self,
        verifier: StatusVerifier,
        open_stream: OpenStream,
        verifier_id: str,
        on_change: Callable[[], None],
        first: Fleet | None = None,
    ) -> None:
        """`first` is what is known of it already."""
        self.fleet = first or Fleet()
        self._verifier = verifier
        self._open_stream = open_stream
        self._verifier_id = verifier_id
        self._on_change = on_change
        self._is_following = False
        self._concerned: set[str] = set()
        self._all_asked_at: float | None = None  # None: all of them are to be asked for
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Until it is cancelled."""
        following = asyncio.create_task(self._follow())
        try:
            while True:
                self._news.clear()
                await self._ask()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_COUNT_S if self._is_following else _POLL_S):
                        await self._news.wait()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def refresh(self) -> None:
        """Asks for all of them now."""
        self._all_asked_at = None
        await self._ask()

    async def _ask(self) -> None:
        some, self._concerned = self._concerned, set()
        is_due = self._all_asked_at is None or time.monotonic() - self._all_asked_at >= (
            _COUNT_S if self._is_following else _POLL_S
        )
        try:
            if is_due or not some or len(some) > _MOST_SINGLE or self._verifier_id:
                self._all_asked_at = time.monotonic()  # before: what is told meanwhile may say that it is due
                statuses = await self._verifier.statuses(self._verifier_id)
            else:
                statuses = {**self.fleet.statuses}
                for agent in some:
                    status = await self._verifier.status(parse_agent_id(agent))
                    if status is None:
                        statuses.pop(agent, None)
                    else:
                        statuses[agent] = status
            self.fleet = Fleet(statuses, time.time())
        except KeylimeError as error:
            self._all_asked_at = None
            self.fleet = Fleet(self.fleet.statuses, self.fleet.asked_at, str(error))
        self._on_change()

    async def _follow(self) -> None:
        """Ends where events are not told, or not to us; else goes on for ever."""
        stream = news_of(
            self._verifier, self._open_stream, after=None, tell_trouble=self._lost, sleep=asyncio.sleep
        )
        with contextlib.suppress(CommandFailed):
            async with contextlib.aclosing(stream):
                async for news in stream:
                    self._take(news)
        self._is_following = False

    def _lost(self, _trouble: str) -> None:
        if self._is_following:
            self._news.set()  # asking shows the trouble, and goes on meanwhile
        self._is_following = False

    def _take(self, news: News) -> None:
        self._is_following = True
        if not isinstance(news, HistoryEvent):
            self._all_asked_at = None  # what happened before it is not told
        elif news.agent_id is not None:
            self._concerned.add(news.agent_id)
        self._news.set()
