"""A MariaDB server of a test's own: throw-away files, a loopback port, root without a password."""

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pymysql
import pytest

from tests.fakes.stopped import stop_still

_LIMIT_S = 100.0
_USERS = ("mysql", "nobody")


class MariaServer:
    """Runs while the fixture lasts; tests may stop it in any way and start it again."""

    def __init__(self, home: Path, program: str, user: str | None) -> None:
        self._home = home
        self._user = user
        self._program = program
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]

    def url_on(self, port: int, database: str) -> str:
        """The URL of a database through this port."""
        return f"mysql+pymysql://root@127.0.0.1:{port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty database, whose defaults are those of nobody in particular."""
        name = f"test_{next(self._numbers)}"
        self.say(f"CREATE DATABASE {name} CHARACTER SET utf8mb3")
        return self.url_on(self.port, name)

    @contextmanager
    def connected(self, url: str | None = None) -> Iterator["pymysql.Connection[pymysql.cursors.Cursor]"]:
        """A session of somebody else, in the database of `url` or in none."""
        database = None if url is None else url.rpartition("/")[2]
        with pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user="root",
            database=database,
            autocommit=True,
            ssl_disabled=True,
        ) as connection:
            yield connection

    def say(self, statement: str, url: str | None = None) -> list[tuple[object, ...]]:
        """What comes of one statement."""
        with self.connected(url) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def start(self) -> None:
        """Returns when connections are accepted."""
        self._process = subprocess.Popen(  # noqa: S603  # a program of the system
            [
                *(self._program, "--no-defaults", f"--datadir={self._home / 'data'}"),
                *([] if self._user is None else [f"--user={self._user}"]),
                *("--bind-address=127.0.0.1", f"--port={self.port}", f"--socket={self._home / 'socket'}"),
                *(f"--pid-file={self._home / 'pid'}", "--innodb-flush-log-at-trx-commit=2"),
                *("--max-connections=200", "--performance-schema=ON"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(self._home),
        )
        deadline = time.monotonic() + _LIMIT_S
        while True:
            try:
                self.say("SELECT 1")
            except pymysql.Error:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self, mode: str = "fast") -> None:
        """Ends all connections; `immediate` is a crash, with recovery at the next start."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if mode == "immediate" else signal.SIGTERM)
            self._process.wait(_LIMIT_S)
            self._process = None

    @contextmanager
    def holding(self, url: str, *statements: str) -> Iterator[int]:
        """A session of an operator, by its number, that keeps the locks of these statements."""
        with self.connected(url) as connection, connection.cursor() as cursor:
            connection.autocommit(False)
            for statement in statements:
                cursor.execute(statement)
            cursor.execute("SELECT connection_id()")
            yield int(str((cursor.fetchone() or ("",))[0]))
            connection.rollback()

    def lock_table(self, name: str, *, for_writers: bool = False) -> str:
        """The statement that locks a table, for all or only for those who write."""
        return f"LOCK TABLES {name} {'READ' if for_writers else 'WRITE'}"

    def freeze(self) -> None:
        """Stops it where it is: connections stay, and nothing answers."""
        if self._process is not None:
            stop_still(self._process.pid)

    def thaw(self) -> None:
        """It goes on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)


def _environment(home: Path) -> dict[str, str]:
    """A server that starts removes the temporary tables of all others that share its directory for them."""
    return {**os.environ, "TMPDIR": str(home)}


@contextmanager
def running_mariadb() -> Iterator[MariaServer]:
    """A server on loopback; skips the test where it cannot be had."""
    path = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
    installer, program = shutil.which("mariadb-install-db"), shutil.which("mariadbd", path=path)
    if installer is None or program is None:
        pytest.skip("needs MariaDB (Debian packages mariadb-server-core, mariadb-client-core)")
    user = None
    if os.getuid() == 0:  # which MariaDB refuses to run as
        known = {entry.pw_name for entry in pwd.getpwall()}
        user = next(name for name in _USERS if name in known)
    home = Path(tempfile.mkdtemp(prefix="mariadb-", dir="/tmp"))
    try:
        if user is not None:
            shutil.chown(home, user)
        subprocess.run(  # noqa: S603  # a program of the system
            [
                *(installer, "--no-defaults", f"--datadir={home / 'data'}"),
                *([] if user is None else [f"--user={user}"]),
                *("--auth-root-authentication-method=normal", "--skip-test-db"),
            ],
            check=True,
            capture_output=True,
            timeout=_LIMIT_S,
            env=_environment(home),
        )
        server = MariaServer(home, program, user)
        try:
            server.start()
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.stop("immediate")
    finally:
        shutil.rmtree(home, ignore_errors=True)
