"""The clock of one PostgreSQL database, which a test may set; the server's own stays as it is."""

import psycopg

_CLOCK = """
CREATE SCHEMA stepping;
CREATE TABLE stepping.step (seconds float);
INSERT INTO stepping.step VALUES (0);
CREATE FUNCTION stepping.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
  'SELECT pg_catalog.clock_timestamp() + (SELECT seconds FROM stepping.step) * interval ''1 second''';
"""


def install_stepping_clock(url: str) -> None:
    """Makes the clock of an empty database one that can be set; its tables are made beside it."""
    name = url.rpartition("/")[2]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_CLOCK)
        connection.execute(f"ALTER DATABASE {name} SET search_path = stepping, pg_catalog, public".encode())


def step_clock(url: str, seconds: float) -> None:
    """It is so many seconds ahead of the server's from now on."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE stepping.step SET seconds = %s", [seconds])
