"""What must be in the database before the verifier starts: its tables, and what an earlier Keylime left."""

import functools

from keylime.database.migrate import Migration
from keylime.database.transactions import Database, open_database
from keylime.takeover.command import ImportRequest
from keylime.takeover.importer import Importer
from keylime.takeover.report import TakeoverReport
from keylime_verifier.config import SQLITE_NAME, VerifierConfig
from keylime_verifier.database.schema import SCHEMA
from keylime_verifier.takeover import store
from keylime_verifier.takeover.plan import Plan
from keylime_verifier.takeover.source import read_from, rules_of


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


def _importer(config: VerifierConfig) -> Importer[Plan]:
    return Importer(
        schema=SCHEMA,
        read=functools.partial(read_from, rules=rules_of(config)),
        rehearse=store.rehearse,
        look=store.look,
        take=store.take,
    )
