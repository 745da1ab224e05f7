"""How columns are made on MariaDB: nothing is cut off, and texts are equal when they are the same bytes.

Importing this has SQLAlchemy write the types so, for whichever table.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

COLLATION = "utf8mb4_nopad_bin"
"""Compares code points, trailing blanks included; ids that differ in case are two."""

_TEXT = f"CHARACTER SET utf8mb4 COLLATE {COLLATION}"


def column_of_json(kind: sa.types.TypeEngine[Any]) -> str:
    """The type of a column of JSON_TABLE for values of this kind; bytes come as hexadecimal digits."""
    if isinstance(kind, sa.String | sa.LargeBinary):
        return f"LONGTEXT {_TEXT}"
    return "DOUBLE" if isinstance(kind, sa.Float) else "BIGINT"


@compiles(sa.String, "mariadb")
def _string(element: sa.String, _compiler: Any, **_options: Any) -> str:
    return f"LONGTEXT {_TEXT}" if element.length is None else f"VARCHAR({element.length}) {_TEXT}"


@compiles(sa.Text, "mariadb")
def _text(_element: sa.Text, _compiler: Any, **_options: Any) -> str:
    return f"LONGTEXT {_TEXT}"  # TEXT ends at 64 KiB


@compiles(sa.LargeBinary, "mariadb")
def _binary(element: sa.LargeBinary, _compiler: Any, **_options: Any) -> str:
    # Only what has a length can be indexed as a whole.
    return "LONGBLOB" if element.length is None else f"VARBINARY({element.length})"
