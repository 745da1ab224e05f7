"""What is said about a database that cannot be used, and about locks that last."""

import sqlite3

import psycopg
import pytest
import sqlalchemy as sa

from keylime.database.engine import DatabaseUnavailable
from keylime.database.locks import LockHolder, Sightings
from keylime.database.readiness import locks_problem, remedy_of


def failure(cause: Exception) -> DatabaseUnavailable:
    try:
        raise DatabaseUnavailable("database: cannot be written: secret words of the driver") from cause
    except DatabaseUnavailable as error:
        return error


def sqlite_error(code: int) -> sa.exc.DBAPIError:
    driver = sqlite3.OperationalError("secret")
    driver.sqlite_errorcode = code
    return sa.exc.OperationalError("UPDATE", {}, driver)


def server_error(kind: type[psycopg.Error]) -> sa.exc.DBAPIError:
    return sa.exc.OperationalError("UPDATE", {}, kind("secret"))


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (sqlite_error(5), "keeps it from being written: end it"),
        (sqlite_error(13), "the disk is full: make room"),
        (sqlite_error(8 | 1 << 8), "read-only"),
        (server_error(psycopg.errors.LockNotAvailable), "keeps it from being written: end it"),
        (server_error(psycopg.errors.DiskFull), "the disk is full: make room"),
        (server_error(psycopg.errors.ReadOnlySqlTransaction), "name the primary"),
        (server_error(psycopg.errors.TooManyConnections), "max_connections"),
        (server_error(psycopg.OperationalError), "see to the server"),
        (TimeoutError(), "no answer: see to the server"),
    ],
)
def test_the_remedy_is_named_and_the_drivers_words_are_not(cause: Exception, words: str) -> None:
    told = remedy_of(failure(cause))
    assert words in told
    assert "secret" not in told


def holder(transaction: str, table: str = "agents", state: str = "active") -> LockHolder:
    return LockHolder(transaction, table, 7, "psql", state)


def test_a_transaction_counts_from_its_first_sighting_whatever_its_session_does() -> None:
    seen = Sightings({}).after([holder("3/1"), holder("4/1")], 100.0)
    seen = seen.after([holder("3/1", state="idle in transaction"), holder("4/2")], 104.0)
    assert [str(one) for one in seen.lasting(104.0, 3.0)] == [
        "session 7 (psql, idle in transaction, table agents)"
    ]
    assert seen.after([holder("4/2")], 108.0).lasting(108.0, 3.0) == [holder("4/2")]


def test_a_transaction_without_a_session_is_told_as_such() -> None:
    assert "pg_prepared_xacts" in str(LockHolder("-1/7", "agents", None, "", ""))


def test_locks_are_told_by_table() -> None:
    assert locks_problem([]) is None
    told = locks_problem([holder("3/1", "shards"), holder("3/1", "agents"), holder("4/1", "agents")])
    assert "keeps agents, shards from being written" in str(told)
