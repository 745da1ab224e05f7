"""What browsers are told of the verifier's events."""

import msgspec

from keylime.http.event_source import EventSource, StreamedEvent
from keylime.messages.history import HistoryEvent
from keylime_tenant.commands.dashboard import has_browser
from keylime_tenant.dashboard.chronicle import Chronicle
from keylime_tenant.dashboard.following import EventFeed

NOW = 1_800_000_000


class Verifier:
    async def version(self) -> str:
        return "2.6"


def nowhere() -> EventSource:
    raise AssertionError("nothing is followed here")


def block(number: int, at: int, agent_id: str | None = "a") -> StreamedEvent:
    event = HistoryEvent(
        id=number,
        at=at,
        kind="stopped",
        agent_id=agent_id,
        policy=None,
        actor=None,
        request_id=None,
        details={},
    )
    return StreamedEvent(str(number), "message", msgspec.json.encode(event))


def test_listeners_hear_what_is_new_and_no_more_than_they_take() -> None:
    follower = EventFeed(Verifier(), nowhere, Chronicle(), lambda: NOW)
    with follower.listening() as listener:
        follower.take(block(1, NOW - 3600))
        follower.take(StreamedEvent("2", "message", b""))
        follower.take(StreamedEvent("3", "message", b"{no JSON"))
        follower.take(StreamedEvent("4", "unknown", b"{}"))
        assert not listener.waiting
        follower.take(block(5, NOW))
        follower.take(StreamedEvent("9", "gap", b'{"after": 5, "first": 10}'))
        assert [(news.agent_id, news.text) for news in listener.waiting] == [
            ("a", "stopped by an operator"),
            ("", "events were missed"),
        ]
        assert listener.called.is_set()
        for number in range(10, 1000):
            follower.take(block(number, NOW))
        assert len(listener.waiting) == 100
    follower.take(block(1000, NOW))
    assert len(listener.waiting) == 100


def test_a_browser_is_opened_where_there_is_a_screen() -> None:
    assert has_browser({"DISPLAY": ":0"})
    assert has_browser({"WAYLAND_DISPLAY": "wayland-0"})
    assert has_browser({"BROWSER": "/usr/bin/firefox"})
    assert not has_browser({"TERM": "xterm", "DISPLAY": ""})
