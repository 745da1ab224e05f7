from keylime_agent.registration import Backoff


def test_pauses_double_up_to_their_limit() -> None:
    backoff = Backoff(initial_s=10, max_s=300, max_refusals=5)
    assert [backoff.delay(attempt, 0) for attempt in range(1, 8)] == [10, 20, 40, 80, 160, 300, 300]
    assert backoff.delay(10_000, 0) == 300


def test_a_fleet_does_not_come_back_together() -> None:
    backoff = Backoff(initial_s=10, max_s=300, max_refusals=5)
    assert backoff.delay(1, 0.5) == 10.5
