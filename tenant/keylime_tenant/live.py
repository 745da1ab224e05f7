"""A fleet's statuses as they are: by a verifier's events where it tells them, else by asking again."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Protocol

import msgspec

from keylime.errors import KeylimeError, MalformedMessage, PeerRefused
from keylime.http.event_source import StreamedEvent
from keylime.identifiers import AgentId, parse_agent_id
from keylime.messages.envelope import parse_body
from keylime_tenant.fleet_view import Fleet
from keylime_tenant.told_status import ToldStatus

_POLL_S = 2.0
_COUNT_S = 30.0  # while events come: passes that are routine are told by none
_AGAIN_S = 2.0
_MOST_SINGLE = 20  # agents that are asked for one by one; of more the whole list is


class StatusVerifier(Protocol):
    """Who tells statuses."""

    async def version(self) -> str: ...

    async def statuses(self, verifier_id: str, /) -> Mapping[str, ToldStatus]: ...

    async def status(self, agent_id: AgentId, /) -> ToldStatus | None: ...


class ToldEvents(Protocol):
    """Who tells what happens."""

    def follow(self, path: str, after: str) -> AsyncGenerator[StreamedEvent, None]: ...


class _Told(msgspec.Struct, frozen=True):
    agent_id: str | None = None


def concerned(event: StreamedEvent) -> str | None:
    """The agent whose status an event may have changed."""
    if event.kind != "message" or not event.data:
        return None
    try:
        return parse_body(event.data, _Told).agent_id
    except MalformedMessage:  # of a later release
        return None


class LiveFleet:
    """The statuses; `on_change` is called when they are other ones, or cannot be had."""

    def __init__(
        self,
        verifier: StatusVerifier,
        open_source: Callable[[], ToldEvents],
        verifier_id: str,
        on_change: Callable[[], None],
    ) -> None:
        self.fleet = Fleet()
        self._verifier = verifier
        self._open_source = open_source
        self._verifier_id = verifier_id
        self._on_change = on_change
        self._is_following = False
        self._seen = ""
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
                statuses = await self._verifier.statuses(self._verifier_id)
                self._all_asked_at = time.monotonic()
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
        """Ends where the verifier's release tells no events; else goes on for ever."""
        while True:
            try:
                path = f"/v{await self._verifier.version()}/events"
                async with contextlib.aclosing(self._open_source().follow(path, self._seen)) as events:
                    async for event in events:
                        self._take(event)
            except PeerRefused as error:
                if error.code == 404:
                    return
            except KeylimeError:
                pass  # asking shows it, and goes on meanwhile
            finally:
                self._is_following = False
            await asyncio.sleep(_AGAIN_S)

    def _take(self, event: StreamedEvent) -> None:
        self._seen = event.id or self._seen
        agent = concerned(event)
        if agent is not None:
            self._concerned.add(agent)
        elif not self._is_following or event.kind == "gap":
            self._all_asked_at = None  # what happened before it is not told
        elif not event.data:
            return
        self._is_following = True
        self._news.set()
