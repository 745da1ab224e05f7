"""Whether a verifier would have seen whoever came: what it was blind for is no agent's silence. Pure."""

_CLOCK_STEP_S = 2.0


class Watch:
    """Looks of one verifier, one after the other.

    Deadlines are of the database's clock. When that is set, all agents are overdue at once, or none is; after
    an outage of the database, or a pause of this process, they have had no chance yet.
    """

    def __init__(self, longest_pause_s: float) -> None:
        """`longest_pause_s` is how long an agent may be silent."""
        self._longest_pause_s = longest_pause_s
        self._since_s = 0.0
        self._last: tuple[float, float] | None = None

    def sees(self, elapsed_s: float, database_s: float) -> bool:
        """Whether by this look it has been watching for as long as an agent may be silent.

        `elapsed_s` is of a clock that nobody sets.
        """
        last, self._last = self._last, (elapsed_s, database_s)
        if last is None or self._is_interruption(elapsed_s - last[0], database_s - last[1]):
            self._since_s = elapsed_s
        return elapsed_s - self._since_s >= self._longest_pause_s

    def _is_interruption(self, elapsed_s: float, database_s: float) -> bool:
        is_too_long = elapsed_s > self._longest_pause_s
        return is_too_long or abs(database_s - elapsed_s) > _CLOCK_STEP_S

    def is_interrupted(self) -> None:
        """Nobody could have come for a while: it begins anew with the next look."""
        self._last = None
