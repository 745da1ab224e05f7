"""What the history is told of deliveries: ends and first failures, together where many come at once."""

from keylime.identifiers import AgentId
from keylime_verifier.agents.deliveries import (
    AGENT,
    DELIVERED,
    FAILED,
    GONE,
    PENDING,
    WEBHOOK,
    WRONG_KEY,
    Channel,
    DeliveryState,
)
from keylime_verifier.agents.events import EventKind, Occurrence
from keylime_verifier.agents.records import Delivery, DeliveryAttempt, StoredRevocation
from keylime_verifier.revocations.delivery_events import MOST_EVENTS, MOST_NAMES, delivery_events


def attempt(
    state: DeliveryState,
    *,
    number: int = 1,
    channel: Channel = AGENT,
    target: str = "agent-9",
    tries: int = 1,
    error: str | None = None,
) -> DeliveryAttempt:
    revocation = StoredRevocation(f"revocation-{number}", AgentId(f"agent-{number}"), 1, "{}", "")
    return DeliveryAttempt(Delivery(revocation, channel, target, tries), state, error, 5)


def test_a_warning_and_the_message_that_ends_it_are_told_apart() -> None:
    cleared = StoredRevocation("cleared-1", AgentId("agent-1"), 1, '{"type": "cleared", "ip": ""}', "")
    silent = StoredRevocation("silent-1", AgentId("agent-2"), 1, '{"type": "comm_error", "ip": ""}', "")
    attempts = [
        DeliveryAttempt(Delivery(one, AGENT, "agent-9", 1), DELIVERED, None, 5) for one in (cleared, silent)
    ]
    events = delivery_events([attempt(DELIVERED), *attempts], "batch")
    assert [event.details["messages"] for event in events] == [["revocation"], ["cleared"], ["comm_error"]]


def told(events: list[Occurrence]) -> list[tuple[str | None, str, str, list[str]]]:
    assert {event.kind for event in events} <= {EventKind.DELIVERY}
    return [
        (event.agent_id, event.details["outcome"], event.details["channel"], event.details["targets"])
        for event in events
    ]


def test_ends_and_first_failures_are_told_and_no_more_of_what_goes_on() -> None:
    events = delivery_events(
        [
            attempt(DELIVERED),
            attempt(DELIVERED, target="agent-8", tries=7),
            attempt(PENDING, channel=WEBHOOK, target="https://alarm", error="silent"),
            attempt(PENDING, channel=WEBHOOK, target="https://other", tries=2, error="silent"),
            attempt(WRONG_KEY, target="agent-7", error="another key"),
            attempt(WRONG_KEY, target="agent-6", tries=2, error="another key"),
            attempt(FAILED, target="agent-5", tries=40, error="silent"),
            attempt(GONE, target="agent-4"),
        ],
        "batch",
    )
    assert told(events) == [
        ("agent-1", "delivered", "agent", ["agent-9", "agent-8"]),
        ("agent-1", "failing", "webhook", ["https://alarm"]),
        ("agent-1", "wrong_key", "agent", ["agent-7"]),
        ("agent-1", "given_up", "agent", ["agent-5"]),
    ]
    assert [event.details.get("error") for event in events] == [None, "silent", "another key", "silent"]
    assert [event.details["revocations"] for event in events] == [["revocation-1"]] * 4
    assert [event.token for event in events] == ["batch00", "batch01", "batch02", "batch03"]


def test_each_revocation_has_its_own_event_while_they_are_few() -> None:
    few = [attempt(DELIVERED, number=number) for number in range(MOST_EVENTS)]
    assert [event.agent_id for event in delivery_events(few, "x")] == [
        f"agent-{number}" for number in range(MOST_EVENTS)
    ]


def test_a_fleet_that_falls_at_once_has_one_event_for_a_batch() -> None:
    machines, targets = MOST_EVENTS + 5, MOST_NAMES + 3
    many = [
        attempt(DELIVERED, number=number, target=f"agent-{target}")
        for number in range(machines)
        for target in range(targets)
    ]
    (event,) = delivery_events(many, "x")
    assert event.agent_id is None
    assert event.details["count"] == machines * targets
    assert len(event.details["targets"]) == MOST_NAMES
    assert event.details["targets_left_off"] == 3
    assert len(event.details["revocations"]) == MOST_NAMES
    assert event.details["revocations_left_off"] == machines - MOST_NAMES


def test_nothing_is_told_of_nothing() -> None:
    assert delivery_events([attempt(PENDING, tries=2)], "x") == []
