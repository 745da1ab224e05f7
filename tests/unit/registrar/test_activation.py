"""What an activation tag does to the registrations of an agent."""

import pytest

from keylime_registrar.activation import (
    AlreadyActive,
    Outcome,
    PendingProof,
    Proven,
    UnknownAgent,
    WrongTag,
    decide,
)

HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"


def outcome(
    offered: bytes, pending: list[PendingProof], active_tag: bytes | None = None, source: str = HERE
) -> Outcome:
    return decide(offered, source=source, pending=pending, active_tag=active_tag, max_wrong_tags=3)


def test_the_right_tag_proves_its_own_registration_among_several() -> None:
    pending = [PendingProof(1, b"first", HERE, 0), PendingProof(2, b"second", ELSEWHERE, 0)]
    assert outcome(b"second", pending) == Proven(2)


def test_the_right_tag_counts_from_any_address() -> None:
    assert outcome(b"tag", [PendingProof(1, b"tag", HERE, 2)], source=ELSEWHERE) == Proven(1)


def test_a_tag_for_nothing_is_an_unknown_agent() -> None:
    assert outcome(b"tag", []) == UnknownAgent()


def test_a_repeated_activation_is_harmless() -> None:
    assert outcome(b"tag", [], active_tag=b"tag") == AlreadyActive()


def test_an_earlier_tag_does_not_prove_a_later_registration() -> None:
    pending = [PendingProof(2, b"new", HERE, 0)]
    assert outcome(b"old", pending, active_tag=b"old") == WrongTag(counted=(2,), discarded=())


@pytest.mark.parametrize("active_tag", [None, b"active"])
def test_wrong_tags_count_until_the_registration_is_discarded(active_tag: bytes | None) -> None:
    assert outcome(b"x", [PendingProof(1, b"t", HERE, 1)], active_tag) == WrongTag((1,), ())
    assert outcome(b"x", [PendingProof(1, b"t", HERE, 2)], active_tag) == WrongTag((), (1,))


def test_a_strangers_wrong_tags_do_not_count_against_the_agent() -> None:
    assert outcome(b"x", [PendingProof(1, b"t", HERE, 2)], source=ELSEWHERE) == WrongTag((), ())


def test_a_wrong_tag_for_an_active_agent_touches_nothing() -> None:
    assert outcome(b"x", [], active_tag=b"t") == WrongTag((), ())
