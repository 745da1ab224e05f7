"""Transactions that end: within the patience of whoever asks, and with a word about what was done.

A server that does not answer is given up by us, because nobody else may notice: its processes may be stopped,
a pooler may keep the line to us open, a table may be locked.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from keylime import patience
from keylime.database.engine import (
    DatabaseUnavailable,
    OutcomeUnknown,
    PartlyDone,
    database_errors,
    reading,
)
from keylime.database.mariadb.failures import number_of, says_nothing_was_committed

if TYPE_CHECKING:  # loaded with the driver that needs it
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


@dataclass(slots=True)
class CommitState:
    """How far a transaction has come."""

    is_committing: bool = False


class Attempt:
    """A write in a thread, which may go on after nobody waits for it any more, but then commits nothing."""

    def __init__(self, progress: CommitState) -> None:
        self._progress = progress
        self._is_given_up = False
        self._lock = threading.Lock()

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._is_given_up = True

    def commit(self, action: str) -> None:
        """Called just before. Raises DatabaseUnavailable when it must not be."""
        with self._lock:
            if self._is_given_up:
                raise DatabaseUnavailable(f"database: cannot {action}: given up")
            self._progress.is_committing = True

    def may_begin_again(self) -> bool:
        """After the database undid all; False when nobody waits any more."""
        with self._lock:
            if not self._is_given_up:
                self._progress.is_committing = False
            return not self._is_given_up


@asynccontextmanager
async def limited(action: str) -> AsyncIterator[CommitState]:
    """The block ends in time. Raises DatabaseUnavailable, naming the `action`, as the kind that is true."""
    waits = patience.current()
    progress = CommitState()
    limit_s = waits.left_s
    scope = asyncio.timeout(limit_s)
    try:
        with waits.waiting(), database_errors(action):
            try:
                async with scope:
                    yield progress
            except TimeoutError as error:
                if not scope.expired():
                    raise
                raise DatabaseUnavailable(
                    f"database: cannot {action}: no answer within {limit_s:.1f} s"
                ) from error
    except DatabaseUnavailable as error:
        if progress.is_committing and not _was_refused(error.__cause__):
            raise OutcomeUnknown(f"{error}; whether it was done is not known") from error.__cause__
        if waits.has_changed and type(error) is DatabaseUnavailable:
            raise PartlyDone(str(error)) from error.__cause__
        raise
    if progress.is_committing:
        waits.has_changed = True


@asynccontextmanager
async def snapshot(engine: "AsyncEngine", action: str) -> "AsyncIterator[AsyncConnection]":
    """A transaction to read in. Raises DatabaseUnavailable."""
    async with limited(action), reading(engine) as connection:
        yield connection


@asynccontextmanager
async def transaction(engine: "AsyncEngine", action: str) -> "AsyncIterator[AsyncConnection]":
    """A transaction to write in: committed at the end of the block, undone by an exception.

    Raises DatabaseUnavailable when nothing was done, and OutcomeUnknown when that is not known.
    """
    async with (
        limited(action) as progress,
        engine.connect() as connection,
        connection.begin(),
    ):
        yield connection
        progress.is_committing = True


def _was_refused(cause: BaseException | None) -> bool:
    """Whether the database answered a commit, with an error: then it was not done."""
    if not isinstance(cause, DBAPIError) or cause.connection_invalidated:
        return False
    if hasattr(cause.orig, "sqlite_errorcode"):
        return True
    if number_of(cause.orig) is not None:
        return says_nothing_was_committed(cause.orig)
    state = getattr(cause.orig, "sqlstate", None) or "57"
    # 57: the server is being shut down, or the session ended, which may be while a standby is waited for.
    return str(state)[:2] not in ("57", "08")
