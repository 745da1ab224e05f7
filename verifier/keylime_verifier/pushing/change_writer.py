"""Writes what becomes of agents that attest by themselves: all that waits when a transaction begins at once.

A verdict that the database does not take is tried again for as long as the process lives; silence is not, for
whoever could not be heard meanwhile is not silent.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from keylime.database.engine import DatabaseUnavailable, is_away
from keylime.database.transactions import Database
from keylime.database.write_turn import Urgency
from keylime_verifier.polling.fencing import Ruling
from keylime_verifier.pushing.insistence import FIRST_RETRY_S, LONGEST_RETRY_S
from keylime_verifier.pushing.verdict_writes import Change, write_changes

log = logging.getLogger("keylime.verifier")

_AT_ONCE = 200
_ENOUGH = 100  # is not waited with


@dataclass(slots=True, eq=False)
class _Waiting:
    change: Change
    ruled: "asyncio.Future[Ruling]"
    since: float  # by the loop's clock


class ChangeWriter:
    """Changes of one urgency, each kept until the database has taken it, or shown that it does not count."""

    def __init__(self, database: Database, urgency: Urgency, *, apart_s: float = 0.0) -> None:
        """Transactions begin `apart_s` apart at least, unless enough waits."""
        self._database = database
        self._urgency = urgency
        self._apart_s = apart_s
        self._waiting: list[_Waiting] = []
        self._some_wait = asyncio.Event()
        self._is_hurried = asyncio.Event()
        self._written_at = -apart_s  # by the loop's clock

    async def written(self, changes: Sequence[Change]) -> list[Ruling | BaseException]:
        """Whether each counts, and is written then, or why it could not be: the database refuses it.

        Of silence that may also be that the database is away.
        """
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(change, loop.create_future(), loop.time()) for change in changes]
        self._waiting.extend(waiting)
        self._some_wait.set()
        if len(self._waiting) >= _ENOUGH:
            self._is_hurried.set()
        return await asyncio.gather(*(one.ruled for one in waiting), return_exceptions=True)

    @property
    def waits_s(self) -> float:
        """For how long the first of what waits has done so; 0 if nothing does."""
        since = next((one.since for one in self._waiting if not one.ruled.done()), None)
        return 0.0 if since is None else asyncio.get_running_loop().time() - since

    def hurry(self) -> None:
        """What waits is written now."""
        if self._waiting:
            self._is_hurried.set()

    async def run(self) -> None:
        """Writes what waits, for ever."""
        delay_s = FIRST_RETRY_S
        while True:
            await self._some_wait.wait()
            await self._gather()
            try:
                await self._write_some()
                delay_s = FIRST_RETRY_S
            except DatabaseUnavailable as error:
                self._give_up_silence(error)
                log.error(
                    "%s; %d verdicts about agents that attest by themselves wait", error, len(self._waiting)
                )
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, LONGEST_RETRY_S)
            finally:
                self._waiting = [one for one in self._waiting if not one.ruled.done()]
                if not self._waiting:
                    self._some_wait.clear()

    async def _gather(self) -> None:
        """Waits until it is time for a transaction, or for nothing else."""
        loop = asyncio.get_running_loop()
        left_s = self._written_at + self._apart_s - loop.time()
        if left_s > 0 and len(self._waiting) < _ENOUGH:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._is_hurried.wait()
        self._is_hurried.clear()
        self._written_at = loop.time()

    async def _write_some(self) -> None:
        """One transaction. Raises DatabaseUnavailable if the database is away."""
        some: list[_Waiting] = []

        def take() -> list[Change]:
            # When the transaction begins: what has come until then does not wait for the next one.
            some[:] = [one for one in self._waiting if not one.ruled.done()][:_AT_ONCE]
            return [one.change for one in some]

        try:
            await self._write(take, some)
        except Exception as error:
            if is_away(error) or not some:  # nothing was at fault that waits
                raise
            log.exception("verdicts could not be written together, each is written by itself")
            for one in list(some):
                await self._write_alone(one)

    async def _write_alone(self, one: _Waiting) -> None:
        try:
            await self._write(lambda: [one.change], [one])
        except Exception as error:
            if is_away(error):
                raise
            if not one.ruled.done():
                one.ruled.set_exception(error)

    async def _write(self, take: Callable[[], Sequence[Change]], some: Sequence[_Waiting]) -> None:
        work = partial(_write_taken, take=take)
        rulings = await self._database.write("record attestations", work, self._urgency)
        for one, ruling in zip(some, rulings, strict=True):
            if not one.ruled.done():
                one.ruled.set_result(ruling)

    def _give_up_silence(self, error: DatabaseUnavailable) -> None:
        for one in self._waiting:
            if one.change.conclusion is None and not one.ruled.done():
                one.ruled.set_exception(error)


def _write_taken(connection: sa.Connection, take: Callable[[], Sequence[Change]]) -> list[Ruling]:
    return write_changes(connection, take())
