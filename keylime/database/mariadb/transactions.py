"""Whole transactions on MariaDB: in threads, given up by hanging up, done again after a deadlock."""

import asyncio
import contextvars
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL

from keylime.database.engine import DatabaseUnavailable, PoolSize, database_errors, open_mariadb
from keylime.database.limits import Attempt, limited
from keylime.database.mariadb.failures import is_worth_repeating
from keylime.database.mariadb.sessions import Use
from keylime.database.write_turn import Urgency

ResultT = TypeVar("ResultT")
P = ParamSpec("P")
_TRIES = 4  # of transactions that get in each other's way
_LONGEST_PAUSE_S = 0.05


class MariaDatabase:
    """See `keylime.database.transactions.Database`."""

    def __init__(self, url: URL, size: PoolSize, program: str) -> None:
        self.url = url
        self._engine = open_mariadb(url, size, program)
        self._is_closed = False
        # As many as there can be connections: who has a thread never waits for one.
        self._threads = ThreadPoolExecutor(size.kept + size.overflow, thread_name_prefix="database")

    async def write(
        self, action: str, work: Callable[[sa.Connection], ResultT], urgency: Urgency = Urgency.USUAL
    ) -> ResultT:
        async with limited(action) as progress:
            attempt = Attempt(progress)
            try:
                return await self._in_thread(action, self._write, action, work, attempt)
            finally:
                attempt.give_up()

    async def read(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        async with limited(action):
            return await self._in_thread(action, self._read, action, work)

    async def close(self) -> None:
        self._is_closed = True
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._engine.dispose)

    async def _in_thread(
        self, action: str, work: Callable[P, ResultT], *args: P.args, **kwargs: P.kwargs
    ) -> ResultT:
        """The work's result; when nobody waits for it any more the line to the server is hung up."""
        if self._is_closed:
            raise DatabaseUnavailable(f"database: cannot {action}: it is closed")
        use = Use()

        def run() -> ResultT:
            with use.going_on():
                return work(*args, **kwargs)

        context = contextvars.copy_context()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, run)
        finally:
            use.give_up()

    def _write(self, action: str, work: Callable[[sa.Connection], ResultT], attempt: Attempt) -> ResultT:
        tries = _TRIES
        while True:
            tries -= 1
            try:
                with database_errors(action), self._engine.begin() as connection:
                    result = work(connection)
                    attempt.commit(action)
                    return result
            except DatabaseUnavailable as error:
                cause = getattr(error.__cause__, "orig", None)
                if not tries or not is_worth_repeating(cause) or not attempt.may_begin_again():
                    raise
            time.sleep(random.uniform(0, _LONGEST_PAUSE_S))  # noqa: S311 - so that two do not meet again

    def _read(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        with database_errors(action), self._engine.connect() as connection:
            return work(connection)
