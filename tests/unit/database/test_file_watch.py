"""News of a SQLite file: every commit is told, whoever makes it, and nothing else is."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from keylime.database.file_watch import watched_file

_INTERVAL_S = 0.002
_LIMIT_S = 100.0


class Bell:
    """Counts how often it was rung, and waits for the next time."""

    def __init__(self) -> None:
        self.count = 0
        self._rung = threading.Event()

    def ring(self) -> None:
        self.count += 1
        self._rung.set()

    def wait(self) -> None:
        """Returns when it was rung since the last wait."""
        assert self._rung.wait(_LIMIT_S)
        self._rung.clear()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "a file?#%.sqlite", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (a INTEGER)")
        yield connection


def path_of(connection: sqlite3.Connection) -> Path:
    return Path(connection.execute("PRAGMA database_list").fetchone()[2])


def test_every_commit_is_told(database: sqlite3.Connection) -> None:
    bell = Bell()
    with watched_file(path_of(database), _INTERVAL_S, bell.ring):
        bell.wait()  # the first look: what was before is not known
        for number in range(20):
            database.execute("INSERT INTO t VALUES (?)", (number,))
            bell.wait()


def test_what_is_undone_or_only_read_is_not_told(database: sqlite3.Connection) -> None:
    bell = Bell()
    with watched_file(path_of(database), _INTERVAL_S, bell.ring):
        bell.wait()
        for _ in range(20):
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT INTO t VALUES (1)")
            database.execute("ROLLBACK")
            database.execute("SELECT * FROM t").fetchall()
            time.sleep(_INTERVAL_S)
        assert bell.count == 1


def test_a_file_that_cannot_be_asked_may_have_changed(tmp_path: Path) -> None:
    bell, later = Bell(), tmp_path / "later.sqlite"
    with watched_file(later, _INTERVAL_S, bell.ring):
        bell.wait()
        bell.wait()
        assert not later.exists()
        with closing(sqlite3.connect(later, isolation_level=None)) as connection:
            connection.execute("CREATE TABLE t (a INTEGER)")
            for number in range(20):
                bell.wait()
                connection.execute("INSERT INTO t VALUES (?)", (number,))


def test_the_watch_ends_with_its_block(database: sqlite3.Connection) -> None:
    before = set(threading.enumerate())
    with watched_file(path_of(database), _INTERVAL_S, lambda: None):
        (watch,) = set(threading.enumerate()) - before
    watch.join(_LIMIT_S)
    assert not watch.is_alive()
