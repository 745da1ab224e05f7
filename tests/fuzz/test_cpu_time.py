"""The limits of the fuzzer are CPU time: what waits is not slow, what works too long is."""

import time

import pytest

from tests.fuzz.cpu_time import Budget, TooSlow, within


def work(data: bytes) -> None:
    """Works for as many hundredths of a second as there are bytes."""
    end_s = time.process_time() + len(data) / 100
    while time.process_time() < end_s:
        pass


def test_an_input_that_only_waits_is_not_slow() -> None:
    within(0.05, lambda _: time.sleep(0.2), b"")


def test_an_input_that_works_too_long_is_stopped_even_if_it_would_never_end() -> None:
    with pytest.raises(TooSlow, match="of 1000000 bytes"):
        within(0.05, work, bytes(1_000_000))
    within(5, work, b"1")  # the limit of the one before is gone


def test_a_run_ends_by_the_cpu_time_that_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    ends: list[int] = []
    run = Budget(work, budget_s=0.2, limit_s=5, leave=lambda: ends.append(run.executions))
    began_s = time.process_time()
    while not ends:
        time.sleep(0.01)
        run(b"12")
    assert time.process_time() - began_s >= 0.2
    assert 2 <= ends[0] <= 10, "one takes 0.02 s, and waiting counts for nothing"
    assert capsys.readouterr().err == f"stat::number_of_executed_units: {ends[0]}\n"


def test_a_run_without_a_budget_does_not_end() -> None:
    run = Budget(work, budget_s=0, limit_s=5, leave=lambda: pytest.fail("left"))
    for _ in range(5):
        run(b"1")
    assert run.executions == 5
