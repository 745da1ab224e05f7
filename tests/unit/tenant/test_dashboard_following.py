"""What browsers are told of the verifier's events."""

import asyncio

from keylime.errors import PeerRefused, PeerUnreachable
from keylime.http.event_source import StreamedEvent
from keylime.messages.history import HistoryEvent, HistoryGap
from keylime_tenant.commands.dashboard import has_browser
from keylime_tenant.dashboard.chronicle import Chronicle
from keylime_tenant.dashboard.following import EventFeed
from keylime_tenant.dashboard.handlers import status_of
from keylime_tenant.errors import CommandFailed, PutOff
from keylime_tenant.news import StreamBegun
from keylime_tenant.standing import Standing
from tests.fakes.eventual import eventually
from tests.fakes.followed_verifier import BEGUN, ToldStreams
from tests.fakes.followed_verifier import told as sent

NOW = 1_800_000_000


def told(number: int, at: int, agent_id: str | None = "a") -> HistoryEvent:
    return HistoryEvent(
        id=number,
        at=at,
        kind="stopped",
        agent_id=agent_id,
        policy=None,
        actor=None,
        request_id=None,
        details={},
    )


def test_listeners_hear_what_is_new_and_no_more_than_they_take() -> None:
    streams = ToldStreams()
    follower = EventFeed(streams, lambda: streams, Chronicle(), lambda: NOW)
    with follower.listening() as listener:
        follower.take(StreamBegun())
        follower.take(told(1, NOW - 3600))
        assert not listener.waiting
        follower.take(told(5, NOW))
        follower.take(HistoryGap(after=5, first=10))
        assert [(news.agent_id, news.text) for news in listener.waiting] == [
            ("a", "stopped by an operator"),
            ("", "events were missed"),
        ]
        assert listener.called.is_set()
        for number in range(10, 1000):
            follower.take(told(number, NOW))
        assert len(listener.waiting) == 100
    follower.take(told(1000, NOW))
    assert len(listener.waiting) == 100


def problems_while(streams: ToldStreams) -> list[tuple[float, str]]:
    """How long it pauses, and what is said to be wrong then, and at last when it is followed again."""

    async def scenario() -> list[tuple[float, str]]:
        async def pause(duration_s: float) -> None:
            found.append((duration_s, feed.problem))

        found: list[tuple[float, str]] = []
        chronicle = Chronicle()
        feed = EventFeed(streams, lambda: streams, chronicle, sleep=pause)
        running = asyncio.create_task(feed.run())
        try:
            await eventually(lambda: chronicle.series(5)[Standing.FAILED][-1] == 1)
            return [*found, (0, feed.problem)]
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    return asyncio.run(scenario())


async def no_time(_duration_s: float) -> None:
    """Passes."""


def fell() -> StreamedEvent:
    return sent(9, findings=[{}])


def test_why_the_page_is_not_live_is_said_until_it_is() -> None:
    assert problems_while(ToldStreams(PeerUnreachable("nobody there"), [BEGUN, fell()])) == [
        (2.0, "nobody there"),
        (0, ""),
    ]


def test_browsers_are_told_when_the_page_is_not_live_and_when_it_is_again() -> None:
    away = PeerUnreachable("nobody there")

    async def scenario() -> list[str]:
        streams = ToldStreams([BEGUN], away, away, [], [BEGUN], [BEGUN, fell()])
        chronicle = Chronicle()
        feed = EventFeed(streams, lambda: streams, chronicle, sleep=no_time)
        with feed.listening() as listener:
            running = asyncio.create_task(feed.run())
            try:
                await eventually(lambda: chronicle.series(5)[Standing.FAILED][-1] == 1)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            return [news.text for news in listener.waiting]

    assert asyncio.run(scenario()) == ["not live: nobody there", "live"]


def test_an_older_verifier_is_said_to_be_one_and_asked_again_later() -> None:
    streams = ToldStreams(PeerRefused(404, "Not Found"), [BEGUN, fell()])
    assert problems_while(streams) == [
        (60.0, "the verifier tells no events: its release is older"),
        (0, ""),
    ]
    assert streams.followed == [("/v2.6/events", "0")] * 2


def test_a_stream_that_ends_in_good_order_is_no_problem_and_gone_on_with() -> None:
    streams = ToldStreams([BEGUN], [fell()])
    assert problems_while(streams) == [(2.0, ""), (0, "")]
    assert streams.followed[1] == ("/v2.6/events", "7")


def test_a_browser_is_opened_where_there_is_a_screen() -> None:
    assert has_browser({"DISPLAY": ":0"})
    assert has_browser({"WAYLAND_DISPLAY": "wayland-0"})
    assert has_browser({"BROWSER": "/usr/bin/firefox"})
    assert not has_browser({"TERM": "xterm", "DISPLAY": ""})


def test_a_page_knows_a_verifier_that_is_away_from_an_order_that_it_refuses() -> None:
    errors = (PeerUnreachable("away"), PutOff("busy"), CommandFailed("no such policy"))
    assert [status_of(error) for error in errors] == [502, 503, 409]
