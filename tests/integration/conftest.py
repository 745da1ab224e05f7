"""Databases that tests of several processes share."""

from collections.abc import Iterator

import pytest

from tests.fakes.databases import KINDS, SERVERS, DatabaseServer
from tests.fakes.mariadb import MariaServer, running_mariadb
from tests.fakes.postgresql import PostgresServer, running_postgresql


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A server for one file of tests."""
    with running_postgresql() as server:
        yield server


@pytest.fixture(scope="module")
def maria() -> Iterator[MariaServer]:
    """A server for one file of tests."""
    with running_mariadb() as server:
        yield server


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> DatabaseServer:
    """A server of each kind that can be shared over a network."""
    found: DatabaseServer = request.getfixturevalue(SERVERS[request.param])
    return found


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest) -> str | None:
    """The URL of an empty database, None for a file of SQLite."""
    if request.param == "sqlite":
        return None
    found: DatabaseServer = request.getfixturevalue(SERVERS[request.param])
    return found.new_database()
