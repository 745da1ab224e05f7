"""What is counted of the work, for whoever measures it. Nobody does unless metrics are served."""

from typing import Literal, TypeAlias

from keylime_verifier.agents.lifecycle import Outcome

SessionResult: TypeAlias = Literal["begun", "limited", "proven", "failed"]
"""`limited` are those that too many were begun beside; `failed` are proofs."""


class Meter:
    """Counts nothing; times are in seconds."""

    def began(self, late_s: float) -> None:
        """A round began so long after it was due."""

    def asked(self, took_s: float) -> None:
        """An agent answered with a quote."""

    def appraised(self, took_s: float) -> None:
        """Evidence was judged, in so much time without pauses."""

    def concluded(self, outcome: Outcome) -> None:
        """Something came of a round."""

    def pushed(self, outcome: Outcome) -> None:
        """Something came of evidence that an agent brought by itself, or of its silence."""

    def session(self, result: SessionResult) -> None:
        """A session of such an agent, or of whoever says that he is one, was begun, or came to something."""

    def moved(self, taken: int, lost: int) -> None:
        """So many shards were taken, and gone over to others or given up."""
