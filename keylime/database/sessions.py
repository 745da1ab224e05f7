"""Sessions on PostgreSQL servers: how they are made, named, limited, and known to be alive.

A server must not wait for us for ever, nor we for it: it ends sessions of clients that stop or vanish, and we
hang up on one that does not answer. This module needs the driver, which is loaded where a server is named.
"""

import asyncio
import contextlib
import functools
import logging
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.abc import Params, Query
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.exc import InvalidatePoolError

from keylime.database.servers import Choice, ServerAddress, Sessions, places_of

_CONNECT_TIMEOUT_S = 5
_CONNECT_TIMEOUT_OF_SEVERAL_S = 3  # for each server: the next one may be there
_PING_LIMIT_S = 2.0
FRESH_S = 0.5  # a connection that was in use so lately is not asked whether anybody is there
_USED_AT = "keylime_used_at"
# What a server does by itself, whatever becomes of us: it gives up what nobody waits for any more, and ends
# sessions whose owner stopped in the middle of a transaction, with all their locks. Milliseconds and seconds.
_LOCK_TIMEOUT_MS = 8_000
_STATEMENT_TIMEOUT_MS = 10_000
_IDLE_IN_TRANSACTION_MS = 5_000
_SERVER_SETTINGS = {
    "statement_timeout": _STATEMENT_TIMEOUT_MS,
    "lock_timeout": _LOCK_TIMEOUT_MS,
    "idle_in_transaction_session_timeout": _IDLE_IN_TRANSACTION_MS,
    "tcp_keepalives_idle": 5,
    "tcp_keepalives_interval": 2,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# With the release that brought each. A session may stop inside a message, where no other limit of the server
# holds. Some systems that servers run on do not have the first one.
_NEWER_SETTINGS = {
    "client_connection_check_interval": (140000, 2_000),
    "transaction_timeout": (170000, 20_000),
}
_OPTION = re.compile(r"(?:-c\s*|--)([A-Za-z_]+)\s*=")
_NAME_BYTES = 63  # of application_name; PostgreSQL cuts off what follows
ResultT = TypeVar("ResultT")


def attend_sessions(engine: sa.Engine, url: URL, sessions: Sessions) -> None:
    """Has an engine for `url` make and keep its sessions in this way."""
    event.listen(engine, "do_connect", functools.partial(_ask_in_order, url, sessions.choice))
    event.listen(engine, "connect", functools.partial(_set_up_server, url, sessions.choice))
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", _check_line)
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of every connection that is hung up


def connect_arguments(url: URL, sessions: Sessions) -> dict[str, str | int | type]:
    """How connections to a PostgreSQL server are made: peers that vanish are noticed, on both sides.

    What the URL says about the same goes first.
    """
    is_one = len(places_of(url)) == 1
    arguments: dict[str, str | int | type] = {
        "connect_timeout": _CONNECT_TIMEOUT_S if is_one else _CONNECT_TIMEOUT_OF_SEVERAL_S,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,  # milliseconds
        "cursor_factory": _PlainCursor,
    }
    return {
        **{name: value for name, value in arguments.items() if name not in url.query},
        "application_name": session_name(str(url.query.get("application_name", "")), sessions.name),
    }


def session_settings(url: URL, server_version: int) -> list[str]:
    """The statements that set what holds for a session, but for what the URL's `options` say themselves.

    Sent when the connection is there: poolers refuse `options`, or forget them.
    """
    wanted = {name.lower() for name in _OPTION.findall(str(url.query.get("options", "")))}
    newer = {name: value for name, (since, value) in _NEWER_SETTINGS.items() if server_version >= since}
    common = "; ".join(
        f"SET {name} = {value}" for name, value in _SERVER_SETTINGS.items() if name not in wanted
    )
    return [common, *(f"SET {name} = {value}" for name, value in newer.items() if name not in wanted)]


def session_name(wanted: str, own: str) -> str:
    """What a session is called: as the operator wants, and always so that it can be found by `own`."""
    room = _NAME_BYTES - len(own.encode()) - 1
    kept = wanted.encode()[: max(room, 0)].decode(errors="ignore")
    return f"{kept}/{own}" if kept else own


async def open_session(url: URL, sessions: Sessions) -> psycopg.AsyncConnection[tuple[object, ...]]:
    """A connection outside the pool, made as those within are; each statement commits by itself.

    Raises psycopg.Error or OSError.
    """
    dialect = url.get_dialect()()
    _, arguments = dialect.create_connect_args(url)
    arguments.update(connect_arguments(url, sessions))
    _ask_in_order(url, sessions.choice, None, None, [], arguments)
    connection = await psycopg.AsyncConnection.connect(autocommit=True, **arguments)
    hang_up_when_cancelled(connection)
    try:
        await _set_up_session(url, connection)
    except BaseException:
        await connection.close()
        raise
    sessions.choice.answered(_place_of(connection))
    return connection


class ServerConnection(Protocol):
    """What `hang_up_when_cancelled` needs of psycopg's asynchronous connections."""

    def fileno(self) -> int:
        """The socket."""
        ...


def hang_up_when_cancelled(connection: ServerConnection) -> None:
    """Work that is cancelled on this connection ends at once, and the connection with it.

    The driver's way is to ask the server, over another connection, to break off, and to wait for that: ten
    seconds when the server is silent. A server that is hung up on breaks off by itself.
    """

    async def hang_up(**_limits: float) -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    setattr(connection, "cancel_safe", hang_up)  # noqa: B010 - to the type checker it is a method


class _PlainCursor(psycopg.AsyncCursor[Any]):
    """Never sends statements in a pipeline.

    A process that stops inside one leaves a session that no time-out of the server ends, with all its locks.
    """

    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        if returning or not isinstance(query, str):
            raise psycopg.NotSupportedError("only text, and no rows can be returned")
        for params in params_seq:
            await self.execute(query, params)


class _ServerDriver(Protocol):
    driver_connection: "psycopg.AsyncConnection[Any]"

    def run_async(self, work: Callable[[Any], Awaitable[ResultT]]) -> ResultT: ...


class _Record(Protocol):
    info: dict[str, float]


def _ask_in_order(
    url: URL,
    choice: Choice,
    _dialect: object,
    _record: object,
    _positional: object,
    named: MutableMapping[str, Any],
) -> None:
    places = choice.order(places_of(url))
    if len(places) > 1 and "hostaddr" not in named:  # which goes with the hosts in their own order
        named["host"] = ",".join(place.host for place in places)
        named["port"] = ",".join(place.port for place in places)


def _set_up_server(url: URL, choice: Choice, connection: _ServerDriver, record: _Record) -> None:
    driver = connection.driver_connection
    hang_up_when_cancelled(driver)
    connection.run_async(functools.partial(_set_up_session, url))
    choice.answered(_place_of(driver))
    record.info[_USED_AT] = time.monotonic()


def _note_use(_connection: object, record: _Record) -> None:
    record.info[_USED_AT] = time.monotonic()


async def _set_up_session(url: URL, connection: "psycopg.AsyncConnection[Any]") -> None:
    for statement in session_settings(url, connection.info.server_version):
        with contextlib.suppress(psycopg.errors.InvalidParameterValue):
            await _say(connection, statement)


def _place_of(connection: "psycopg.AsyncConnection[Any]") -> ServerAddress:
    return ServerAddress(connection.info.host, str(connection.info.port))


def _check_line(connection: _ServerDriver, record: _Record, _proxy: object) -> None:
    """Whether somebody still answers on a connection that is taken from the pool.

    A line may be dead without a word; when one is, all that are of the same age are made anew.
    """
    if time.monotonic() - record.info.get(_USED_AT, 0.0) < FRESH_S:
        return
    try:
        connection.run_async(functools.partial(_say, statement=""))
    except (psycopg.Error, OSError) as error:  # a TimeoutError is one
        raise InvalidatePoolError("nobody answers on a pooled connection") from error


async def _say(connection: "psycopg.AsyncConnection[Any]", statement: str) -> None:
    """A statement outside transactions, which is answered at once or not at all."""
    before = connection.autocommit
    async with asyncio.timeout(_PING_LIMIT_S):
        await connection.set_autocommit(True)
        await connection.execute(statement)
        await connection.set_autocommit(before)
