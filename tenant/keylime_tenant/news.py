"""What happens to one agent, or to all, while it happens: across broken connections, without gap or double.

Whoever follows events does so by this one loop, which goes on after the last event that was seen.
"""

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

ENDED = "the connection has ended"
"""The trouble of a verifier that ends a stream in good order, as it does now and then."""

_AGAIN_S = 2.0


class EventsVerifier(Protocol):
    """Who tells the events."""

    @property
    def place(self) -> str: ...

    async def version(self) -> str: ...


class EventStream(Protocol):
    """A way to it: blocks as they come, until the verifier ends them."""

    def follow(self, path: str, after: str) -> "AsyncGenerator[StreamedEvent, None]": ...


OpenStream: TypeAlias = Callable[[], EventStream]


class StreamBegun:
    """The verifier tells from now on; what happened before it was asked is not told again."""


News: TypeAlias = StreamBegun | HistoryEvent | HistoryGap


async def news_of(
    verifier: EventsVerifier,
    open_stream: OpenStream,
    *,
    agent_id: AgentId | None = None,
    after: int | None,
    tell_trouble: Callable[[str], None],
    sleep: Callable[[float], Awaitable[None]],
    refused_again_s: float | None = None,
) -> AsyncGenerator[News, None]:
    """What happens after the event with the id `after`, or from now on; for ever. No agent: to all of them.

    `StreamBegun` comes with each connection, also after one was lost, which `tell_trouble` hears of.
    Raises OlderRelease where no events are told, and CommandFailed for who may not follow them, unless that
    is asked again after `refused_again_s`.
    """
    query = "" if agent_id is None else f"?agent_id={agent_id}"
    seen = "" if after is None else str(after)
    while True:
        trouble, pause_s = ENDED, _AGAIN_S
        try:
            path = f"/v{await verifier.version()}/events{query}"
            async with contextlib.aclosing(open_stream().follow(path, seen)) as blocks:
                has_begun = False
                async for block in blocks:
                    if not has_begun and block.id:
                        has_begun = True
                        yield StreamBegun()
                    if (news := _news_in(block)) is not None:
                        yield news
                    seen = block.id or seen
        except PeerRefused as error:
            trouble = str(error)
            if (refusal := _refusal(verifier, error)) is not None:
                if refused_again_s is None:
                    raise refusal from error
                trouble, pause_s = str(refusal), refused_again_s
        except KeylimeError as error:
            trouble = str(error)
        tell_trouble(trouble)
        await sleep(pause_s)


def _refusal(verifier: EventsVerifier, error: PeerRefused) -> CommandFailed | None:
    """What is not over in a moment."""
    if error.code == 404:
        return OlderRelease(f"{verifier.place} tells no events: its release is older")
    if error.code in (401, 403):
        return CommandFailed(f"{verifier.place} tells events to administrators only")
    return None


def _news_in(block: "StreamedEvent") -> HistoryEvent | HistoryGap | None:
    if not block.data:
        return None
    try:
        if block.kind == "gap":
            return parse_body(block.data, HistoryGap)
        return parse_body(block.data, HistoryEvent) if block.kind == "message" else None
    except MalformedMessage:  # of a later release
        return None
