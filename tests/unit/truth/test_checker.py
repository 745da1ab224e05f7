"""The checker finds each kind of fault: histories that are wrong on purpose, made from one that is right."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.truth.checker import Bounds, Rule, deadline, must_be_rejected, violations
from tests.truth.history import (
    Answered,
    Fault,
    History,
    Judged,
    Loss,
    Refused,
    Row,
    Run,
    Shown,
    Starved,
    Told,
    Truth,
    Written,
)

GET_QUOTE, INVALID_QUOTE = 3, 9
BOUNDS = Bounds(lease_s=2.0, interval_s=1.0, grace_s=1.0)
BAD_AT, ENDED = 20.0, 60.0
LATE_S = BOUNDS.rejection_s + 1
ALIVE = Run("v1/1", 0.0)


def shown(
    agent_id: str,
    at: float,
    status: str,
    *,
    state: int | None = None,
    count: int | None = None,
    run: str = "v1/1",
    viewer: str | None = None,
) -> Shown:
    usual = INVALID_QUOTE if status == "FAIL" else GET_QUOTE
    passes = int(min(at, BAD_AT) if agent_id == "bad" else at)
    return Shown(
        at - 0.1,
        at,
        run,
        viewer or f"{run}:1",
        agent_id,
        usual if state is None else state,
        status,
        passes if count is None else count,
    )


def right() -> History:
    """A machine stays good, another one turns bad at `BAD_AT`, and verifiers do as they should."""
    seconds = range(1, int(ENDED))
    return History(
        ended=ENDED,
        truths={"good": Truth(watched_since=1.0), "bad": Truth(BAD_AT, watched_since=1.0)},
        rows={"good": Row(GET_QUOTE, 0), "bad": Row(INVALID_QUOTE, 1)},
        answered=(
            *(Answered(float(at), "good") for at in seconds),
            *(Answered(float(at), "bad", at > BAD_AT) for at in seconds if at <= BAD_AT + 1),
        ),
        judged=(Judged(BAD_AT + 1.1, BAD_AT + 1.2, "v1/1", "bad"),),
        shown=(
            *(shown("good", at + 0.5, "PASS") for at in seconds),
            *(shown("bad", at + 0.5, "PASS" if at <= BAD_AT else "FAIL") for at in seconds),
        ),
        told=(Told("webhook", "bad"), Told("good", "bad")),
        written=(
            Written("good", "one", GET_QUOTE, 1, "keylime_verifier:host:7", "host:7"),
            Written("good", "one", GET_QUOTE, 2, "keylime_verifier:host:7", "host:7"),
            Written("bad", "one", INVALID_QUOTE, 1, "keylime_verifier:host:8", "host:7"),
        ),
        runs=(ALIVE,),
        listeners=frozenset({"webhook", "good", "bad"}),
    )


def rules(history: History) -> set[Rule]:
    return {violation.rule for violation in violations(history, BOUNDS)}


def test_nothing_is_found_where_all_is_right() -> None:
    assert violations(right(), BOUNDS) == []


def without_failures(history: History) -> History:
    return replace(history, shown=tuple(one for one in history.shown if one.status != "FAIL"))


def passed_again(history: History) -> History:
    return replace(history, rows={**history.rows, "bad": Row(GET_QUOTE, 1)})


def shown_late(history: History) -> History:
    late = BAD_AT + LATE_S
    return replace(
        history, shown=tuple(one for one in history.shown if one.agent_id == "good" or one.at > late)
    )


def never_shown(history: History) -> History:
    return without_failures(history)


def found_for_one_round(history: History) -> History:
    """Only its verifier knew, which lived on and lost its verdict."""
    return replace(
        passed_again(without_failures(history)),
        truths={**history.truths, "bad": Truth(BAD_AT, BAD_AT + 2, watched_since=1.0)},
    )


def with_shown(*more: Shown) -> Callable[[History], History]:
    return lambda history: replace(history, shown=(*history.shown, *more))


def with_written(*more: Written) -> Callable[[History], History]:
    return lambda history: replace(history, written=(*history.written, *more))


def with_run(run: Run) -> Callable[[History], History]:
    return lambda history: replace(history, runs=(*history.runs, run))


def left_alone(history: History) -> History:
    gone = range(30, 30 + int(LATE_S) + 1)
    return replace(
        history,
        answered=tuple(one for one in history.answered if one.at not in gone),
        shown=tuple(one for one in history.shown if int(one.at) not in gone),
    )


def abandoned_at_the_end(history: History) -> History:
    ended = ENDED - LATE_S
    return replace(
        history,
        answered=tuple(one for one in history.answered if one.at < ended),
        shown=tuple(one for one in history.shown if one.at < ended),
    )


WRONG: dict[str, tuple[Callable[[History], History], Rule]] = {
    "a verdict that is lost": (passed_again, Rule.REJECTED),
    "a verdict of one round that is lost": (found_for_one_round, Rule.REJECTED),
    "a machine that is gone": (
        lambda history: replace(history, rows={"good": history.rows["good"]}),
        Rule.REJECTED,
    ),
    "a rejection that comes late": (shown_late, Rule.IN_TIME),
    "a rejection that nobody sees": (never_shown, Rule.IN_TIME),
    "a pass after a rejection": (with_shown(shown("bad", 40.0, "PASS", viewer="v2/1:1")), Rule.FOR_EVER),
    "pending after a rejection": (with_shown(shown("bad", 40.0, "PENDING", viewer="v2/1:1")), Rule.FOR_EVER),
    "a good machine that is judged bad": (
        lambda history: replace(history, judged=(*history.judged, Judged(8.9, 9.0, "v1/1", "good"))),
        Rule.NEVER_ACCUSED,
    ),
    "a machine that is judged bad before it is": (
        lambda history: replace(history, judged=(Judged(BAD_AT - 1.1, BAD_AT - 1, "v1/1", "bad"),)),
        Rule.NEVER_ACCUSED,
    ),
    "a good machine that is shown as failed": (with_shown(shown("good", 40.0, "FAIL")), Rule.NEVER_ACCUSED),
    "a good machine that is pending rejection": (
        with_shown(shown("good", 59.9, "PENDING", state=INVALID_QUOTE)),
        Rule.NEVER_ACCUSED,
    ),
    "a good machine that is revoked": (
        lambda history: replace(history, told=(*history.told, Told("webhook", "good"))),
        Rule.NEVER_ACCUSED,
    ),
    "a good machine that stands rejected": (
        lambda history: replace(history, rows={**history.rows, "good": Row(INVALID_QUOTE, 0)}),
        Rule.NEVER_ACCUSED,
    ),
    "a webhook that is not told": (
        lambda history: replace(history, told=(Told("good", "bad"),)),
        Rule.TOLD,
    ),
    "a machine that is not told": (
        lambda history: replace(history, told=(Told("webhook", "bad"),)),
        Rule.TOLD,
    ),
    "a rejection without a revocation": (
        lambda history: replace(history, rows={**history.rows, "bad": Row(INVALID_QUOTE, 0)}),
        Rule.TOLD,
    ),
    "a rejection with two revocations": (
        lambda history: replace(history, rows={**history.rows, "bad": Row(INVALID_QUOTE, 2)}),
        Rule.TOLD,
    ),
    "a pass of who is not the owner": (
        with_written(Written("good", "one", GET_QUOTE, 3, "keylime_verifier:host:8", "host:7")),
        Rule.ONE_OWNER,
    ),
    "a pass of nobody's shard": (
        with_written(Written("good", "one", GET_QUOTE, 3, "keylime_verifier:host:7", None)),
        Rule.ONE_OWNER,
    ),
    "a write after the rejection": (
        with_written(Written("bad", "one", GET_QUOTE, 2, "keylime_verifier:host:7", "host:7")),
        Rule.FINAL,
    ),
    "a count that goes back in the database": (
        with_written(Written("good", "one", GET_QUOTE, 1, "keylime_verifier:host:7", "host:7")),
        Rule.COUNTS_ON,
    ),
    "a count that goes back at one verifier": (
        with_shown(shown("good", 59.9, "PASS", count=5)),
        Rule.COUNTS_ON,
    ),
    "a state that goes back at one verifier": (
        with_shown(
            shown("bad", 20.6, "PENDING", state=INVALID_QUOTE, viewer="v2/1:1"),
            shown("bad", 20.8, "PENDING", viewer="v2/1:1"),
        ),
        Rule.NEVER_BACK,
    ),
    "a pass beside a verdict that waits": (
        with_shown(shown("bad", 20.6, "PASS", state=INVALID_QUOTE, viewer="v2/1:1")),
        Rule.PENDING,
    ),
    "a pass at the verifier that knows better": (
        with_shown(shown("bad", 21.4, "PASS", viewer="v1/1:2")),
        Rule.PENDING,
    ),
    "a state at the verifier that knows better": (
        with_shown(shown("bad", 21.4, "PENDING", viewer="v1/1:2")),
        Rule.PENDING,
    ),
    "a verdict that is shown before it can be written": (
        lambda history: replace(
            history,
            faults=(Fault("outage", 19.0, 30.0, blinds=True, keeps_verdicts=(19.0, 29.0)),),
        ),
        Rule.PENDING,
    ),
    "a pass that is old": (
        lambda history: replace(
            left_alone(history), shown=history.shown, faults=(Fault("outage", 30.0, 50.0, blinds=True),)
        ),
        Rule.RECENT,
    ),
    "a machine that nobody asks": (left_alone, Rule.WATCHED),
    "a machine that nobody asks any more": (abandoned_at_the_end, Rule.WATCHED),
    "a traceback": (with_run(Run("v2/1", 0.0, said=("Traceback (most recent call last):",))), Rule.SOUND),
    "a stop that fails": (with_run(Run("v2/1", 0.0, 5.0, 1, was_asked_to_end=True)), Rule.SOUND),
}


@pytest.mark.parametrize("what", WRONG)
def test_each_kind_of_fault_is_found(what: str) -> None:
    change, rule = WRONG[what]
    assert rule in rules(change(right()))


def test_what_only_a_killed_verifier_knew_may_be_lost() -> None:
    history = found_for_one_round(right())
    killed = replace(ALIVE, ended=BAD_AT + 1.3, status=-9)
    assert rules(replace(history, runs=(killed,))) == set()


def test_what_was_shown_as_failed_may_not_be_lost_even_if_its_verifier_is_killed() -> None:
    history = replace(
        right(),
        truths={**right().truths, "bad": Truth(BAD_AT, BAD_AT + 5, watched_since=1.0)},
        runs=(replace(ALIVE, ended=BAD_AT + 10, status=-9),),
    )
    assert rules(history) == set()
    assert Rule.REJECTED in rules(passed_again(history))


def test_passes_that_a_verifier_has_said_do_not_count_are_not_counted_any_more() -> None:
    history = with_shown(shown("good", 59.9, "PASS", count=5))(right())
    assert rules(history) == {Rule.COUNTS_ON}
    assert rules(replace(history, refused=(Refused(59.0, "v1/1", "good"),))) == set()
    assert rules(replace(history, refused=(Refused(59.0, "v2/1", "good"),))) == {Rule.COUNTS_ON}
    assert rules(replace(history, faults=(Fault("pause", 55.0, 58.0),))) == set()
    assert rules(replace(history, faults=(Fault("pause", 5.0, 8.0),))) == {Rule.COUNTS_ON}


def test_a_loss_opens_what_was_shown_since_the_last_copy_and_nothing_before() -> None:
    loss = Loss(BAD_AT - 5, 40.0, 41.0)
    history = replace(right(), losses=(loss,), faults=(Fault("promoted", 40.0, 41.0, blinds=True),))
    found_again = tuple(
        replace(one, status="PENDING", state=GET_QUOTE, run="v2/1", viewer="v2/1:1")
        if one.agent_id == "bad" and 41.0 < one.at < 44.0
        else one
        for one in history.shown
    )
    assert rules(replace(history, shown=found_again)) == set()
    earlier = replace(history, shown=found_again, losses=(replace(loss, forgets_since=39.0),))
    assert Rule.FOR_EVER in rules(earlier)


def test_a_verdict_whose_line_was_read_after_a_loss_may_have_been_lost_with_it() -> None:
    """Nobody knows from when in between two looks at the log it is."""

    def read_at(not_before: float) -> History:
        pending = shown("bad", 42.0, "PENDING", count=0)
        before = tuple(one for one in right().shown if one.agent_id == "good" or one.at < BAD_AT)
        return replace(
            right(),
            truths={**right().truths, "bad": Truth(BAD_AT, BAD_AT + 2, watched_since=1.0)},
            rows={**right().rows, "bad": Row(GET_QUOTE, 0)},
            losses=(Loss(BAD_AT - 5, 40.0, 41.0),),
            faults=(Fault("promoted", 40.0, 41.0, blinds=True),),
            judged=(Judged(not_before, 41.2, "v1/1", "bad"),),
            shown=(*before, pending),
        )

    assert rules(read_at(40.9)) == set()
    assert rules(read_at(41.1)) >= {Rule.REJECTED, Rule.PENDING}


def test_a_machine_that_stays_bad_must_be_found_again_after_a_loss() -> None:
    history = replace(
        without_failures(right()),
        losses=(Loss(BAD_AT - 5, 40.0, 41.0),),
        shown=tuple(one for one in right().shown if one.status != "FAIL" or one.at < 40.0),
    )
    assert must_be_rejected(history) == {"bad"}
    assert Rule.IN_TIME in rules(history)


def test_faults_cost_two_leases_and_the_time_for_which_nobody_can_write() -> None:
    assert deadline(10.0, [], BOUNDS, 5.0) == 15.0
    assert deadline(10.0, [Fault("pause", 11.0, 30.0)], BOUNDS, 5.0) == 19.0
    assert deadline(10.0, [Fault("outage", 5.0, 12.0, blinds=True)], BOUNDS, 5.0) == 21.0
    assert deadline(10.0, [Fault("outage", 11.0, 20.0, blinds=True)], BOUNDS, 5.0) == 28.0
    over, to_come = Fault("outage", 1.0, 9.0, blinds=True), Fault("outage", 16.0, 20.0, blinds=True)
    assert deadline(10.0, [over, to_come], BOUNDS, 5.0) == 15.0


def test_who_has_no_processor_has_no_time() -> None:
    assert deadline(10.0, [], BOUNDS, 5.0, [Starved(11.0, 12.0, 0.5)]) == 15.5
    assert deadline(10.0, [], BOUNDS, 5.0, [Starved(8.0, 10.5, 2.0)]) == 15.5  # what was before is over
    assert deadline(10.0, [], BOUNDS, 5.0, [Starved(8.0, 10.0, 2.0), Starved(15.0, 16.0, 1.0)]) == 15.0
    # What made it later lets in what comes later; a fault is a fault all the same.
    more = [Starved(14.0, 15.0, 1.0), Starved(15.0, 16.0, 0.25), Starved(16.5, 17.0, 0.5)]
    assert deadline(10.0, [], BOUNDS, 5.0, more) == 16.25
    assert deadline(10.0, [Fault("pause", 11.0, 30.0)], BOUNDS, 5.0, more) == 20.75
    late = shown_late(right())
    assert rules(late) == {Rule.IN_TIME}
    assert rules(replace(late, starved=(Starved(BAD_AT, BAD_AT + 2, 0.5),))) == {Rule.IN_TIME}
    assert rules(replace(late, starved=(Starved(BAD_AT, BAD_AT + 2, 2.0),))) == set()


def test_ages_are_not_judged_when_the_databases_clock_was_set() -> None:
    change, _ = WRONG["a pass that is old"]
    history = change(right())
    faults = (*history.faults, Fault("clock", 30.0, 31.0))
    assert rules(replace(history, faults=faults)) == set()
