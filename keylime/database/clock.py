"""The time as the database tells it: the one clock that all its users share."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class database_time(FunctionElement[float]):
    """Seconds since the epoch at the moment of the statement, to the millisecond or better."""

    type = sa.Double()
    inherit_cache = True


@compiles(database_time, "postgresql")
def _on_postgresql(_element: database_time, _compiler: Any, **_options: Any) -> str:
    return "EXTRACT(EPOCH FROM clock_timestamp())::float8"


@compiles(database_time, "sqlite")
def _on_sqlite(_element: database_time, _compiler: Any, **_options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"
