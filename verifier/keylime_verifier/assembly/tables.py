"""What must be in the database before the verifier starts: its tables, and what an earlier Keylime left."""

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import URL

from keylime.database.migrate import Migration
from keylime.database.transactions import Database, open_database
from keylime.takeover.command import ImportRequest
from keylime.takeover.importer import Importer
from keylime.takeover.report import TakeoverReport
from keylime_verifier.config import SQLITE_NAME, VerifierConfig
from keylime_verifier.database.schema import SCHEMA

if TYPE_CHECKING:  # what takes over is loaded where an earlier Keylime has left something
    from keylime_verifier.takeover.plan import Plan


async def prepare_database(config: VerifierConfig, *, migrate: bool | None = None) -> Migration:
    """Brings the tables up to date, by default if the configuration says so.

    Raises ConfigError or DatabaseUnavailable.
    """
    return await _importer(config).prepare(
        config.database,
        lambda: _open_database(config),
        migrate=config.auto_migrate if migrate is None else migrate,
    )


async def import_database(config: VerifierConfig, request: ImportRequest) -> TakeoverReport:
    """Takes over what an earlier Keylime left. Raises ConfigError or DatabaseUnavailable."""
    source = request.source(config.database, config.work_dir, SQLITE_NAME)
    return await _importer(config).run(
        source, config.database, lambda: _open_database(config), dry=request.is_dry
    )


def _open_database(config: VerifierConfig) -> Database:
    return open_database(config.database_url, config.database_pool)


def _importer(config: VerifierConfig) -> "Importer[Plan]":
    def read(url: URL) -> "Plan | None":
        from keylime_verifier.takeover.source import read_from, rules_of  # as above

        return read_from(url, rules=rules_of(config))

    return Importer(schema=SCHEMA, read=read, rehearse=_rehearse, look=_look, take=_take)


def _rehearse(plan: "Plan") -> TakeoverReport:
    from keylime_verifier.takeover.store import rehearse  # as above

    return rehearse(plan)


def _look(connection: sa.Connection, plan: "Plan") -> TakeoverReport:
    from keylime_verifier.takeover.store import look  # as above

    return look(connection, plan)


def _take(connection: sa.Connection, plan: "Plan") -> TakeoverReport:
    from keylime_verifier.takeover.store import take  # as above

    return take(connection, plan)
