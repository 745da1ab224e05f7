"""What waits to be written, and when that is a problem."""

import asyncio

from keylime_verifier.polling.unwritten import Unwritten


def test_the_oldest_verdict_counts_and_only_while_it_waits() -> None:
    now = [100.0]
    unwritten = Unwritten(lambda: now[0])

    def problem() -> str | None:
        return asyncio.run(unwritten.verdicts_problem())

    with unwritten.verdict():
        now[0] += 4
        with unwritten.verdict():
            assert problem() is None
            now[0] += 2
            assert "for more than 5 seconds" in str(problem())
    assert problem() is None


def test_passes_are_a_problem_when_batches_do_not_get_through() -> None:
    now = [100.0]
    unwritten = Unwritten(lambda: now[0])

    def problem() -> str | None:
        return asyncio.run(unwritten.passes_problem())

    unwritten.passes_wait()
    now[0] += 4
    unwritten.passes_wait()
    assert problem() is None
    now[0] += 60
    assert "for more than a minute (see to the database)" in str(problem())
    unwritten.because("the disk is full")
    assert "(the disk is full)" in str(problem())
    unwritten.passes_written(others_wait=True)
    assert problem() is None
    now[0] += 6
    assert problem() is not None
    unwritten.passes_written(others_wait=False)
    assert problem() is None
