"""Work of several callers in one transaction: what comes while one is under way is done by the next.

A caller alone is served at once. Under load a trip to a thread, a beginning and an end are shared by all who
have come meanwhile.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from keylime import patience
from keylime.database.engine import DatabaseUnavailable, OutcomeUnknown, PartlyDone, is_away

AskedT = TypeVar("AskedT")
ResultT = TypeVar("ResultT")

_AT_ONCE = 100
_SHARE_OF_PATIENCE = 0.9
_ALIKE = 3.0  # times the least patience: whoever has more shares no write with whoever has that


@dataclass(slots=True, eq=False)
class _Waiting(Generic[AskedT, ResultT]):
    asked: AskedT
    done: "asyncio.Future[ResultT]"
    until: float  # by the loop's clock
    has_begun: bool = False


class Together(Generic[AskedT, ResultT]):
    """What callers ask of a database, done by `work` for many of them in one transaction.

    `work` returns what came of each, in their order; an exception among these is for that caller alone. What
    else it raises undoes all, and then each is tried by itself, unless the database is away for all of them.
    """

    def __init__(
        self,
        action: str,
        work: Callable[[Sequence[AskedT]], Awaitable[Sequence[ResultT | Exception]]],
        *,
        writes: bool = False,
        apart_s: float = 0.0,
        at_once: int = _AT_ONCE,
        limit_s: float = patience.CALLERS_S,
    ) -> None:
        """`action` completes the sentence "cannot ..." of DatabaseUnavailable.

        No transaction begins sooner than `apart_s` after the one before, and each wait in one takes `limit_s`
        at most; in one that writes, a little less than the most impatient of its callers has left, so that
        all of them hear whether it was done. Whoever has hardly any left shares it with nobody who has more.
        """
        self._action = action
        self._work = work
        self._writes = writes
        self._apart_s = apart_s
        self._at_once = at_once
        self._limit_s = limit_s
        self._next_at = 0.0  # by the loop's clock
        self._waiting: list[_Waiting[AskedT, ResultT]] = []
        self._under_way: asyncio.Task[None] | None = None

    async def ask(self, asked: AskedT) -> ResultT:
        """What came of it, within the patience of the caller. Raises DatabaseUnavailable as `Database` does.

        A write of somebody who does not wait any longer is not begun; one that was begun may yet be done.
        """
        waits = patience.current()
        limit_s = waits.left_s
        loop = asyncio.get_running_loop()
        waiting: _Waiting[AskedT, ResultT] = _Waiting(asked, loop.create_future(), loop.time() + limit_s)
        self._waiting.append(waiting)
        if self._under_way is None:
            # In a context of its own: it works for others as well.
            self._under_way = contextvars.Context().run(asyncio.create_task, self._work_on())
        scope = asyncio.timeout(limit_s)
        try:
            with waits.waiting():
                async with scope:
                    result = await waiting.done
        except TimeoutError as error:
            if not scope.expired():
                raise
            reason = f"database: cannot {self._action}: no answer within {limit_s:.1f} s"
            if self._writes and waiting.has_begun:
                raise OutcomeUnknown(f"{reason}; whether it was done is not known") from error
            raise self._nothing_done(reason, waits) from error
        except DatabaseUnavailable as error:
            if type(error) is DatabaseUnavailable:
                raise self._nothing_done(str(error), waits) from error.__cause__
            raise
        if self._writes:
            waits.has_changed = True
        return result

    @staticmethod
    def _nothing_done(reason: str, waits: patience.Patience) -> DatabaseUnavailable:
        return PartlyDone(reason) if waits.has_changed else DatabaseUnavailable(reason)

    async def _work_on(self) -> None:
        try:
            while self._waiting:
                await self._turn()
                if some := self._next():
                    await self._do(some)
        finally:
            self._under_way = None

    def _limit_of(self, some: Sequence[_Waiting[AskedT, ResultT]]) -> float:
        if not self._writes:
            return self._limit_s
        left_s = min(one.until for one in some) - asyncio.get_running_loop().time()
        return min(self._limit_s, max(_SHARE_OF_PATIENCE * left_s, 0.0))

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        if (left_s := self._next_at - loop.time()) > 0:
            await asyncio.sleep(left_s)
        self._next_at = loop.time() + self._apart_s

    def _next(self) -> Sequence[_Waiting[AskedT, ResultT]]:
        here = [one for one in self._waiting if not one.done.done()]
        some = self._alike(here)[: self._at_once]
        for one in some:
            one.has_begun = True
        self._waiting = [one for one in here if not one.has_begun]
        return some

    def _alike(self, here: Sequence[_Waiting[AskedT, ResultT]]) -> Sequence[_Waiting[AskedT, ResultT]]:
        """Those that may share a transaction with the most impatient one."""
        if not self._writes or not here:
            return here
        now = asyncio.get_running_loop().time()
        until = now + _ALIKE * max(min(one.until for one in here) - now, 0.0)
        return [one for one in here if one.until <= until]

    async def _do(self, some: Sequence[_Waiting[AskedT, ResultT]]) -> None:
        try:
            error = await self._try(some)
            if error is not None and len(some) > 1 and not is_away(error):
                await self._do_each(some)
            else:
                _fail(some, error)
        except BaseException:  # the end of everything
            for one in some:
                one.done.cancel()
            raise

    async def _do_each(self, some: Sequence[_Waiting[AskedT, ResultT]]) -> None:
        for place, one in enumerate(some):
            if one.done.done():  # it waits no longer
                continue
            error = await self._try([one])
            if is_away(error):  # each of the others would wait for it as long
                _fail(some[place:], error)
                return
            _fail([one], error)

    async def _try(self, some: Sequence[_Waiting[AskedT, ResultT]]) -> Exception | None:
        """What has undone it; None when each knows what came of it."""
        try:
            with patience.for_long_work(self._limit_of(some)):
                results = await self._work([one.asked for one in some])
        except Exception as error:  # noqa: BLE001 - whoever asked says so
            return error
        for one, result in zip(some, results, strict=True):
            _settle(one, result)
        return None


def _fail(some: Sequence[_Waiting[AskedT, ResultT]], error: Exception | None) -> None:
    if error is None:
        return
    for one in some:
        _settle(one, _same(error) if isinstance(error, DatabaseUnavailable) else error)


def _same(error: DatabaseUnavailable) -> DatabaseUnavailable:
    """For each who hears of it its own."""
    copy = type(error)(str(error))
    copy.__cause__ = error.__cause__
    return copy


def _settle(one: _Waiting[AskedT, ResultT], result: ResultT | Exception) -> None:
    if one.done.done():
        return
    if isinstance(result, Exception):
        one.done.set_exception(result)
    else:
        one.done.set_result(result)
