"""What an activation tag does to the registrations of an agent."""

import pytest

from keylime_registrar.activation import (
    AlreadyActive,
    KnownAgent,
    NotProven,
    Own,
    TooManyWrongTags,
    UnknownAgent,
    WrongTag,
    decide,
)

NOTHING = KnownAgent(own=None, is_pending=False, active_tag=None)
ELSEWHERE = KnownAgent(own=None, is_pending=True, active_tag=None)


def pending(wrong_tags: int, active_tag: bytes | None = None) -> KnownAgent:
    return KnownAgent(own=Own(7, wrong_tags), is_pending=True, active_tag=active_tag)


def outcome(standing: KnownAgent, offered: bytes = b"x") -> NotProven:
    return decide(offered, standing, max_wrong_tags=3)


def test_a_tag_for_nothing_is_an_unknown_agent() -> None:
    assert outcome(NOTHING) == UnknownAgent()


def test_a_repeated_activation_is_harmless() -> None:
    assert outcome(KnownAgent(None, False, b"tag"), b"tag") == AlreadyActive()


def test_a_repeated_activation_stays_harmless_when_a_stranger_registers_elsewhere() -> None:
    assert outcome(KnownAgent(None, True, b"tag"), b"tag") == AlreadyActive()


def test_r10_an_earlier_tag_does_not_prove_a_later_registration() -> None:
    assert outcome(pending(0, b"old"), b"old") == WrongTag(7)


@pytest.mark.parametrize("active_tag", [None, b"active"])
def test_r8_wrong_tags_count_until_they_are_too_many(active_tag: bytes | None) -> None:
    assert outcome(pending(0, active_tag)) == WrongTag(7)
    assert outcome(pending(2, active_tag)) == WrongTag(7)
    assert outcome(pending(3, active_tag)) == TooManyWrongTags()


def test_r8_a_strangers_wrong_tags_do_not_count_against_the_agent() -> None:
    assert outcome(ELSEWHERE) == WrongTag(None)


def test_r15_a_wrong_tag_for_an_active_agent_touches_nothing() -> None:
    assert outcome(KnownAgent(None, False, b"t")) == WrongTag(None)
