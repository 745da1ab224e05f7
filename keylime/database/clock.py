"""Clocks to rely on: the database's, which all its users share, and one that nobody sets."""

import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

_LONGEST_ANSWER_S = 1.0


class database_time(FunctionElement[float]):
    """Seconds since the epoch at the moment of the statement, to the millisecond or better."""

    type = sa.Double()
    inherit_cache = True


@compiles(database_time, "postgresql")
def _on_postgresql(_element: database_time, _compiler: Any, **_options: Any) -> str:
    return "EXTRACT(EPOCH FROM clock_timestamp())::float8"


@compiles(database_time, "mariadb")
def _on_mariadb(_element: database_time, _compiler: Any, **_options: Any) -> str:
    return "CAST(UNIX_TIMESTAMP(SYSDATE(6)) AS DOUBLE)"


@compiles(database_time, "sqlite")
def _on_sqlite(_element: database_time, _compiler: Any, **_options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


def uptime() -> float:
    """Seconds since this machine was started, with the time that it slept. Nobody can set it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class DatabaseClock:
    """The database's time between two looks at it: what it said last, and how long ago that was."""

    def __init__(self, elapsed: Callable[[], float] = uptime) -> None:
        self._elapsed = elapsed
        self._ahead_s: float | None = None

    def observe(self, database_s: float, asked_at: float, answered_at: float) -> None:
        """Takes note of what the database said in answer to a question; both moments are those of `elapsed`.

        An answer that took long may have been on its way for as long: it only counts when there is none yet.
        """
        if self._ahead_s is None or answered_at - asked_at <= _LONGEST_ANSWER_S:
            self._ahead_s = database_s - answered_at

    def now(self) -> float:
        """Seconds since the epoch; by this machine's clock as long as nothing was observed."""
        return time.time() if self._ahead_s is None else self._elapsed() + self._ahead_s
