"""Brings every event to one more place, in their order, and goes on where it stopped."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from keylime.database.engine import DatabaseUnavailable
from keylime.errors import ConfigError, PeerRefused, PeerUnreachable
from keylime.identifiers import AgentId
from keylime.messages.history import EventsAfter, HistoryEvent

log = logging.getLogger("keylime.verifier")

_AT_ONCE = 100  # events
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 60.0
_LOOK_S = 15.0  # though nobody said that something has happened


class Events(Protocol):
    """What happened, as it was written down."""

    async def last_id(self) -> int: ...

    async def events_after(self, after: int, agent_id: AgentId | None, limit: int, /) -> EventsAfter: ...


class EventDestination(Protocol):
    """Where events are to be.

    Its methods raise PeerUnreachable, PeerRefused, ConfigError, DatabaseUnavailable.
    """

    async def seen(self) -> int | None:
        """The id of the last event that is there; None where nothing was ever brought."""

    async def bring(self, events: Sequence[HistoryEvent], seen: int) -> None:
        """Adds events; all up to the id `seen` are there then."""


class Follower:
    """Follows the events for a place: all since it was first there, once unless a process ends midway."""

    def __init__(
        self, events: Events, place: EventDestination, name: str, is_mine: Callable[[], bool] = lambda: True
    ) -> None:
        """`is_mine` says whether it is for this process to do; `name` is what the log calls the place."""
        self._events = events
        self._place = place
        self._name = name
        self._is_mine = is_mine
        self._news = asyncio.Event()
        self._retry_s = 0.0

    def look(self) -> None:
        """Something may have happened."""
        self._news.set()

    async def run(self) -> None:
        """Goes on for ever."""
        while True:
            self._news.clear()
            if await self._try():
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._retry_s or _LOOK_S):
                    if self._retry_s:
                        await asyncio.Event().wait()
                    await self._news.wait()

    async def _try(self) -> bool:
        """Whether there is more to bring at once."""
        if not self._is_mine():
            return False
        try:
            has_more = await self.step()
        except DatabaseUnavailable as error:
            log.debug("%s; events are brought to %s later", error, self._name)
            self._retry_s = _FIRST_RETRY_S
            return False
        except (PeerUnreachable, PeerRefused, ConfigError) as error:
            if not self._retry_s:
                log.error("events wait, %s does not take them: %s", self._name, error)
            self._retry_s = min(max(2 * self._retry_s, _FIRST_RETRY_S), _LONGEST_RETRY_S)
            return False
        if self._retry_s:
            log.info("events are brought to %s again", self._name)
            self._retry_s = 0.0
        return has_more

    async def step(self) -> bool:
        """Brings what is next; whether there is more. Raises what the place raises."""
        seen = await self._place.seen()
        if seen is None:
            await self._place.bring((), await self._events.last_id())
            return False
        found = await self._events.events_after(seen, None, _AT_ONCE)
        if seen > found.last:
            log.warning("%s: the database was taken back to before event %d", self._name, seen)
            await self._place.bring((), found.last)
        elif seen < found.first - 1 and seen < found.last:
            log.warning(
                "%s: events %d to %d were forgotten before they could be told",
                self._name,
                seen + 1,
                found.first - 1,
            )
        if found.events:
            await self._place.bring(found.events, found.events[-1].id)
        return len(found.events) == _AT_ONCE
