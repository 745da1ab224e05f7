"""A PostgreSQL server of a test's own: a throw-away cluster on a loopback port, without a password."""

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.fakes.stopped import stop_still

_USERS = ("postgres", "nobody")
_DIRECTORIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


class PostgresServer:
    """Runs while the fixture lasts; tests may stop it in any way and start it again."""

    def __init__(
        self, home: Path, user: str | None, addresses: tuple[str, ...], primary_port: int | None = None
    ) -> None:
        """A new cluster, or a standby of the one behind `primary_port`."""
        self._home = home
        self._user = user
        self._addresses = addresses
        self._numbers = itertools.count(1)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        if user is not None:
            shutil.chown(home, user)
        if primary_port is None:
            self._run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        else:
            source = ("-h", "127.0.0.1", "-p", str(primary_port), "-U", "postgres")
            self._run("pg_basebackup", *source, "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
        if addresses:
            with (home / "data/pg_hba.conf").open("a") as access:
                access.write("host all all samenet trust\n")

    @property
    def url(self) -> str:
        """The URL of the database that is there from the beginning."""
        return self.url_on(self.port)

    def url_on(self, port: int, database: str = "postgres", host: str = "127.0.0.1") -> str:
        """The same through another port or address, or of another database."""
        return f"postgresql://postgres@{host}:{port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url_on(self.port, name)

    def start(self) -> None:
        """Returns when connections are accepted."""
        listen = ",".join(("127.0.0.1", *self._addresses))
        options = f"-p {self.port} -c listen_addresses={listen} -c max_connections=200 -k {self._home}"
        self._run("pg_ctl", "-w", "-o", options, "-l", str(self._home / "log"), "start")

    def stop(self, mode: str = "fast") -> None:
        """Ends all connections; `immediate` is a crash, with recovery at the next start."""
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    @contextmanager
    def holding(self, url: str, *statements: str) -> Iterator[int]:
        """A session of an operator, by its number, that keeps the locks of these statements."""
        with psycopg.connect(url, application_name="psql") as connection:
            for statement in statements:
                connection.execute(statement.encode())
            yield connection.info.backend_pid
            connection.rollback()

    def lock_table(self, name: str, *, for_writers: bool = False) -> str:
        """The statement that locks a table, for all or only for those who write."""
        return f"LOCK TABLE {name} IN {'SHARE' if for_writers else 'ACCESS EXCLUSIVE'} MODE"

    def promote(self) -> None:
        """Makes a primary of a standby, with what has reached it."""
        self._run("pg_ctl", "-w", "promote")

    def freeze(self) -> None:
        """Stops all its processes where they are: connections stay, and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """They go on."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        postmaster = int((self._home / "data/postmaster.pid").read_text().splitlines()[0])
        if number == signal.SIGSTOP:
            stop_still(postmaster)  # before it can have more children
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for child in map(int, children):
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGSTOP:
                    stop_still(child)
                else:
                    os.kill(child, number)
        if number != signal.SIGSTOP:
            os.kill(postmaster, number)

    def kill(self) -> None:
        """For the end: whatever is left of it goes."""
        pid_file = self._home / "data/postmaster.pid"
        if pid_file.exists():
            os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGQUIT)

    def _run(self, program: str, *arguments: str) -> None:
        as_user = [] if self._user is None else ["setpriv", f"--reuid={self._user}", *_groups(self._user)]
        command = [*as_user, str(_DIRECTORIES[-1] / program), "-D", str(self._home / "data"), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd="/", timeout=60)  # noqa: S603


def _groups(user: str) -> list[str]:
    return [f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]


@contextmanager
def running_postgresql(*addresses: str, primary_port: int | None = None) -> Iterator[PostgresServer]:
    """A server on loopback and on `addresses`, or a standby; skips the test where it cannot be had."""
    if not _DIRECTORIES:
        pytest.skip("needs PostgreSQL (Debian package postgresql)")
    user = None
    if os.getuid() == 0:  # which PostgreSQL refuses to run as
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv (Debian package util-linux), to run PostgreSQL as another user")
        known = {entry.pw_name for entry in pwd.getpwall()}
        user = next(name for name in _USERS if name in known)
    home = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        server = PostgresServer(home, user, addresses, primary_port)
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(home, ignore_errors=True)
