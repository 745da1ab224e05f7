"""What happens to one agent, followed across connections that break."""

import asyncio
from contextlib import aclosing

import pytest

from keylime.errors import PeerRefused, PeerUnreachable
from keylime.http.event_source import StreamedEvent
from keylime.messages.history import HistoryEvent, HistoryGap
from keylime_tenant.errors import CommandFailed, OlderRelease
from keylime_tenant.news import News, StreamBegun, news_of
from tests.fakes.followed_verifier import AGENT, ToldStreams, block, told


async def no_time(_duration_s: float) -> None:
    """Passes."""


def followed(
    verifier: ToldStreams, count: int, after: int | None = None, refused_again_s: float | None = None
) -> tuple[list[News], list[str]]:
    async def scenario() -> tuple[list[News], list[str]]:
        found: list[News] = []
        troubles: list[str] = []
        news = news_of(
            verifier,
            lambda: verifier,
            agent_id=AGENT,
            after=after,
            tell_trouble=troubles.append,
            refused_again_s=refused_again_s,
            sleep=no_time,
        )
        async with asyncio.timeout(100), aclosing(news) as stream:
            async for one in stream:
                found.append(one)
                if len(found) == count:
                    break
        return found, troubles

    return asyncio.run(scenario())


def test_a_connection_that_breaks_is_gone_on_with() -> None:
    verifier = ToldStreams(
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
    verifier = ToldStreams([told(5)])
    news, _ = followed(verifier, 2, after=4)
    assert verifier.followed[0][1] == "4"
    assert isinstance(news[1], HistoryEvent)


def test_what_cannot_be_read_is_left_out_and_a_gap_is_told() -> None:
    strange = StreamedEvent("8", "message", b'{"id": "x"}')
    later = block(9, "other", id=9)
    verifier = ToldStreams([strange, later, block(19, "gap", after=9, first=20), told(20)])
    news, _ = followed(verifier, 3)
    assert isinstance(news[0], StreamBegun)
    assert news[1] == HistoryGap(after=9, first=20)
    assert isinstance(news[2], HistoryEvent)


@pytest.mark.parametrize(("code", "kind"), [(404, OlderRelease), (403, CommandFailed)])
def test_where_there_is_nothing_to_follow_it_ends(code: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="the verifier tells"):
        followed(ToldStreams(PeerRefused(code, "")), 1)


def test_a_verifier_that_has_too_many_readers_is_asked_again() -> None:
    verifier = ToldStreams(PeerRefused(503, "too many"), [told(3)])
    news, troubles = followed(verifier, 2)
    assert len(news) == 2
    assert "503" in troubles[0]


def test_who_has_time_asks_again_where_there_is_nothing_to_follow() -> None:
    verifier = ToldStreams(PeerRefused(404, ""), PeerRefused(403, ""), [told(3)])
    news, troubles = followed(verifier, 2, refused_again_s=60.0)
    assert isinstance(news[1], HistoryEvent)
    assert [text.partition(" tells ")[2] for text in troubles] == [
        "no events: its release is older",
        "events to administrators only",
    ]
