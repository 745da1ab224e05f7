"""What an activation tag does: which registration it proves, or how a wrong one counts. Pure."""

import hmac
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Own:
    """The newest registration that waits and came from where the tag comes from; wrong tags came before."""

    pending_id: int
    wrong_tags: int


@dataclass(frozen=True, slots=True)
class KnownAgent:
    """What is known of an agent when a tag comes that is none of those waited for."""

    own: Own | None
    is_pending: bool  # whether any registration waits, from wherever
    active_tag: bytes | None  # hash of the one that activated the record


@dataclass(frozen=True, slots=True)
class Proven:
    """The tag of this pending registration."""

    pending_id: int


@dataclass(frozen=True, slots=True)
class AlreadyActive:
    """The tag with which the active registration was activated, sent again by who has nothing new pending."""


@dataclass(frozen=True, slots=True)
class WrongTag:
    """Nobody's tag; `counted` has one wrong tag more."""

    counted: int | None = None


@dataclass(frozen=True, slots=True)
class TooManyWrongTags:
    """One wrong tag too many from there. The right one is still welcome."""


@dataclass(frozen=True, slots=True)
class UnknownAgent:
    """There is nothing under this id."""


NotProven: TypeAlias = AlreadyActive | WrongTag | TooManyWrongTags | UnknownAgent
Outcome: TypeAlias = Proven | NotProven


def decide(offered: bytes, standing: KnownAgent, *, max_wrong_tags: int) -> NotProven:
    """What follows from the tag with hash `offered`, which no registration waits for.

    What strangers do elsewhere makes no difference to an agent: a wrong tag counts for its own source, and
    ends no registration, neither a pending nor the active one. That guessing leads nowhere is the secret's
    doing; it is limited so that it is no work either.
    """
    if not standing.is_pending and standing.active_tag is None:
        return UnknownAgent()
    # With something pending from there, an earlier tag is a replay.
    if (
        standing.own is None
        and standing.active_tag is not None
        and hmac.compare_digest(standing.active_tag, offered)
    ):
        return AlreadyActive()
    if standing.own is None:
        return WrongTag()
    if standing.own.wrong_tags >= max_wrong_tags:
        return TooManyWrongTags()
    return WrongTag(standing.own.pending_id)
