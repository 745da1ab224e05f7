"""Brings a component's tables up to date at its start, or refuses in one line before anything is altered.

The revisions are Alembic's, in the component's `migrations` folder; its `env.py` calls `run_in_environment`.
"""

import logging
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic import command, context
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncEngine

from keylime.database.engine import database_errors
from keylime.database.transactions import Database
from keylime.errors import ConfigError

_chatter = logging.getLogger("alembic.runtime.migration")

# Tables by which a database of another implementation is known; its records are not ours to alter.
_FOREIGN_TABLES = frozenset(
    {"alembic_version_cloud_verifier", "alembic_version_registrar", "verifiermain", "registrarmain"}
)


@dataclass(frozen=True, slots=True)
class Schema:
    """A component's tables: the folder of its revisions, and the table that remembers the current one.

    `program --migrate` is what an operator runs to bring them up to date.
    """

    migrations: Path
    version_table: str
    program: str


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


async def prepare_schema(database: AsyncEngine | Database, schema: Schema, *, migrate: bool) -> Migration:
    """Brings the tables to the newest revision, or without `migrate` only checks that they are there.

    Processes that start at once take turns. Raises ConfigError for a database that another implementation or
    a newer release made, or that needs a migration; DatabaseUnavailable when it cannot be used at all.
    """
    action = "prepare the tables"
    if not isinstance(database, AsyncEngine):
        return await database.write(action, lambda connection: _prepare(connection, schema, migrate))
    with database_errors(action):
        async with database.begin() as connection:
            return await connection.run_sync(_prepare, schema, migrate)


def run_in_environment() -> None:
    """What a component's `migrations/env.py` consists of."""
    attributes = context.config.attributes
    context.configure(
        connection=attributes["connection"],
        version_table=attributes["version_table"],
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _prepare(connection: sa.Connection, schema: Schema, migrate: bool) -> Migration:
    _take_turns(connection, schema)
    config = Config()
    config.set_main_option("script_location", str(schema.migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes.update(connection=connection, version_table=schema.version_table)
    script = ScriptDirectory.from_config(config)
    tables = sa.inspect(connection).get_table_names()
    current = _current_revision(connection, schema, tables)
    url = connection.engine.url
    place = url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)
    head = str(script.get_current_head())
    problem = find_problem(tables, current, {revision.revision for revision in script.walk_revisions()}, head)
    if problem is not None:
        raise ConfigError(f"database {place} {problem}")
    if current != head:
        if not migrate:
            raise ConfigError(
                f"database {place} needs a migration from schema {current or 'none'} to {head}: "
                f"make a backup, then run `{schema.program} --migrate`"
            )
        if _chatter.level == logging.NOTSET:
            _chatter.setLevel(logging.WARNING)  # one line of ours says all that an operator needs
        command.upgrade(config, "head")
    return Migration(place, current, head)


def find_problem(
    tables: Collection[str], current: str | None, known: Collection[str], head: str | None
) -> str | None:
    """Why a database must not be touched, as the rest of a sentence about it; None when it may be."""
    if current is None and not _FOREIGN_TABLES.isdisjoint(tables):
        return (
            "was made by another implementation and is left as it is: name another one in database_url, "
            "or move it away and register the agents again"
        )
    if current is not None and current not in known:
        return f"has schema {current}, which is newer than this release knows ({head}): upgrade the program"
    return None


def _take_turns(connection: sa.Connection, schema: Schema) -> None:
    # SQLite: the transaction holds the write lock already.
    if connection.dialect.name == "postgresql":
        key = zlib.crc32(schema.version_table.encode())
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def _current_revision(connection: sa.Connection, schema: Schema, tables: Collection[str]) -> str | None:
    if schema.version_table not in tables:
        return None
    table = sa.table(schema.version_table, sa.column("version_num", sa.String))
    revision: str | None = connection.execute(sa.select(table.c.version_num)).scalar_one_or_none()
    return revision
