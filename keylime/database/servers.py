"""PostgreSQL servers as operators name them: one or several, in libpq's URLs and in SQLAlchemy's.

Every form becomes one URL that queries and LISTEN use alike. Of several servers the one that can be written
is meant, and the one that answered last is asked first.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from keylime.errors import ConfigError

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+]*)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)
_PLACE = re.compile(r"(?:\[(?P<ip>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\[\]:]*))(?::(?P<port>\d*))?")
_NO_URL = "database_url is not a database URL such as postgresql://user@host/name"
_WRITABLE = ("any", "read-write", "primary")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server listens: a host name, an address, or the directory of a socket; "" is the default."""

    host: str
    port: str = ""

    @classmethod
    def parse(cls, text: str) -> "ServerAddress":
        """`host`, `host:port`, `[IPv6]:port` or `/directory`, percent-encoded or not. Raises ConfigError."""
        decoded = unquote(text)
        if decoded.startswith("/"):
            return cls(decoded)
        match = _PLACE.fullmatch(decoded)
        if match is None:
            # Not shown: it may be part of a password with characters that had to be encoded.
            raise ConfigError(
                "database_url names a server that is not HOST, HOST:PORT or [IPv6]:PORT; "
                "in a password write %2F for /, %3F for ?, %23 for # and %40 for @"
            )
        return cls(match["ip"] or match["name"] or "", _checked_port(match["port"] or ""))


def parse_server_url(text: str) -> URL:
    """The URL of one server or several, in one form for all. Raises ConfigError, without showing a password.

    Several servers are `host=h1,h2` and `port=p1,p2` in the query of what is returned.
    """
    match = _URL.fullmatch(text)
    if match is None:
        raise ConfigError(_NO_URL)
    user, at, hosts = match["authority"].rpartition("@")
    user = user.replace("@", "%40")
    try:
        url = make_url(f"{match['scheme']}://{user}{at}{match['rest']}")
        in_query = _places_in_query(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(_NO_URL) from error
    in_authority = [ServerAddress.parse(part) for part in hosts.split(",")] if hosts else []
    if in_authority and in_query:
        if in_authority != in_query:
            raise ConfigError(
                "database_url names servers both before the database and as host=: remove one of them"
            )
        in_query = []
    places = in_authority or in_query
    if len(places) > 1 and not all(place.host for place in places):
        raise ConfigError("database_url names several servers, one of them without a host")
    return _checked(_with_places(url, places))


def places_of(url: URL) -> tuple[ServerAddress, ...]:
    """The servers of a URL that `parse_server_url` has made, in the operator's order."""
    if url.host is not None or "host" not in url.query:
        return (ServerAddress(url.host or "", "" if url.port is None else str(url.port)),)
    hosts, ports = str(url.query["host"]).split(","), str(url.query.get("port", "")).split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    return tuple(ServerAddress(host, port) for host, port in zip(hosts, ports, strict=True))


class Choice:
    """Which of several servers is asked first: the one that answered last, and the next one if it does not.

    One that is silent takes all the time that somebody has; the next attempt must not begin with it again.
    """

    def __init__(self) -> None:
        self._last: ServerAddress | None = None
        self._in_vain = 0

    def answered(self, place: ServerAddress) -> None:
        """Notes where a connection was made."""
        self._last = place
        self._in_vain = 0

    def order(self, places: Sequence[ServerAddress]) -> list[ServerAddress]:
        """The servers in the order in which they are to be asked in an attempt that begins now."""
        known = sorted(places, key=lambda place: not _is_same(place, self._last))
        first = self._in_vain % len(known)
        self._in_vain += 1
        return known[first:] + known[:first]


@dataclass(frozen=True, slots=True)
class Sessions:
    """The sessions of one process on servers: `name` is how others find them in the server's views."""

    name: str
    choice: Choice

    @classmethod
    def of_this_process(cls, run: str = "") -> Self:
        """Named for the program and its process, with a name of its `run` between them if it has one."""
        parts = (Path(sys.argv[0]).name, run, str(os.getpid()))
        return cls(":".join(part for part in parts if part), Choice())


def _is_same(place: ServerAddress, other: ServerAddress | None) -> bool:
    return other is not None and (place.host, place.port or "5432") == (other.host, other.port or "5432")


def _places_in_query(url: URL) -> list[ServerAddress]:
    hosts, ports = (_listed(url.query, name) for name in ("host", "port"))
    if not hosts:
        return [ServerAddress("", _checked_port(port)) for port in ports]
    # SQLAlchemy writes host=h1:p1&host=h2:p2, libpq host=h1,h2&port=p1,p2.
    places = [
        ServerAddress(host) if host.count(":") > 1 and "[" not in host else ServerAddress.parse(host)
        for host in hosts
    ]
    if not ports:
        return places
    if any(place.port for place in places):
        raise ConfigError("database_url names ports both within host= and as port=: remove one of them")
    if len(ports) not in (1, len(places)):
        raise ConfigError(f"database_url names {len(places)} hosts and {len(ports)} ports")
    ports = ports * len(places) if len(ports) == 1 else ports
    return [ServerAddress(place.host, _checked_port(port)) for place, port in zip(places, ports, strict=True)]


def _listed(query: Mapping[str, str | tuple[str, ...]], name: str) -> list[str]:
    value = query.get(name, ())
    texts = (value,) if isinstance(value, str) else value
    return [part for text in texts for part in text.split(",")]


def _with_places(url: URL, places: Sequence[ServerAddress]) -> URL:
    url = url.difference_update_query(["host", "port"])
    match places:
        case []:
            return url
        case [ServerAddress(host, port)] if not host.startswith("/"):
            return url.set(host=host or None, port=int(port) if port else None)
        case _:
            pass
    query = {"host": ",".join(place.host for place in places)}
    if any(place.port for place in places):
        query["port"] = ",".join(place.port for place in places)
    if len(places) > 1 and "target_session_attrs" not in url.query:
        query["target_session_attrs"] = "read-write"  # a standby cannot be of use
    return url.update_query_dict(query)


def _checked_port(port: str) -> str:
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError("database_url names a port that is not a number from 1 to 65535")
    return port


def _checked(url: URL) -> URL:
    """The same URL, if libpq knows its parameters and something can be written. Raises ConfigError."""
    import psycopg  # who has a SQLite file does without it
    from psycopg.conninfo import make_conninfo

    for name, value in url.query.items():
        if not isinstance(value, str):
            raise ConfigError(f"database_url names the parameter {name} twice")
        try:
            make_conninfo("", **{name: value})
        except psycopg.ProgrammingError as error:
            raise ConfigError(f"database_url has a parameter {name}, which libpq does not know") from error
    wanted = str(url.query.get("target_session_attrs", "any"))
    if wanted not in _WRITABLE:
        raise ConfigError(
            f"database_url has target_session_attrs={wanted}: only a server that can be written is of use, "
            "use read-write"
        )
    return url
