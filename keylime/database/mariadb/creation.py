"""Tables on MariaDB, where definitions are not part of a transaction: made as a whole all the same.

Until all is there, and what is to be in the tables with it, the table of the revision says that they are
unfinished. Whoever finds that begins anew: nobody has ever used them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from keylime.database.engine import DatabaseUnavailable
from keylime.database.mariadb.sessions import SESSION_SETTINGS, MariaSession
from keylime.database.schema import UNFINISHED
from keylime.errors import ConfigError

_LONGEST_TURN_S = 600
# A table with a million rows takes its time.
_SETTINGS: dict[str, str | int] = {
    "max_statement_time": 0,
    "idle_transaction_timeout": 60,
    "innodb_lock_wait_timeout": 600,
    "lock_wait_timeout": 600,
}


@contextmanager
def turn(connection: sa.Connection, version_table: str) -> Iterator[None]:
    """In the block nobody else changes these tables, and statements may take long.

    What the block has done is committed at its end, before others may begin. Raises DatabaseUnavailable.
    """
    session = connection.connection.driver_connection
    if not isinstance(session, MariaSession):
        raise TypeError("not a session of MariaDB")
    name = {"name": f"{version_table} {connection.engine.url.database}"[:64], "longest": _LONGEST_TURN_S}
    session.set_limits(_SETTINGS)
    try:
        if connection.execute(sa.text("SELECT GET_LOCK(:name, :longest)"), name).scalar() != 1:
            raise DatabaseUnavailable(
                "database: cannot prepare the tables: another process is at it for long"
            )
        try:
            yield
            connection.execute(sa.text("COMMIT"))
        except BaseException:
            if session.open:
                session.rollback()
            raise
        finally:
            if session.open:
                connection.execute(sa.text("SELECT RELEASE_LOCK(:name)"), name).close()
    finally:
        if session.open:
            session.set_limits(SESSION_SETTINGS)


def make_tables(
    connection: sa.Connection, revisions: Config, version_table: str, tables: sa.MetaData
) -> None:
    """Makes the tables of the newest revision; they count from the commit of the transaction on.

    Raises ConfigError when there is a table of such a name already.
    """
    script = ScriptDirectory.from_config(revisions)
    present = set(sa.inspect(connection).get_table_names())
    version = sa.Table(
        version_table, sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True)
    )
    is_begun = version_table in present and connection.execute(sa.select(version)).first() is not None
    if is_begun:
        for table in reversed(tables.sorted_tables):
            table.drop(connection, checkfirst=True)
    else:
        taken = sorted(present & {table.name for table in tables.sorted_tables})
        if taken:
            raise ConfigError(
                f"database_url: the database has a table {taken[0]} of another program already: name another "
                "database"
            )
        version.create(connection, checkfirst=True)
        connection.execute(sa.insert(version).values(version_num=UNFINISHED))
    with Operations.context(MigrationContext.configure(connection)):
        for revision in reversed(list(script.walk_revisions())):
            revision.module.upgrade()
    connection.execute(sa.update(version).values(version_num=str(script.get_current_head())))
