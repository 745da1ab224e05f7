"""URLs of MariaDB servers as operators have them, for whichever driver they were written.

One driver is used, PyMySQL: what others call the same is translated, what it cannot do is refused by name.
"""

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from keylime.errors import ConfigError

SCHEMES = ("mysql", "mariadb")
"""How URLs begin that mean such a server, with the name of a driver behind a plus sign or without."""

OWN_DRIVER = "mariadb+pymysql"

_EXAMPLE = "mysql+pymysql://user:password@host/name"
# Parameters of PyMySQL through SQLAlchemy; other drivers call some of them otherwise.
_KNOWN = frozenset(
    {
        "bind_address",
        "connect_timeout",
        "read_default_file",
        "read_default_group",
        "read_timeout",
        "ssl_ca",
        "ssl_capath",
        "ssl_cert",
        "ssl_check_hostname",
        "ssl_cipher",
        "ssl_key",
        "unix_socket",
        "write_timeout",
    }
)
_OTHER_NAMES = {
    "connection_timeout": "connect_timeout",
    "ssl_cipher_suites": "ssl_cipher",
    "ssl_verify_identity": "ssl_check_hostname",
}
# What is as it must be, whatever an earlier program was told: texts are UTF-8, work is in transactions.
_SETTLED = frozenset({"autocommit", "charset", "collation", "use_pure", "use_unicode"})


def is_mariadb_url(text: str) -> bool:
    """Whether a URL, which may be none, is meant for such a server."""
    return text.partition(":")[0].partition("+")[0] in SCHEMES


def parse_mariadb_url(text: str) -> URL:
    """The URL with the driver that is used here. Raises ConfigError, without showing a password."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(
            f"database_url is not a database URL such as {_EXAMPLE}; "
            "in a password write %2F for /, %3F for ?, %23 for # and %40 for @"
        ) from error
    if not url.database:
        raise ConfigError(f"database_url names no database: write it as {_EXAMPLE}")
    if "," in (url.host or ""):
        raise ConfigError(
            "database_url names several servers, which works with PostgreSQL only: for MariaDB name one "
            "address that always leads to the server that can be written"
        )
    query: dict[str, str] = {}
    for given, value in url.query.items():
        name = _OTHER_NAMES.get(given, given)
        if name in _SETTLED:
            continue
        if name not in _KNOWN:
            raise ConfigError(
                f"database_url has a parameter {given}, which is not known for MariaDB: remove it, or use "
                f"one of {', '.join(sorted(_KNOWN))}"
            )
        if not isinstance(value, str):
            raise ConfigError(f"database_url names the parameter {given} twice")
        query[name] = value
    return url.set(drivername=OWN_DRIVER, query=query)
