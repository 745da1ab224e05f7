"""What an activation tag does: which registration it proves, or how a wrong one counts. Pure."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class PendingProof:
    """A registration that waits for its tag; `source` is the address it was sent from."""

    pending_id: int
    tag_hash: bytes
    source: str
    wrong_tags: int


@dataclass(frozen=True, slots=True)
class Proven:
    """The tag of this pending registration."""

    pending_id: int


@dataclass(frozen=True, slots=True)
class AlreadyActive:
    """The tag with which the active registration was activated, sent again, and nothing else is pending."""


@dataclass(frozen=True, slots=True)
class WrongTag:
    """Nobody's tag. `counted` have one wrong tag more, `discarded` have had too many."""

    counted: tuple[int, ...]
    discarded: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class UnknownAgent:
    """There is nothing under this id."""


Outcome: TypeAlias = Proven | AlreadyActive | WrongTag | UnknownAgent


def decide(
    offered: bytes,
    *,
    source: str,
    pending: Sequence[PendingProof],
    active_tag: bytes | None,
    max_wrong_tags: int,
) -> Outcome:
    """What follows from the tag with hash `offered`, sent from `source`.

    A wrong tag counts against the registrations that came from the same address, so that a stranger who sends
    wrong tags cannot spoil the proof of an agent elsewhere. The active registration never suffers.
    """
    proven = [proof.pending_id for proof in pending if hmac.compare_digest(proof.tag_hash, offered)]
    if proven:
        return Proven(proven[0])
    if not pending and active_tag is None:
        return UnknownAgent()
    # With something pending, an earlier tag is a replay.
    if not pending and active_tag is not None and hmac.compare_digest(active_tag, offered):
        return AlreadyActive()
    own = [proof for proof in pending if proof.source == source]
    return WrongTag(
        counted=tuple(proof.pending_id for proof in own if proof.wrong_tags + 1 < max_wrong_tags),
        discarded=tuple(proof.pending_id for proof in own if proof.wrong_tags + 1 >= max_wrong_tags),
    )
