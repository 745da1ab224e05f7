"""Sessions on MariaDB servers: how they are made, limited, known to be alive, and given up.

Statements are sent by threads, which wait for the answers. Whoever gives up waiting for a thread hangs up on
the line that it waits at, so that the thread ends as well.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import pymysql
import sqlalchemy as sa
from pymysql.connections import Connection
from pymysql.constants import FIELD_TYPE
from pymysql.converters import conversions
from sqlalchemy import event
from sqlalchemy.exc import InvalidatePoolError

from keylime.database.mariadb.columns import COLLATION
from keylime.database.mariadb.failures import PACKET_TOO_LARGE
from keylime.errors import ConfigError

FRESH_S = 0.5  # a connection that was in use so lately is not asked whether anybody is there
_CONNECT_TIMEOUT_S = 5
_WRITE_TIMEOUT_S = 10
_PING_LIMIT_S = 2
_USED_AT = "keylime_used_at"
_OLDEST = (10, 6)
_LEAST_PACKET = 1 << 20  # bytes
# As of sessions on PostgreSQL: what a server does by itself, whatever becomes of us. Seconds.
SESSION_SETTINGS: dict[str, str | int] = {
    "sql_mode": "TRADITIONAL,NO_AUTO_VALUE_ON_ZERO",  # what does not fit is refused
    "default_storage_engine": "InnoDB",
    "time_zone": "+00:00",
    "collation_connection": COLLATION,
    "innodb_lock_wait_timeout": 8,
    "lock_wait_timeout": 8,
    "max_statement_time": 10,
    "idle_transaction_timeout": 5,
    # Rows are looked up by their keys: to search a small table as a whole takes less, but waits for whoever
    # has locked any row of it.
    "max_seeks_for_key": 1,
    # A session may stop inside a message.
    "net_read_timeout": 10,
    "net_write_timeout": 10,
}
# And what the kernel does: a peer that vanished is noticed.
_TCP_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000),
)


class MariaSession(Connection):
    """A connection that another thread can hang up on; it is made by `connect`."""

    _read_timeout: float | None

    def __init__(self, **arguments: Any) -> None:
        self._line: socket.socket | None = None
        self._line_lock = threading.Lock()
        self._is_hung_up = False
        self._largest = 0
        super().__init__(**arguments, defer_connect=True)

    def connect(self, sock: socket.socket | None = None) -> None:
        """Raises pymysql.Error, and ConfigError for a server that cannot be used."""
        dialed = sock or self._dial()
        with self._line_lock:
            # Ours for as long as we want it, whatever becomes of the driver's own.
            self._line = dialed.dup()
            if self._is_hung_up:
                self._line.shutdown(socket.SHUT_RDWR)
        self._secure = bool(self.unix_socket)  # what is secret may be said here
        super().connect(dialed)
        try:
            self._examine()
        except BaseException:
            self.close()
            raise

    def hang_up(self) -> None:
        """Ends whatever is being waited for, by an error; for other threads."""
        with self._line_lock:
            self._is_hung_up = True
            if self._line is not None:
                with contextlib.suppress(OSError):
                    self._line.shutdown(socket.SHUT_RDWR)

    def query(self, sql: str | bytes, unbuffered: bool = False) -> int:
        """Raises pymysql.Error, also for what the server would hang up on."""
        if self._largest and len(sql) > self._largest:
            raise pymysql.OperationalError(
                PACKET_TOO_LARGE,
                f"{len(sql)} bytes are more than max_allowed_packet = {self._largest} of the server: "
                "raise that",
            )
        affected: int = super().query(sql, unbuffered)
        return affected

    def set_limits(self, settings: Mapping[str, str | int]) -> None:
        """Has the session keep to these from now on."""
        listed = ", ".join(f"{name} = {self.escape(value)}" for name, value in settings.items())
        with self.cursor() as cursor:
            cursor.execute(f"SET SESSION {listed}")

    def ask(self) -> None:
        """Whether somebody is there. Raises pymysql.Error when nobody answers soon."""
        before, self._read_timeout = self._read_timeout, _PING_LIMIT_S
        try:
            self.ping(False)
        finally:
            self._read_timeout = before

    def _dial(self) -> socket.socket:
        try:
            if self.unix_socket:
                line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                line.settimeout(self.connect_timeout)
                try:
                    line.connect(self.unix_socket)
                except BaseException:
                    line.close()
                    raise
                return line
            source = None if self.bind_address is None else (self.bind_address, 0)
            line = socket.create_connection((self.host, self.port), self.connect_timeout, source)
        except OSError as error:
            place = self.unix_socket or f"{self.host}:{self.port}"
            raise pymysql.OperationalError(2003, f"cannot connect to {place}: {error}") from error
        for level, option, value in _TCP_OPTIONS:
            line.setsockopt(level, option, value)
        return line

    def _examine(self) -> None:
        with self.cursor() as cursor:
            cursor.execute("SELECT VERSION(), @@max_allowed_packet")
            version, largest = cursor.fetchone() or ("", 0)
        problem = find_problem(str(version))
        if problem is not None:
            raise ConfigError(f"database_url: {problem}")
        if largest < _LEAST_PACKET:
            raise ConfigError(
                f"database_url: the server takes no statements above {largest} bytes: "
                "raise its max_allowed_packet, to twice what max_upload_size says"
            )
        self._largest = int(largest)

    def _force_close(self) -> None:
        super()._force_close()  # type: ignore[misc]  # what all its ways to close come to
        with self._line_lock:
            if self._line is not None:
                self._line.close()
                self._line = None

    __del__ = _force_close


def find_problem(server: str) -> str | None:
    """Why a server that calls its version so cannot be used, with what helps; None when it can."""
    least = ".".join(map(str, _OLDEST))
    if "mariadb" not in server.lower():
        return (
            f"the server says that it is {server}, not MariaDB; MySQL does not end sessions that stop within "
            f"a transaction: use MariaDB {least} or newer, or PostgreSQL, and take over what is there by "
            "--import"
        )
    # 5.5.5- is what earlier ones put before their version, for clients that know no other.
    numbers = server.removeprefix("5.5.5-").split("-")[0].split(".")
    if tuple(int(number) for number in numbers[:2] if number.isdigit()) < _OLDEST:
        return f"the server is MariaDB {'.'.join(numbers)}: update it to {least} or newer"
    return None


class Use:
    """A piece of work in one thread, which another thread may give up: then the line it is at is hung up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: MariaSession | None = None
        self._is_given_up = False

    def begin(self, session: MariaSession) -> None:
        """From now on the work is at this session."""
        with self._lock:
            self._session = session
            if self._is_given_up:
                session.hang_up()

    def end(self) -> None:
        """The session serves others from now on."""
        with self._lock:
            self._session = None

    def give_up(self) -> None:
        """For the other thread; after the work has ended it does nothing."""
        with self._lock:
            self._is_given_up = True
            if self._session is not None:
                self._session.hang_up()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Sessions that the block takes from a pool are those of this work."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


_current: ContextVar[Use | None] = ContextVar("use", default=None)


def connect_arguments(program: str) -> dict[str, Any]:
    """How connections are made, but for what the URL says."""
    return {
        "charset": "utf8mb4",
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "write_timeout": _WRITE_TIMEOUT_S,
        "program_name": program,
        # Sums come as decimals, which are whole numbers here.
        "conv": {**conversions, FIELD_TYPE.DECIMAL: _number, FIELD_TYPE.NEWDECIMAL: _number},
    }


def attend_sessions(engine: sa.Engine) -> None:
    """Has an engine make and keep its sessions in this way."""
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "checkout", _check_line)
    event.listen(engine, "checkin", _let_go)


class _Record(Protocol):
    info: dict[str, float]


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _connect(_dialect: object, _record: object, _positional: object, named: dict[str, Any]) -> MariaSession:
    session = MariaSession(**named)
    use = _current.get()
    if use is not None:
        use.begin(session)
    try:
        session.connect()
    except BaseException:
        if use is not None:
            use.end()
        raise
    return session


def _set_up(session: MariaSession, record: _Record) -> None:
    # After SQLAlchemy, which says its own when a connection is there.
    session.set_limits(SESSION_SETTINGS)
    record.info[_USED_AT] = time.monotonic()


def _check_line(session: MariaSession, record: _Record, _proxy: object) -> None:
    """Whether somebody still answers; when a line is dead, all that are of the same age are made anew."""
    use = _current.get()
    if use is not None:
        use.begin(session)
    if time.monotonic() - record.info.get(_USED_AT, 0.0) < FRESH_S:
        return
    try:
        session.ask()
    except (pymysql.Error, OSError) as error:
        raise InvalidatePoolError("nobody answers on a pooled connection") from error


def _let_go(_session: MariaSession | None, record: _Record) -> None:
    record.info[_USED_AT] = time.monotonic()
    use = _current.get()
    if use is not None:
        use.end()
