"""Statements of a test to a database that a program uses as well."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from keylime.database.engine import parse_database_url
from keylime.database.transactions import Database, open_database

Statement = str | sa.Executable


def opened(url: str) -> Database:
    """The database behind a URL as an operator writes it."""
    return open_database(parse_database_url(url, work_dir=Path("/nowhere"), sqlite_name=""))


async def execute(
    database: Database,
    *statements: Statement,
    parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Executes statements in one transaction, each with the `parameters`."""

    def work(connection: sa.Connection) -> None:
        for statement in statements:
            connection.execute(_executable(statement), parameters)

    await database.write("do what the test says", work)


async def rows_of(database: Database, query: Statement) -> Sequence[sa.Row[Any]]:
    """All rows of a query."""
    return await database.read(
        "answer the test", lambda connection: connection.execute(_executable(query)).all()
    )


def _executable(statement: Statement) -> sa.Executable:
    return sa.text(statement) if isinstance(statement, str) else statement
