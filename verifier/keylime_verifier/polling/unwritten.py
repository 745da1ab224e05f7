"""What has been judged and is not in the database yet, and since when."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_VERDICT_BOUND_S = 5.0
_PASSES_BOUND_S = 5.0  # they are written once a second
_UNKNOWN = "see to the database"


class Unwritten:
    """Verdicts and passes that wait; its two checks, see `health`, fail when the oldest waits too long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._verdicts: dict[object, float] = {}
        self._passes_since: float | None = None
        self._remedy = _UNKNOWN

    @contextmanager
    def verdict(self) -> Iterator[None]:
        """A verdict waits until the block ends."""
        key = object()
        self._verdicts[key] = self._clock()
        try:
            yield
        finally:
            del self._verdicts[key]

    def passes_wait(self) -> None:
        """There are passes to be written, from now on at the latest."""
        if self._passes_since is None:
            self._passes_since = self._clock()

    def because(self, remedy: str) -> None:
        """What is known of the reason: the words of `remedy_of`."""
        self._remedy = remedy

    def passes_written(self, *, others_wait: bool) -> None:
        """All that waited before are; `others_wait` for the next batch."""
        self._passes_since = self._clock() if others_wait else None
        self._remedy = _UNKNOWN

    async def verdicts_problem(self) -> str | None:
        """The check of verdicts."""
        if not self._verdicts:
            return None
        age_s = self._clock() - min(self._verdicts.values())
        if age_s < _VERDICT_BOUND_S:
            return None
        return (
            f"verdicts cannot be written for more than {_bound(age_s)} ({self._remedy}); "
            "they are kept in memory and written as soon as the database takes them"
        )

    async def passes_problem(self) -> str | None:
        """The check of passes."""
        age_s = 0.0 if self._passes_since is None else self._clock() - self._passes_since
        if age_s < _PASSES_BOUND_S:
            return None
        return (
            f"passes cannot be written for more than {_bound(age_s)} ({self._remedy}); "
            "until then agents that pass become overdue"
        )


def _bound(age_s: float) -> str:
    """An age that does not change with each look."""
    return next((text for limit_s, text in _BOUNDS if age_s >= limit_s), "5 seconds")


_BOUNDS = ((3600.0, "an hour"), (600.0, "10 minutes"), (60.0, "a minute"))
