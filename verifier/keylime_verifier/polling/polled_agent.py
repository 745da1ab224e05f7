"""One agent under way: what is known of it between its rounds, and how far its round has come."""

import asyncio
from dataclasses import dataclass, field
from enum import Enum

from keylime.appraisal.reference import Reference
from keylime_verifier.agent_client import AgentClient
from keylime_verifier.agents.lifecycle import Polling
from keylime_verifier.agents.records import AgentRecord, HeldVersions


class RoundPhase(Enum):
    """Where an agent is in its round. DROPPED is for good: nothing that is under way counts any more."""

    WAITING = "waiting"
    ASKING = "asking"
    CONCLUDING = "concluding"  # the outcome is there and is being written down: no transaction is cut off
    DROPPED = "dropped"


@dataclass(slots=True)
class HeldReference:
    """What an agent is judged by, once it was built; `forgets` counts how often that was outdated.

    Nothing but `expected` versions is kept of what is just being built: others were read too early.
    """

    reference: Reference | None = None
    versions: HeldVersions | None = None
    forgets: int = 0
    expected: HeldVersions | None = None

    def expect(self, versions: HeldVersions) -> None:
        """These are stored: others, whether built already or not, are not kept any longer."""
        if self.reference is None:
            self.expected = versions
        elif self.versions != versions:
            self.forget()

    def forget(self) -> None:
        """The next round builds it anew; what a round under way builds is not kept."""
        self.reference = None
        self.forgets += 1

    def is_over(self, now: float) -> bool:
        """Whether one of the policies that it was built of has ended."""
        return self.versions is not None and self.versions.until is not None and now >= self.versions.until

    def keep(self, reference: Reference, versions: HeldVersions, forgets: int) -> None:
        """Keeps what was built from what was stored when `forgets` was the count, unless that is outdated."""
        is_outdated = forgets != self.forgets or self.expected not in (None, versions)
        self.expected = None
        if not is_outdated:
            self.reference, self.versions = reference, versions


@dataclass(slots=True, eq=False)
class PolledAgent:
    """The record, the state machine's view of it, and the round that is under way, if any."""

    record: AgentRecord
    polling: Polling
    phase: RoundPhase = RoundPhase.WAITING
    held: HeldReference = field(default_factory=HeldReference)
    held_to: HeldVersions | None = None  # the policies that the last answer was judged by
    client: AgentClient | None = None  # made at the first round: a bad record must fail there and not earlier
    credentials: int = 0  # which of our certificates the client shows, by the poller's count
    turn: asyncio.Task[None] | None = None
    long_answers: int = 0  # so far; those of agents that had fewer go first

    @property
    def is_dropped(self) -> bool:
        """Whether nothing that is under way counts any more."""
        return self.phase is RoundPhase.DROPPED

    def begin(self, turn: asyncio.Task[None]) -> None:
        """A round begins."""
        self.turn, self.phase = turn, RoundPhase.ASKING

    def conclude(self) -> None:
        """The outcome is there."""
        if not self.is_dropped:
            self.phase = RoundPhase.CONCLUDING

    def end(self, turn: asyncio.Task[None]) -> bool:
        """A round is over; False when the next one has begun already."""
        if self.turn is not turn:
            return False
        self.turn = None
        if not self.is_dropped:
            self.phase = RoundPhase.WAITING
        return True

    def drop(self) -> None:
        """A round that still asks is given up; one that concludes ends, and counts for nothing."""
        if self.turn is not None and self.phase is RoundPhase.ASKING:
            self.turn.cancel()
        self.phase = RoundPhase.DROPPED
        self.held.reference = None  # what is left of it waits until it would have been due
