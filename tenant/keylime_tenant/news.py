"""What happens to one agent while it happens, across connections that break, without gap or double."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

from keylime.errors import KeylimeError, MalformedMessage, PeerRefused
from keylime.identifiers import AgentId
from keylime.messages.envelope import parse_body
from keylime.messages.history import HistoryEvent, HistoryGap
from keylime_tenant.errors import CommandFailed, OlderRelease

if TYPE_CHECKING:  # it brings a library that whoever follows nothing would have to wait for
    from keylime.http.event_source import StreamedEvent

_AGAIN_S = 2.0


class EventsVerifier(Protocol):
    """Who tells the events."""

    @property
    def place(self) -> str: ...

    async def version(self) -> str: ...


class ToldEvents(Protocol):
    """A way to it."""

    def follow(self, path: str, after: str) -> "AsyncGenerator[StreamedEvent, None]": ...


class StreamBegun:
    """The verifier tells from now on; what happened before it was asked is not told again."""


News: TypeAlias = StreamBegun | HistoryEvent | HistoryGap


async def news_of(
    agent_id: AgentId,
    verifier: EventsVerifier,
    open_source: Callable[[], ToldEvents],
    *,
    after: int | None,
    tell_trouble: Callable[[str], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[News, None]:
    """What happens to an agent after the event with the id `after`, or from now on; for ever.

    `StreamBegun` comes with each connection, also after one was lost, which `tell_trouble` hears of.
    Raises OlderRelease where no events are told, and CommandFailed for who may not follow them.
    """
    seen = "" if after is None else str(after)
    while True:
        trouble = "the connection has ended"
        try:
            path = f"/v{await verifier.version()}/events?agent_id={agent_id}"
            async with contextlib.aclosing(open_source().follow(path, seen)) as blocks:
                has_begun = False
                async for block in blocks:
                    if not has_begun and block.id:
                        has_begun = True
                        yield StreamBegun()
                    if (news := _news_in(block)) is not None:
                        yield news
                    seen = block.id or seen
        except PeerRefused as error:
            if error.code == 404:
                raise OlderRelease(f"{verifier.place} tells no events: its release is older") from error
            if error.code in (401, 403):
                raise CommandFailed(f"{verifier.place} tells events to administrators only") from error
            trouble = str(error)
        except KeylimeError as error:
            trouble = str(error)
        tell_trouble(trouble)
        await sleep(_AGAIN_S)


def _news_in(block: "StreamedEvent") -> HistoryEvent | HistoryGap | None:
    if not block.data:
        return None
    try:
        if block.kind == "gap":
            return parse_body(block.data, HistoryGap)
        return parse_body(block.data, HistoryEvent) if block.kind == "message" else None
    except MalformedMessage:  # of a later release
        return None
