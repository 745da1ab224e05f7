"""The database of an earlier Keylime, read without a trace: not one byte of it is changed.

A SQLite file is opened as one that nothing may change, without locks and without files beside it; what a
program that ended badly has left beside it is read from a copy. A server is asked in a read-only transaction.
"""

import contextlib
import shutil
import sqlite3
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from keylime.database.engine import parse_database_url
from keylime.database.file import FOREIGN_TABLES
from keylime.database.mariadb.urls import SCHEMES
from keylime.errors import ConfigError
from keylime.takeover.releases import release_of
from keylime.takeover.values import Row

_BESIDE = ("-wal", "-journal")  # what a SQLite file must not be read without
_ROWS_AT_ONCE = 500
_CONNECT_S = 10


class OldDatabase:
    """The old tables, in one snapshot. Every method raises ConfigError when they cannot be read."""

    def __init__(self, connection: sa.Connection, place: str) -> None:
        self._connection = connection
        self.place = place
        self.tables = frozenset(sa.inspect(connection).get_table_names())

    def release(self, version_table: str) -> str:
        """What made the tables. Raises ConfigError when nobody knows, because no revision is noted."""
        revisions = [row.get("version_num") for row in self.rows(version_table)]
        known = sorted(str(revision) for revision in revisions if revision)
        if not known:
            raise ConfigError(
                f"database {self.place} was made by another implementation and holds no schema revision "
                f"(table {version_table}), so that nobody knows how to read it: start the release that made "
                "it once, which brings it up to date, or name another database in database_url"
            )
        return release_of(known[-1])

    def rows(self, table: str) -> Iterator[Row]:
        """All rows of a table, none when it is not there."""
        if table not in self.tables:
            return
        quoted = self._connection.dialect.identifier_preparer.quote(table)
        # Without types: the drivers' own values, because types are what these columns cannot be trusted with.
        query = sa.text(f"SELECT * FROM {quoted}").execution_options(yield_per=_ROWS_AT_ONCE)  # noqa: S608
        with _errors_of(self.place):
            for row in self._connection.execute(query).mappings():
                yield dict(row)


def parse_source(text: str, *, work_dir: Path, sqlite_name: str) -> URL:
    """An old database as an operator names it: a URL, also of MariaDB, or a path. Raises ConfigError."""
    if text.partition(":")[0].partition("+")[0] not in SCHEMES:
        named = text if "://" in text or text == "sqlite" else f"sqlite:///{Path(text).absolute()}"
        return parse_database_url(named, work_dir=work_dir, sqlite_name=sqlite_name)
    try:
        return make_url(text)
    except (ArgumentError, ValueError) as error:
        raise ConfigError("--import: not a database URL such as mysql+pymysql://user@host/name") from error


@contextmanager
def open_old(url: URL) -> Iterator[OldDatabase]:
    """The database of an earlier Keylime. Raises ConfigError when it is not there, or is no such one."""
    place = url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)
    opened = _sqlite(Path(url.database or ""), place) if url.get_backend_name() == "sqlite" else _server(url)
    with _errors_of(place), opened as engine:
        try:
            with engine.connect() as connection:
                database = OldDatabase(connection, place)
                if FOREIGN_TABLES.isdisjoint(database.tables):
                    raise ConfigError(f"database {place} holds no tables of Keylime: name the right one")
                yield database
        finally:
            engine.dispose()


@contextmanager
def _server(url: URL) -> Iterator[sa.Engine]:
    is_mariadb = url.get_backend_name() in SCHEMES
    options: dict[str, object] = {"connect_timeout": _CONNECT_S}
    if is_mariadb:
        # Whatever the earlier program spoke: texts come as they are, and nothing can be written.
        options |= {"charset": "utf8mb4", "init_command": "SET SESSION TRANSACTION READ ONLY"}
        url = url.difference_update_query(["charset"])
    engine = sa.create_engine(
        url.set(drivername="mysql+pymysql" if is_mariadb else "postgresql+psycopg"),
        poolclass=NullPool,
        hide_parameters=True,
        isolation_level="REPEATABLE READ",
        connect_args=options,
    )
    yield engine if is_mariadb else engine.execution_options(postgresql_readonly=True)


@contextmanager
def _sqlite(path: Path, place: str) -> Iterator[sa.Engine]:
    """An engine over a file that is as it was at the end. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"database {place} is not there: name the file of the earlier Keylime")
    before = _state(path)
    with contextlib.ExitStack() as stack:
        if any(size for size, _ in before[1:]):
            readable, mode = stack.enter_context(_copied(path)), "mode=rw"
        else:
            readable, mode = path, "mode=ro&immutable=1"
        name = f"file:{urllib.parse.quote(str(readable.absolute()))}?{mode}"
        yield sa.create_engine(
            "sqlite+pysqlite://", creator=lambda: _connect(name), poolclass=NullPool, hide_parameters=True
        )
    if _state(path) != before:
        raise ConfigError(
            f"database {place} was written to while it was read: stop the earlier Keylime, then try again"
        )


def _connect(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(name, uri=True)
    connection.text_factory = _text
    return connection


def _text(data: bytes) -> str | bytes:
    # One text that is none must not keep all others from being read.
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _state(path: Path) -> list[tuple[int, int]]:
    state = []
    for one in (path, *(path.with_name(path.name + ending) for ending in _BESIDE)):
        with contextlib.suppress(FileNotFoundError):
            found = one.stat()
            state.append((found.st_size, found.st_mtime_ns))
            continue
        state.append((0, 0))
    return state


@contextmanager
def _copied(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="keylime-") as directory:
        copy = Path(directory) / "copy.sqlite"
        shutil.copyfile(path, copy)
        for ending in _BESIDE:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(path.with_name(path.name + ending), copy.with_name(copy.name + ending))
        yield copy


@contextmanager
def _errors_of(place: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        # The driver's own words: SQLAlchemy's would add the statement.
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise ConfigError(f"database {place} cannot be read: {reason}") from error
