"""What happens to one agent, followed across connections that break."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest

from keylime.errors import KeylimeError, PeerRefused, PeerUnreachable
from keylime.http.event_source import StreamedEvent
from keylime.identifiers import AgentId
from keylime.messages.history import HistoryEvent, HistoryGap
from keylime_tenant.agent_events import News, StreamBegun, news_of
from keylime_tenant.errors import CommandFailed, OlderRelease

AGENT = AgentId("agent-1")


def block(number: int, name: str = "message", /, **fields: object) -> StreamedEvent:
    return StreamedEvent(str(number), name, json.dumps(fields).encode())


def told(number: int) -> StreamedEvent:
    return block(
        number,
        id=number,
        at=5,
        kind="state",
        agent_id=AGENT,
        policy=None,
        actor=None,
        request_id=None,
        details={},
    )


class Verifier:
    """Connections that end as a test says: each is what it tells, or why there is none."""

    place = "the verifier"

    def __init__(self, *connections: Sequence[StreamedEvent] | KeylimeError) -> None:
        self._connections = [*connections]
        self.followed: list[tuple[str, str]] = []

    async def version(self) -> str:
        return "2.6"

    async def follow(self, path: str, after: str) -> AsyncGenerator[StreamedEvent, None]:
        self.followed.append((path, after))
        if not self._connections:
            await asyncio.Event().wait()
        connection = self._connections.pop(0)
        if isinstance(connection, KeylimeError):
            raise connection
        for one in connection:
            yield one


def followed(verifier: Verifier, count: int, after: int | None = None) -> tuple[list[News], list[str]]:
    async def scenario() -> tuple[list[News], list[str]]:
        found: list[News] = []
        troubles: list[str] = []
        news = news_of(
            AGENT, verifier, lambda: verifier, after=after, tell_trouble=troubles.append, again_s=0
        )
        async with asyncio.timeout(100), aclosing(news) as stream:
            async for one in stream:
                found.append(one)
                if len(found) == count:
                    break
        return found, troubles

    return asyncio.run(scenario())


def test_a_connection_that_breaks_is_gone_on_with() -> None:
    verifier = Verifier(
        [StreamedEvent("7", "message", b""), told(8), StreamedEvent("11", "message", b"")],
        PeerUnreachable("nobody there"),
        [StreamedEvent("11", "message", b""), told(12)],
    )
    news, troubles = followed(verifier, 4)
    assert [type(one) for one in news] == [StreamBegun, HistoryEvent, StreamBegun, HistoryEvent]
    assert [one.id for one in news if isinstance(one, HistoryEvent)] == [8, 12]
    path = f"/v2.6/events?agent_id={AGENT}"
    assert verifier.followed == [(path, ""), (path, "11"), (path, "11")]
    assert troubles == ["the connection has ended", "nobody there"]


def test_it_begins_after_what_was_read_already() -> None:
    verifier = Verifier([told(5)])
    news, _ = followed(verifier, 2, after=4)
    assert verifier.followed[0][1] == "4"
    assert isinstance(news[1], HistoryEvent)


def test_what_cannot_be_read_is_left_out_and_a_gap_is_told() -> None:
    strange = StreamedEvent("8", "message", b'{"id": "x"}')
    later = block(9, "other", id=9)
    verifier = Verifier([strange, later, block(19, "gap", after=9, first=20), told(20)])
    news, _ = followed(verifier, 3)
    assert isinstance(news[0], StreamBegun)
    assert news[1] == HistoryGap(after=9, first=20)
    assert isinstance(news[2], HistoryEvent)


@pytest.mark.parametrize(("code", "kind"), [(404, OlderRelease), (403, CommandFailed)])
def test_where_there_is_nothing_to_follow_it_ends(code: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="the verifier tells"):
        followed(Verifier(PeerRefused(code, "")), 1)


def test_a_verifier_that_has_too_many_readers_is_asked_again() -> None:
    verifier = Verifier(PeerRefused(503, "too many"), [told(3)])
    news, troubles = followed(verifier, 2)
    assert len(news) == 2
    assert "503" in troubles[0]
