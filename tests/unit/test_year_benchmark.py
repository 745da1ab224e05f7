"""The simulated year of benchmarks/year.py: its plan leaves nothing out, and its judge overlooks nothing."""

from dataclasses import replace

import pytest

from benchmarks.rig.year_checks import MAX_AGE_S, Judgement, Seen, Shown, Truth, judge
from benchmarks.rig.year_machines import Notice
from benchmarks.rig.year_plan import DAYS, Event, Kind, Step, plan_year
from keylime.messages.verifier import OperationalState

WELL = Shown(OperationalState.GET_QUOTE, "PASS", 1.0)
REJECTED = Shown(OperationalState.INVALID_QUOTE, "FAIL", 900.0, "ima.validation")
TRUTH = Truth(frozenset({"good", "bad", "quiet"}), frozenset({"bad"}), frozenset({"quiet"}))
SEEN = Seen({"good": WELL, "bad": REJECTED, "quiet": WELL}, frozenset(), ())
STEP = Step(1, 14, (Event(Kind.VERIFIER_TERM),))


def judged(seen: Seen, step: Step = STEP) -> Judgement:
    return judge(step, seen, TRUTH, frozenset())


@pytest.mark.parametrize("steps", [6, 27, 60])
def test_a_plan_has_everything_in_it(steps: int) -> None:
    plan = plan_year(steps, 50, 1)
    events = [event for step in plan for event in step.events]
    assert {event.kind for event in events} == set(Kind)
    assert plan == plan_year(steps, 50, 1) != plan_year(steps, 50, 2)
    days = [step.day for step in plan]
    assert days == sorted(set(days))
    assert days[-1] == DAYS
    assert any(335 < day < 365 for day in days)
    renewed = [number for event in events if event.kind is Kind.RENEW for number in event.machines]
    assert sorted(renewed) == list(range(50))


@pytest.mark.parametrize(("steps", "machines"), [(3, 50), (27, 2), (0, 0)])
def test_a_year_is_not_too_small(steps: int, machines: int) -> None:
    with pytest.raises(ValueError, match="at least 4 steps, and 3 machines"):
        plan_year(steps, machines, 1)


def test_a_year_that_goes_well_has_no_problems() -> None:
    assert judged(SEEN) == Judgement((), ())


@pytest.mark.parametrize(
    ("agent_id", "shown", "problem"),
    [
        ("good", None, "not watched"),
        ("good", REJECTED, "is well, and is shown as INVALID_QUOTE"),
        ("quiet", replace(WELL, state=OperationalState.FAILED, status="FAIL"), "is shown as FAILED"),
        ("good", replace(WELL, state=OperationalState.GET_QUOTE_RETRY), "GET_QUOTE_RETRY"),
        ("good", replace(WELL, age_s=MAX_AGE_S + 1), "61 s ago"),
        ("good", replace(WELL, age_s=-3600.0), "-3600 s ago"),
        ("bad", WELL, "was tampered with, and is shown as GET_QUOTE"),
        ("bad", None, "not watched"),
    ],
)
def test_a_wrong_state_is_a_problem(agent_id: str, shown: Shown | None, problem: str) -> None:
    states = {name: one for name, one in {**SEEN.shown, agent_id: shown}.items() if one is not None}
    (text,) = judged(replace(SEEN, shown=states)).problems
    assert problem in text


@pytest.mark.parametrize(
    ("notice", "reason"),
    [
        (Notice("revocation", "bad"), "it was tampered with"),
        (Notice("comm_error", "quiet"), "it was silent for two days"),
        (Notice("cleared", "quiet"), "it is back"),
        (Notice("revocation", "good"), None),
        (Notice("comm_error", "good"), None),
        (Notice("revocation", "quiet"), None),
        (Notice("cleared", "bad"), None),
        (Notice("a new kind", "good"), None),
    ],
)
def test_a_notice_without_a_reason_is_a_wrong_alarm(notice: Notice, reason: str | None) -> None:
    judgement = judged(replace(SEEN, notices=frozenset({notice})))
    if reason is None:
        assert judgement == Judgement((f"wrong alarm: {notice.kind} about {notice.agent_id}",), ())
    else:
        assert judgement == Judgement((), ((f"{notice.kind} about {notice.agent_id}", reason),))


@pytest.mark.parametrize(
    ("line", "kind", "is_expected"),
    [
        ("- keylime.ima - ERROR - not in the policy (agent bad)", Kind.REBOOT, True),
        ("- keylime.service.supervisor - ERROR - worker 0 ended (SIGKILL)", Kind.WORKER_KILL, True),
        ("- keylime.service.supervisor - ERROR - worker 0 ended (SIGKILL)", Kind.REBOOT, False),
        ("- keylime.verifier - CRITICAL - no more", Kind.WORKER_KILL, False),
        ("Traceback (most recent call last):", Kind.WORKER_KILL, False),
    ],
)
def test_an_error_in_a_log_has_a_reason_or_is_a_problem(line: str, kind: Kind, is_expected: bool) -> None:
    judgement = judged(
        replace(SEEN, log=("- keylime - INFO - all is well", line)), Step(1, 14, (Event(kind),))
    )
    assert (len(judgement.exceptions), len(judgement.problems)) == ((1, 0) if is_expected else (0, 1))
