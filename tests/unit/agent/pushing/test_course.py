"""Each outcome at each place of the course, and that no row of them makes an agent turn without a pause."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime_agent.pushing.course import (
    Course,
    Forbidden,
    LoggedIn,
    NotAdded,
    Outcome,
    PutOff,
    Taken,
    TokenOver,
    VerifierRefused,
    VerifierUnreachable,
    advance,
)
from keylime_agent.pushing.pace import Pacing

PACING = Pacing(interval_s=60, initial_s=10, max_s=300)
NEW = Course(verifiers=1)
IN = replace(NEW, token="t")  # noqa: S106
UNTRIED = replace(IN, is_untried=True)
TWO = replace(IN, verifiers=2)


@pytest.mark.parametrize(
    ("before", "outcome", "after", "pause_s"),
    [
        (NEW, LoggedIn("t"), UNTRIED, 0),
        (UNTRIED, Taken(2), replace(IN, usual_s=2), 2),
        (replace(IN, failures=3), Taken(None), replace(IN, usual_s=60), 60),
        (IN, TokenOver(), NEW, 0),
        (UNTRIED, TokenOver(), replace(NEW, failures=1), 5),
        (IN, Forbidden(""), NEW, 60),
        (NEW, NotAdded(""), NEW, 60),
        (IN, PutOff(7, ""), IN, 7),
        (IN, VerifierUnreachable(""), replace(IN, failures=1), 5),
        (replace(IN, usual_s=2, failures=1), VerifierUnreachable(""), replace(IN, usual_s=2, failures=2), 2),
        (TWO, VerifierUnreachable(""), replace(TWO, current=1, silent=1), 0),
        (replace(TWO, current=1, silent=1), VerifierUnreachable(""), replace(TWO, failures=1), 5),
        (replace(TWO, current=1, silent=1), Taken(2), replace(TWO, current=1, usual_s=2), 2),
        (IN, VerifierRefused(""), replace(IN, failures=1), 60),
        (replace(IN, failures=9), VerifierRefused(""), replace(IN, failures=10), 150),
    ],
)
def test_what_comes_after(before: Course, outcome: Outcome, after: Course, pause_s: float) -> None:
    course, found_s = advance(before, outcome, PACING, 0.0)
    assert course == after
    assert found_s == pytest.approx(pause_s)


OUTCOMES = st.sampled_from(
    [
        LoggedIn("t"),
        Taken(0),
        TokenOver(),
        Forbidden(""),
        NotAdded(""),
        PutOff(0, ""),
        VerifierUnreachable(""),
        VerifierRefused(""),
    ]
)


@given(
    st.integers(min_value=1, max_value=4),
    st.lists(OUTCOMES, max_size=60),
    st.floats(min_value=0, max_value=1, allow_nan=False),
)
def test_no_row_of_answers_makes_an_agent_flood_a_verifier(
    verifiers: int, outcomes: list[Outcome], spread: float
) -> None:
    course, without_pause = Course(verifiers), 0
    for outcome in outcomes:
        if course.begins_with_proof == isinstance(outcome, Taken):
            continue  # evidence is taken after a proof only
        if isinstance(outcome, LoggedIn | NotAdded) and not course.begins_with_proof:
            continue
        if isinstance(outcome, TokenOver) and course.begins_with_proof:
            continue
        course, pause_s = advance(course, outcome, PACING, spread)
        assert 0 <= course.current < verifiers
        assert pause_s == 0 or 1 <= pause_s <= 3600 * 1.1
        without_pause = 0 if pause_s else without_pause + 1
        assert without_pause <= 3 * verifiers + 2


def test_a_token_is_in_no_log() -> None:
    assert "secret" not in repr((replace(NEW, token="secret"), LoggedIn("secret")))  # noqa: S106
