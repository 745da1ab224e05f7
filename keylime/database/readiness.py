"""The readiness check of a database: whether it can be written right now, and if not, what helps."""

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL

from keylime import patience
from keylime.database.engine import DatabaseUnavailable
from keylime.database.locks import LockHolder, Sightings, holders_of, how_to_end
from keylime.database.mariadb.failures import number_of
from keylime.database.schema import Schema
from keylime.database.transactions import Database
from keylime.service.health import Check, Health

log = logging.getLogger(__name__)

_ACTION, _LOOK = "be written", "be looked at"
_LIMIT_S = 2.0  # less than whoever asks waits
_LEAST_ROOM = 1 << 20  # bytes
_LASTING_S = 3.0  # transactions of ours take milliseconds

_HELD = "another session or process keeps it from being written: end it, the log says more"
_FULL = "the disk is full: make room where the database is"
_READ_ONLY = (
    "read-only: name the primary in database_url (with several servers add target_session_attrs=read-write), "
    "or make the file writable"
)
_CROWDED = "the server takes no more connections: raise its max_connections, or lower database_pool_sz_ovfl"
_FORBIDDEN = "refuses this user: mend name and password in database_url, or the rights in the database"
_AWAY = "not available: see to the server, the log has its words"
_BY_STATE = {
    "55P03": _HELD,
    "57014": _HELD,
    "53100": _FULL,
    "25006": _READ_ONLY,
    "53300": _CROWDED,
    "42501": _FORBIDDEN,
    "28000": _FORBIDDEN,
    "28P01": _FORBIDDEN,
}
_BY_MARIADB_NUMBER = {
    1205: _HELD,
    1213: _HELD,
    1969: _HELD,
    3: _FULL,
    1021: _FULL,
    1114: _FULL,
    1290: "read-only: name a server that can be written in database_url, or set its read_only to OFF",
    1040: _CROWDED,
    1203: _CROWDED,
    1226: _CROWDED,
    1044: _FORBIDDEN,
    1045: _FORBIDDEN,
    1142: _FORBIDDEN,
    1227: _FORBIDDEN,
    1698: _FORBIDDEN,
}
_BY_SQLITE_CODE = {
    5: _HELD,
    6: _HELD,
    8: _READ_ONLY,
    13: _FULL,
    14: "the file cannot be opened, see the log",
}


def add_database_checks(health: Health, database: Database, schema: Schema) -> None:
    """Being ready means that the tables can be written, and that there is room for those in a file."""
    health.add("database", database_check(database, schema, sorted(schema.tables.tables)))
    if database.url.get_backend_name() == "sqlite":
        health.add("disk", space_check(database.url))


def database_check(database: Database, schema: Schema, tables: Sequence[str] = ()) -> Check:
    """A check that writes: a locked, full or read-only database still answers those who only read.

    On a server a transaction of somebody else that keeps locks on one of the `tables` is a problem as well.
    """
    column = sa.column("version_num", sa.String)
    statement = sa.update(sa.table(schema.version_table, column)).values(version_num=column)
    reasons = _Reasons()
    lasting = _LastingLocks(tables)

    async def check() -> str | None:
        try:
            with patience.at_most(_LIMIT_S):
                await database.write(_ACTION, lambda connection: connection.execute(statement).close())
                found = await lasting.look(database)
        except DatabaseUnavailable as error:
            reasons.tell(str(error))
            return remedy_of(error)
        reasons.tell(None)
        return found

    return check


def space_check(url: URL) -> Check:
    """A check that there is room where a SQLite file is. Writes within what it has already do not notice."""
    directory = Path(url.database or "").parent

    async def check() -> str | None:
        status = await asyncio.to_thread(os.statvfs, directory)
        blocks = status.f_bavail if os.geteuid() else status.f_bfree
        return None if blocks * status.f_frsize >= _LEAST_ROOM else f"{_FULL}: {directory}"

    return check


def remedy_of(error: DatabaseUnavailable) -> str:
    """What is wrong and what helps, in words fit for anyone."""
    cause: BaseException | None = error.__cause__
    driver = getattr(cause, "orig", None) or cause
    state = getattr(driver, "sqlstate", None)
    code = getattr(driver, "sqlite_errorcode", None)
    if state in _BY_STATE:
        return _BY_STATE[state]
    number = number_of(driver)
    if number in _BY_MARIADB_NUMBER:
        return _BY_MARIADB_NUMBER[number]
    if code is not None:
        return _BY_SQLITE_CODE.get(code & 0xFF, _AWAY)
    return "no answer: see to the server, its processes and the way there" if _is_silence(cause) else _AWAY


def locks_problem(holders: Sequence[LockHolder]) -> str | None:
    """What is wrong when these have kept locks for long."""
    if not holders:
        return None
    tables = ", ".join(sorted({holder.table for holder in holders} - {""})) or "tables"
    return f"a transaction that does not end keeps {tables} from being written: end it, the log names it"


def _is_silence(cause: BaseException | None) -> bool:
    return isinstance(cause, TimeoutError)


class _Reasons:
    """Says each reason once."""

    def __init__(self) -> None:
        self._last: str | None = None

    def tell(self, reason: str | None) -> None:
        if reason is not None and reason != self._last:
            log.warning("not ready: %s", reason)
        self._last = reason


class _LastingLocks:
    def __init__(self, tables: Sequence[str]) -> None:
        self._tables = tables
        self._seen = Sightings({})
        self._reasons = _Reasons()

    async def look(self, database: Database) -> str | None:
        if not self._tables or database.url.get_backend_name() == "sqlite":
            return None  # SQLite names nobody
        holders = await database.read(_LOOK, lambda connection: holders_of(connection, self._tables))
        now = time.monotonic()
        self._seen = self._seen.after(holders, now)
        lasting = self._seen.lasting(now, _LASTING_S)
        names = ", ".join(str(holder) for holder in lasting)
        self._reasons.tell(f"database: locked by {names}; {how_to_end(database.url)}" if names else None)
        return locks_problem(lasting)
