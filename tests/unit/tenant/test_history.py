"""What an operator reads of an agent's history."""

from keylime.messages.history import HistoryEvent
from keylime_tenant.history import details


def enrolled(**told: object) -> HistoryEvent:
    return HistoryEvent(
        id=1, at=0, kind="enrolled", agent_id="a", policy=None, actor=None, request_id=None, details=told
    )


def test_an_agent_that_attests_by_itself_has_no_address() -> None:
    assert list(details(enrolled(ip="192.0.2.7", port=9002))) == ["at 192.0.2.7 port 9002"]
    assert list(details(enrolled(ip="", port=0))) == ["attests by itself"]
    assert list(details(enrolled(ip=None, port=None))) == ["attests by itself"]
