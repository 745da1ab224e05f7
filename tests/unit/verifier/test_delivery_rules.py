"""What becomes of deliveries: queues, retries, and whose they are."""

from dataclasses import replace

import pytest

from keylime.identifiers import AgentId
from keylime_verifier.agents.deliveries import (
    AGENT,
    DELIVERED,
    FAILED,
    GONE,
    PENDING,
    WEBHOOK,
    WRONG_KEY,
    ZEROMQ,
    Channel,
    DeliveryState,
)
from keylime_verifier.agents.records import Delivery, StoredRevocation
from keylime_verifier.agents.shards import shard_of
from keylime_verifier.revocations.delivery_rules import (
    AGENT_WINDOW,
    NOBODY,
    Looks,
    RetryPolicy,
    TargetQueue,
    goes_with,
    is_no_longer_ours,
    is_to_be_added,
    state_after,
)

ABOUT = AgentId("fallen")
POLICY = RetryPolicy(retry_interval_s=2.0, attempt_limit_s=5.0, retention_s=600.0, history_s=3600.0)


def delivery(
    name: str = "r1",
    channel: Channel = AGENT,
    target: str = "told",
    *,
    attempts: int = 0,
    number: int | None = None,
) -> Delivery:
    return Delivery(StoredRevocation(name, ABOUT, 1000, "m", "s"), channel, target, attempts, number)


@pytest.mark.parametrize(("failures", "pause_s"), [(1, 2.0), (2, 4.0), (5, 32.0), (6, 60.0), (10**6, 60.0)])
def test_pauses_grow_up_to_a_minute(failures: int, pause_s: float) -> None:
    assert POLICY.delay_s(failures) == pause_s


@pytest.mark.parametrize(
    ("error", "age_s", "attempts", "is_enabled", "state"),
    [
        (None, 0, 1, True, DELIVERED),
        (None, 10**6, 99, False, DELIVERED),
        (NOBODY, 0, 1, True, GONE),
        ("no answer", 0, 1, True, PENDING),
        ("no answer", 599, 99, True, PENDING),
        (
            "no answer",
            600,
            2,
            True,
            PENDING,
        ),  # also after a time without a verifier
        ("no answer", 600, 3, True, FAILED),
        ("no answer", 0, 1, False, FAILED),
    ],
)
def test_a_delivery_is_over_when_it_arrived_or_there_is_no_use(
    error: str | None, age_s: int, attempts: int, is_enabled: bool, state: DeliveryState
) -> None:
    tried = delivery(attempts=attempts)
    assert state == state_after(
        tried, error, now=1000 + age_s, waiting=PENDING, is_enabled=is_enabled, retry_policy=POLICY
    )


def test_a_wrong_key_is_tried_again_and_given_up_like_silence() -> None:
    def after(attempts: int) -> DeliveryState:
        tried = delivery(attempts=attempts)
        return state_after(
            tried, "another key", now=1600, waiting=WRONG_KEY, is_enabled=True, retry_policy=POLICY
        )

    assert [after(2), after(3)] == [WRONG_KEY, FAILED]


def test_what_is_over_leaves_its_queue_and_other_attempts_are_counted() -> None:
    queue = TargetQueue(AGENT, "told")
    first, second = delivery("r1"), delivery("r2")
    queue.add(first)
    queue.add(second)
    queue.conclude(replace(first, attempts=1), DELIVERED)
    queue.conclude(replace(second, attempts=1), WRONG_KEY)
    assert queue.waiting == {"r2": replace(second, attempts=1)}
    assert queue.failures_after([first, second], 3) == 0
    assert queue.failures_after([second], 3) == 4


def test_what_was_withdrawn_during_an_attempt_does_not_come_back() -> None:
    queue = TargetQueue(AGENT, "told")
    queue.add(delivery(number=7))
    assert queue.reached == 7
    assert not queue.withdraw(lambda one: one.target == "another")
    assert queue.reached == 7
    assert queue.withdraw(lambda one: True)
    queue.conclude(delivery(attempts=1), PENDING)
    assert not queue.waiting
    assert queue.reached is None


def test_the_backlog_of_a_silent_agent_is_not_heaped_up() -> None:
    queue = TargetQueue(AGENT, "told", is_silent=True)
    assert not queue.has_use_for(delivery(number=3))
    assert queue.has_use_for(delivery())  # one that was tried before, and waits for its next attempt
    queue.add(delivery())
    assert not queue.has_use_for(delivery())
    assert queue.room == AGENT_WINDOW - 1


def test_what_ended_while_the_outbox_was_read_is_not_taken_in_again() -> None:
    one = delivery()
    assert is_to_be_added(one, None, ())
    assert not is_to_be_added(one, None, {one.key})
    queue = TargetQueue(AGENT, "told")
    assert is_to_be_added(one, queue, ())
    queue.add(one)
    assert not is_to_be_added(one, queue, ())


def test_an_agents_backlog_is_ours_as_a_whole_and_others_one_by_one() -> None:
    is_lost = is_no_longer_ours(iter([delivery("r1"), delivery("r1", WEBHOOK, "hook")]))
    assert not is_lost(delivery("of its backlog"))
    assert is_lost(delivery("r1", AGENT, "moved"))
    assert not is_lost(delivery("r1", WEBHOOK, "hook"))
    assert is_lost(delivery("r2", WEBHOOK, "hook"))


def test_deliveries_go_with_the_shard_of_whom_they_are_for_or_about() -> None:
    told, about = shard_of(AgentId("told")), shard_of(ABOUT)
    assert told != about
    assert goes_with(delivery(), {told})
    assert not goes_with(delivery(), {about})
    assert goes_with(delivery(channel=WEBHOOK, target="hook"), {about})
    assert not goes_with(delivery(channel=WEBHOOK, target="hook"), {told})
    assert not goes_with(delivery(channel=ZEROMQ, target="broker"), set(range(256)))


def test_news_are_read_at_once_and_long_looks_make_long_rests() -> None:
    looks = Looks()
    assert looks.wait_s(100.0, has_news=True) == 0.0
    short = looks.after(100.0, 100.0)
    assert short.wait_s(100.0, has_news=True) == 0.0
    assert short.wait_s(100.0, has_news=False) == 30.0
    assert short.wait_s(140.0, has_news=False) == 0.0
    long = short.after(140.0, 142.0)
    assert long.wait_s(142.0, has_news=True) == 10.0
    assert long.wait_s(145.0, has_news=True) == 7.0
