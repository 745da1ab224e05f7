"""Who holds locks on tables of a database on a server, and for how long: as seen on one's own clock."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from keylime.database.mariadb.failures import DENIED, number_of

# Locks that whoever only reads takes, and those of VACUUM and ANALYZE, are in nobody's way.
_HOLDERS = sa.text(
    "SELECT l.virtualtransaction AS transaction, l.pid, c.relname AS table_name, "
    "coalesce(a.application_name, '') AS program, coalesce(a.state, '') AS state "
    "FROM pg_locks l JOIN pg_class c ON c.oid = l.relation LEFT JOIN pg_stat_activity a ON a.pid = l.pid "
    "WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid() "
    "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND l.mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock') "
    "AND c.relname = ANY(CAST(:tables AS text[])) ORDER BY l.pid, c.relname"
)
_LONG_S = 2  # transactions of ours take milliseconds
# It does not tell which rows of which table: whoever is in this database is meant.
_ON_MARIADB = sa.text(
    "SELECT t.trx_id AS transaction, p.id AS pid, p.user AS program, lower(p.command) AS state, "
    "p.time AS since_s "
    "FROM information_schema.innodb_trx t JOIN information_schema.processlist p "
    "ON p.id = t.trx_mysql_thread_id WHERE p.id <> connection_id() AND t.trx_tables_locked > 0 "
    "AND p.db = database() ORDER BY p.id"
)


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A transaction, and a table in which it has locks, "" where that is not told.

    A prepared transaction has no session.
    """

    transaction: str
    table: str
    pid: int | None
    program: str
    state: str

    def __str__(self) -> str:
        if self.pid is None:
            return f"a prepared transaction (table {self.table}; see pg_prepared_xacts)"
        table = f"table {self.table}" if self.table else ""
        known = ", ".join(text for text in (self.program, self.state, table) if text)
        return f"session {self.pid} ({known})"


def holders_of(connection: sa.Connection, tables: Sequence[str]) -> list[LockHolder]:
    """Those that have locks now which may be in the way of writers; nobody on SQLite.

    On MariaDB nobody as well for a user without the right PROCESS; a table that is locked as a whole makes
    this wait.
    """
    if connection.dialect.name == "mariadb":
        return _holders_on_mariadb(connection, tables)
    if connection.dialect.name != "postgresql":
        return []
    rows = connection.execute(_HOLDERS, {"tables": list(tables)})
    return [LockHolder(row.transaction, row.table_name, row.pid, row.program, row.state) for row in rows]


def how_to_end(url: URL) -> str:
    """How an operator ends a session on that server."""
    return (
        "KILL NUMBER ends a session"
        if url.get_backend_name() == "mariadb"
        else "SELECT pg_terminate_backend(NUMBER) ends a session"
    )


def _holders_on_mariadb(connection: sa.Connection, tables: Sequence[str]) -> list[LockHolder]:
    try:
        rows = connection.execute(_ON_MARIADB).all()
    except OperationalError as error:
        if number_of(error.orig) != DENIED:
            raise
        rows = []
    for name in tables if not any(row.since_s >= _LONG_S for row in rows) else ():
        # Changes nothing and locks no row, but waits for whoever has locked the table, and then is an error.
        quoted = connection.dialect.identifier_preparer.quote(name)
        probe = f"SET STATEMENT lock_wait_timeout = 1 FOR DELETE FROM {quoted} WHERE FALSE"  # noqa: S608 - names of ours
        connection.execute(sa.text(probe))
    return [LockHolder(str(row.transaction), "", row.pid, row.program, row.state) for row in rows]


@dataclass(frozen=True, slots=True)
class Sightings:
    """Since when each transaction has been seen; every look makes the next one."""

    since: Mapping[LockHolder, float]

    def after(self, seen: Iterable[LockHolder], now: float) -> "Sightings":
        """With those that are there now; what a session does meanwhile does not matter."""
        known = {(holder.transaction, holder.table): at for holder, at in self.since.items()}
        return Sightings({holder: known.get((holder.transaction, holder.table), now) for holder in seen})

    def lasting(self, now: float, limit_s: float) -> list[LockHolder]:
        """Those that have been there for `limit_s`."""
        return [holder for holder, since in self.since.items() if now - since >= limit_s]
