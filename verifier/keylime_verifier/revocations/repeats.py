"""What the broker is not to repeat any more: warnings of agents that are gone, enrolled anew or well again.

Whoever subscribes gets the messages of the last minutes first. A machine that has just joined must not act
on a warning of one that is trusted again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from keylime.database.engine import DatabaseUnavailable
from keylime.messages.revocation import SignedRevocation
from keylime.revocation.broker_process import BrokerProcess

log = logging.getLogger("keylime.revocation_notifier")

_LOOK_AGAIN_S = 30.0  # what was published is noted some time after it
_REST_S = 2.0  # between two looks: when a fleet falls or is repaired, there is news all the time

FindOver = Callable[[], Awaitable[Sequence[SignedRevocation]]]
"""Messages of the last minutes that are over. Raises DatabaseUnavailable."""


class Repeats:
    """Withdraws from a broker what is over: when something may have changed, and before a broker starts."""

    def __init__(self, find_over: FindOver, *, rest_s: float = _REST_S) -> None:
        self.broker: BrokerProcess | None = None
        """Whose messages these are; None where this process runs no broker."""
        self._find_over = find_over
        self._rest_s = rest_s
        self._news = asyncio.Event()

    def look(self) -> None:
        """Something was published, or others may have changed something."""
        self._news.set()

    async def check(self) -> None:
        """Looks now. Raises DatabaseUnavailable."""
        if self.broker is not None and self.broker.has_recent:
            await self.broker.withdraw(await self._find_over())

    async def run(self) -> None:
        """Looks again and again, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._news.wait()
            self._news.clear()
            try:
                await self.check()
            except DatabaseUnavailable as error:
                log.debug("%s; what is repeated is looked at later", error)
                self._news.set()
            await asyncio.sleep(self._rest_s)
