"""The readiness check of a database: whether it can be written right now."""

import logging

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from keylime.database.engine import DatabaseUnavailable, database_errors
from keylime.database.migrate import Schema
from keylime.database.transactions import Database
from keylime.health import Check

log = logging.getLogger(__name__)

_ACTION = "be written"


def database_check(database: AsyncEngine | Database, schema: Schema) -> Check:
    """A check that writes: a locked, full or read-only database still answers those who only read."""
    column = sa.column("version_num", sa.String)
    statement = sa.update(sa.table(schema.version_table, column)).values(version_num=column)

    async def check() -> str | None:
        try:
            await _execute(database, statement)
        except DatabaseUnavailable as error:
            log.warning("not ready: %s", error)
            return "not available"
        return None

    return check


async def _execute(database: AsyncEngine | Database, statement: sa.Update) -> None:
    if not isinstance(database, AsyncEngine):
        await database.write(_ACTION, lambda connection: connection.execute(statement).close())
        return
    with database_errors(_ACTION):
        async with database.begin() as connection:
            await connection.execute(statement)
