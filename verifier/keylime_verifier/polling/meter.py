"""What is counted of the work, for whoever measures it. Nobody does unless metrics are served."""

from keylime_verifier.agents.lifecycle import Outcome


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

    def moved(self, taken: int, lost: int) -> None:
        """So many shards were taken, and gone over to others or given up."""
