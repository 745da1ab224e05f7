"""This process's own clock of its lease: a database that falls silent does not say that a lease has ended."""

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger("keylime.verifier")


class Lease:
    """Pauses the work when the lease has ended, and resumes it when it is held again.

    Only where somebody else may do the work meanwhile: that nobody asks the agents would be worse than that
    nobody writes down what they say. What two verifiers ask at once is safe in any case (`fencing`).
    """

    def __init__(self, length_s: float, *, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._length_s = length_s
        self._pause = pause
        self._resume = resume
        self._end_timer: asyncio.TimerHandle | None = None
        self._has_ended = False

    def renewed(self, since: float, *, is_contested: bool) -> None:
        """It was granted to a request that was sent at `since`, seconds on the event loop's clock.

        `is_contested` when others may take over at its end.
        """
        self.close()
        loop = asyncio.get_running_loop()
        if is_contested:
            ends_at = since + self._length_s  # the database began to count later: never after its own end
            if ends_at <= loop.time():
                self._end()
                return
            self._end_timer = loop.call_at(ends_at, self._end)
        if self._has_ended:
            self._has_ended = False
            log.info("the lease is held again; agents are asked again")
            self._resume()

    def close(self) -> None:
        """Nothing happens any more at its end."""
        if self._end_timer is not None:
            self._end_timer.cancel()
            self._end_timer = None

    def _end(self) -> None:
        self._end_timer = None
        if not self._has_ended:
            self._has_ended = True
            log.error("the lease has ended; agents are not asked until it is renewed, others take them over")
            self._pause()
