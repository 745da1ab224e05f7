"""Brings a component's tables up to date at its start, or refuses in one line before anything is altered.

The revisions are Alembic's, in the component's `migrations` folder; its `env.py` calls `run_in_environment`.
Alembic is loaded when there is something to migrate: most starts find that there is not.
"""

import logging
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from keylime import patience
from keylime.database.file import FOREIGN_TABLES, OTHER_IMPLEMENTATION
from keylime.database.schema import UNFINISHED, Schema
from keylime.database.transactions import Database
from keylime.errors import ConfigError

if TYPE_CHECKING:
    from alembic.config import Config

_ACTION = "prepare the tables"
# A table with a million rows takes its time, and so does another process that has begun before.
_LONGEST_S = 3600.0
_SETTINGS = {
    "statement_timeout": 0,
    "transaction_timeout": 0,
    "lock_timeout": 600_000,
    "idle_in_transaction_session_timeout": 60_000,
}
TakeOver = Callable[[sa.Connection], None]
"""What is to be done once, in the transaction that makes the tables."""

_CHATTER = ("alembic.runtime.migration", "alembic.runtime.plugins")


@dataclass(frozen=True, slots=True)
class Migration:
    """Revisions before and after; `before` is None for a database without tables. `place` is its URL."""

    place: str
    before: str | None
    after: str

    @property
    def has_changed(self) -> bool:
        """Whether there was anything to do."""
        return self.before != self.after

    def __str__(self) -> str:
        if not self.has_changed:
            return f"database {self.place} is up to date (schema {self.after})"
        return f"database {self.place} migrated from schema {self.before or 'none'} to {self.after}"


async def prepare_schema(
    database: Database, schema: Schema, *, migrate: bool, take_over: TakeOver | None = None
) -> Migration:
    """Brings the tables to the newest revision, or without `migrate` only checks that they are there.

    Tables that are new take over what an earlier Keylime left, if `take_over` knows how: all or nothing, also
    where definitions of tables are not part of a transaction. Processes that start at once take turns. Raises
    ConfigError for a database that another implementation or a newer release made, or that needs a migration;
    DatabaseUnavailable when it cannot be used at all.
    """
    take_over = take_over if migrate else None
    found = await _look(database, schema, migrate, take_over)
    if found is not None:
        return found
    with patience.for_long_work(_LONGEST_S):
        return await database.write(
            _ACTION, lambda connection: _prepare(connection, schema, migrate, take_over)
        )


async def _look(
    database: Database, schema: Schema, migrate: bool, take_over: TakeOver | None
) -> Migration | None:
    """That nothing is to be done, as in most cases; a server that is silent is given up soon. Else None."""
    return await database.read(_ACTION, lambda connection: _examine(connection, schema, migrate, take_over))


def run_in_environment() -> None:
    """What a component's `migrations/env.py` consists of."""
    from alembic import context

    attributes = context.config.attributes
    context.configure(
        connection=attributes["connection"],
        version_table=attributes["version_table"],
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _prepare(
    connection: sa.Connection, schema: Schema, migrate: bool, take_over: TakeOver | None
) -> Migration:
    if connection.dialect.name == "mariadb":
        from keylime.database.mariadb.creation import turn

        with turn(connection, schema.version_table):
            return _bring_up_to_date(connection, schema, migrate, take_over)
    _take_turns(connection, schema)
    return _bring_up_to_date(connection, schema, migrate, take_over)


def _bring_up_to_date(
    connection: sa.Connection, schema: Schema, migrate: bool, take_over: TakeOver | None
) -> Migration:
    found = _examine(connection, schema, migrate, take_over)
    if found is not None:
        return found
    current = _current_revision(connection, schema, sa.inspect(connection).get_table_names())
    if current is None and connection.dialect.name == "mariadb":
        from keylime.database.mariadb.creation import make_tables

        make_tables(connection, _revisions(schema), schema.version_table, schema.tables)
    else:
        _upgrade(connection, schema)
    if current is None and take_over is not None:
        take_over(connection)
    return Migration(_place(connection), current, schema.newest)


def _examine(
    connection: sa.Connection, schema: Schema, migrate: bool, take_over: TakeOver | None
) -> Migration | None:
    """That nothing is to be done; None when something is, and may be. Raises ConfigError."""
    tables = sa.inspect(connection).get_table_names()
    current = _current_revision(connection, schema, tables)
    place, head = _place(connection), schema.newest
    problem = find_problem(tables, current, schema.revisions, head)
    if problem is not None and not (problem == OTHER_IMPLEMENTATION and take_over is not None):
        raise ConfigError(f"database {place} {problem}")
    if current == head:
        return Migration(place, current, head)
    if not migrate:
        raise ConfigError(
            f"database {place} needs a migration from schema {current or 'none'} to {head}: "
            f"make a backup, then run `{schema.program} --migrate`"
        )
    return None


def _revisions(schema: Schema) -> "Config":
    """Alembic's settings for a component, its chatter silenced."""
    for logger in map(logging.getLogger, _CHATTER):
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)  # one line of ours says all that an operator needs
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(schema.migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _upgrade(connection: sa.Connection, schema: Schema) -> None:
    config = _revisions(schema)
    from alembic import command

    config.attributes.update(connection=connection, version_table=schema.version_table)
    command.upgrade(config, schema.newest)


def _place(connection: sa.Connection) -> str:
    url = connection.engine.url
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)


def find_problem(
    tables: Collection[str], current: str | None, known: Collection[str], head: str | None
) -> str | None:
    """Why a database must not be touched, as the rest of a sentence about it; None when it may be."""
    if current is None and not FOREIGN_TABLES.isdisjoint(tables):
        return OTHER_IMPLEMENTATION
    if current is not None and current not in known:
        return f"has schema {current}, which is newer than this release knows ({head}): upgrade the program"
    return None


def _take_turns(connection: sa.Connection, schema: Schema) -> None:
    # SQLite: the transaction holds the write lock already.
    if connection.dialect.name == "postgresql":
        for name, value in _SETTINGS.items():
            if name != "transaction_timeout" or (connection.dialect.server_version_info or ()) >= (17,):
                connection.execute(sa.text(f"SET LOCAL {name} = {value}"))
        key = zlib.crc32(schema.version_table.encode())
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def _current_revision(connection: sa.Connection, schema: Schema, tables: Collection[str]) -> str | None:
    if schema.version_table not in tables:
        return None
    table = sa.table(schema.version_table, sa.column("version_num", sa.String))
    revision: str | None = connection.execute(sa.select(table.c.version_num)).scalar_one_or_none()
    return None if revision == UNFINISHED else revision
