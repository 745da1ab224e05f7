"""Database servers as tests want them, whatever kind they are, and which kinds tests are run with.

With KEYLIME_TEST_DATABASES=1 (`make test-databases`) every test of a server is run with MariaDB as well.
"""

import contextlib
import os
from contextlib import AbstractContextManager
from typing import Protocol

import sqlalchemy as sa

from tests.fakes.mariadb import running_mariadb
from tests.fakes.postgresql import running_postgresql

_ALL = bool(os.environ.get("KEYLIME_TEST_DATABASES"))
SERVERS = {"postgresql": "postgres", **({"mariadb": "maria"} if _ALL else {})}
"""The kinds of servers, and the fixture that gives one."""

KINDS = ("sqlite", *SERVERS)


class DatabaseServer(Protocol):
    """Runs while the fixture lasts; tests may stop it in any way and start it again."""

    port: int

    def url_on(self, port: int, database: str) -> str:
        """The URL of a database through this port."""
        ...

    def new_database(self) -> str:
        """The URL of an empty database."""
        ...

    def start(self) -> None:
        """Returns when connections are accepted."""
        ...

    def stop(self, mode: str = "fast") -> None:
        """Ends all connections; `immediate` is a crash, with recovery at the next start."""
        ...

    def holding(self, url: str, *statements: str) -> AbstractContextManager[int]:
        """A session of an operator, by its number, that keeps the locks of these statements."""
        ...

    def lock_table(self, name: str, *, for_writers: bool = False) -> str:
        """The statement that locks a table, for all or only for those who write."""
        ...

    def freeze(self) -> None:
        """Stops all its processes where they are: connections stay, and nothing answers."""
        ...

    def thaw(self) -> None:
        """They go on."""
        ...


def running_server(kind: str) -> AbstractContextManager[DatabaseServer]:
    """A server of this kind."""
    return running_mariadb() if kind == "mariadb" else running_postgresql()


def engine_for(url: str) -> sa.Engine:
    """How a test reaches a database beside programs; the server may be restarted."""
    # With TLS, which PyMySQL tries of itself, each connection reads the certificates of the system anew.
    options = {"ssl_disabled": True} if url.startswith("mysql") else {}
    place = url.replace("postgresql://", "postgresql+psycopg://")
    return sa.create_engine(place, poolclass=sa.NullPool, connect_args=options)


def rows_in(url: str, query: str) -> list[tuple[object, ...]]:
    """What the query finds."""
    with contextlib.closing(engine_for(url).connect()) as connection:
        return [tuple(row) for row in connection.execute(sa.text(query))]
