"""When a database is not the continuation of what it was."""

import pytest

from keylime_verifier.sharing.lineage import Lineage, Renewals


@pytest.mark.parametrize(
    ("now", "then", "expected"),
    [
        (Lineage(1, "00000001"), Lineage(1, "00000001"), True),
        (Lineage(1, "00000002"), Lineage(1, "00000001"), False),
        (Lineage(2, "00000001"), Lineage(1, "00000001"), False),
        (Lineage(), Lineage(), True),
        (Lineage(1, "00000001"), Lineage(), True),
        (Lineage(1, None), Lineage(1, "00000001"), True),
    ],
)
def test_another_timeline_or_cluster_is_another_history(now: Lineage, then: Lineage, expected: bool) -> None:
    assert now.continues(then) is expected


def test_the_counter_is_found_as_it_was_left() -> None:
    first = Renewals().following
    assert first.explains(None)
    second = first.succeeded.following
    assert second.explains(1)
    assert not second.explains(None), "the row is gone"
    assert not second.explains(0), "an older one"
    assert not second.explains(7), "one that was never tried"


def test_a_renewal_whose_commit_was_not_confirmed_may_have_succeeded_or_not() -> None:
    third = Renewals().following.succeeded.following.following
    assert third.explains(1)
    assert third.explains(2)
    assert not third.explains(0)


def test_a_loss_shows_although_attempts_without_an_answer_followed_it() -> None:
    renewals = (
        Renewals().following.succeeded.following.succeeded
    )  # 2 is confirmed, and lost with a standby's 1
    assert not renewals.following.explains(1)
