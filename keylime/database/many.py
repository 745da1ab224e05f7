"""Many rows in one statement. Sent one by one they would need a pipeline, or wait for as many answers."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from keylime.database.mariadb.columns import column_of_json

if TYPE_CHECKING:  # the dialect of the database in use is loaded with it, and no other
    from sqlalchemy.dialects import postgresql, sqlite

_GIVEN = "_given"
_NEW = "_new_"
_DOCUMENT = "_document"
_IN_ONE_DOCUMENT = 1000  # rows

Becomes = Callable[[sa.ColumnElement[Any], sa.ColumnElement[Any]], sa.ColumnElement[Any]]
"""What a column becomes, of what is stored and what is given."""


def insert_missing(connection: sa.Connection, table: sa.Table) -> sa.Insert:
    """An INSERT that leaves rows as they are which are there already."""
    if connection.dialect.name == "mariadb":
        from sqlalchemy.dialects import mysql  # only where it is in use

        # Not INSERT IGNORE, to which all else that is wrong is a warning as well.
        (key, *_) = table.primary_key.columns
        return mysql.insert(table).on_duplicate_key_update({key.name: key})
    return insert_or_conflict(connection.dialect.name, table).on_conflict_do_nothing()


def insert_or_change(
    connection: sa.Connection, table: sa.Table, names: Sequence[str], where: sa.ColumnElement[bool]
) -> sa.Insert:
    """An INSERT that gives the columns `names` of rows which are there already their new values.

    Those for which `where` does not hold stay as they are; it is about columns of the table, as they are
    stored.
    """
    if connection.dialect.name == "mariadb":
        from sqlalchemy.dialects import mysql  # only where it is in use

        on_mariadb = mysql.insert(table)
        # From left to right: what `where` looks at must be the last to change.
        looked_at = {
            column.name for column in sa.sql.visitors.iterate(where) if isinstance(column, sa.Column)
        }
        return on_mariadb.on_duplicate_key_update(
            [
                (name, sa.case((where, on_mariadb.inserted[name]), else_=table.c[name]))
                for name in sorted(names, key=lambda name: name in looked_at)
            ]
        )
    statement = insert_or_conflict(connection.dialect.name, table)
    return statement.on_conflict_do_update(
        index_elements=table.primary_key.columns,
        set_={name: statement.excluded[name] for name in names},
        where=where,
    )


def insert_or_conflict(dialect: str, table: sa.Table) -> "postgresql.Insert | sqlite.Insert":
    """An INSERT that may say what a row becomes that is there already; on PostgreSQL and SQLite.

    Both dialects have the statement, each has a construct of its own for it.
    """
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql  # only where it is in use

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite  # only where it is in use

    return sqlite.insert(table)


def insert_many(connection: sa.Connection, statement: sa.Insert, rows: Sequence[Mapping[str, Any]]) -> None:
    """Executes an INSERT, which has no values yet, for rows that all name the same columns."""
    if not rows:
        return
    names = list(rows[0])
    if connection.dialect.name == "mariadb":
        _, document = _as_document({name: statement.table.c[name] for name in names})
        values = sa.select(*(document[name] for name in names))
        for part in _parts(rows):
            connection.execute(statement.from_select(names, values), _document(part))
        return
    if connection.dialect.name != "postgresql":
        connection.execute(statement, list(rows))
        return
    columns = statement.table.c
    given = _as_table({name: columns[name] for name in names})
    chosen = sa.select(*(given.c[name] for name in names))
    connection.execute(statement.from_select(names, chosen), _columns(rows))


def update_many(
    connection: sa.Connection,
    table: sa.Table,
    keys: Mapping[str, sa.ColumnClause[Any]],
    rows: Sequence[Mapping[str, Any]],
    becomes: Mapping[str, Becomes] = {},
) -> None:
    """Changes each row whose columns have the values that `keys` names in one of `rows`.

    Names of keys begin with an underscore; whatever else `rows` name is what columns become, unless `becomes`
    says otherwise.
    """
    if not rows:
        return
    columns = {name: keys[name] if name in keys else table.c[name] for name in rows[0]}
    parameters: Any
    if connection.dialect.name == "mariadb":
        document, listed = _as_document(columns)
        matches = sa.and_(*(column == listed[name] for name, column in keys.items()))
        # From the left to the right: else a small table is searched as a whole, which waits for all locks.
        both = document.outerjoin(table, matches)
        new = {table.c[name]: value for name, value in _becoming(table, keys, listed, becomes).items()}
        for part in _parts(rows):
            connection.execute(sa.update(both).values(new), _document(part))
        return
    if connection.dialect.name == "postgresql":
        table_of_rows = _as_table(columns)
        given: dict[str, sa.ColumnElement[Any]] = {name: table_of_rows.c[name] for name in columns}
        parameters = _columns(rows)
    else:
        # A parameter with the name of a column would be what that column becomes.
        names = {name: name if name in keys else f"{_NEW}{name}" for name in columns}
        given = {name: sa.bindparam(names[name], type_=column.type) for name, column in columns.items()}
        parameters = [{names[name]: value for name, value in row.items()} for row in rows]
    values = _becoming(table, keys, given, becomes)
    chosen = (column == given[name] for name, column in keys.items())
    connection.execute(sa.update(table).where(*chosen).values(values), parameters)


def delete_many(
    connection: sa.Connection,
    table: sa.Table,
    keys: Mapping[str, sa.ColumnClause[Any]],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Deletes each row whose columns have the values that `keys` names in one of `rows`, all in `keys`."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        given = _as_table(keys)
        chosen = sa.exists().where(*(column == given.c[name] for name, column in keys.items()))
        connection.execute(sa.delete(table).where(chosen), _columns(rows))
        return
    matches = (column == sa.bindparam(name, type_=column.type) for name, column in keys.items())
    connection.execute(sa.delete(table).where(*matches), list(rows))


def _becoming(
    table: sa.Table,
    keys: Mapping[str, sa.ColumnClause[Any]],
    given: Mapping[str, sa.ColumnElement[Any]],
    becomes: Mapping[str, Becomes],
) -> dict[str, sa.ColumnElement[Any]]:
    """What each column becomes that is no key."""
    return {
        name: becomes[name](table.c[name], value) if name in becomes else value
        for name, value in given.items()
        if name not in keys
    }


def _parts(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    for start in range(0, len(rows), _IN_ONE_DOCUMENT):
        yield rows[start : start + _IN_ONE_DOCUMENT]


def _as_document(
    columns: Mapping[str, sa.ColumnClause[Any]],
) -> tuple[sa.Subquery, dict[str, sa.ColumnElement[Any]]]:
    """The parameter, a JSON document of all rows, as rows, and what each column is in them."""
    listed = ", ".join(
        f"c{place} {column_of_json(column.type)} PATH '$[{place}]'"
        for place, column in enumerate(columns.values())
    )
    # Nothing is computed within: MariaDB would cut off what it makes room for.
    query = sa.text(f"SELECT * FROM JSON_TABLE(:{_DOCUMENT}, '$[*]' COLUMNS ({listed})) AS listed")  # noqa: S608 - names of ours
    kinds = [
        sa.Text() if isinstance(column.type, sa.LargeBinary) else column.type for column in columns.values()
    ]
    rows = query.columns(*(sa.column(f"c{place}", kind) for place, kind in enumerate(kinds))).subquery(_GIVEN)
    return rows, {
        name: sa.func.unhex(given, type_=column.type) if isinstance(column.type, sa.LargeBinary) else given
        for (name, column), given in zip(columns.items(), rows.c, strict=True)
    }


def _document(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    values = [[_plain(value) for value in map(row.get, rows[0])] for row in rows]
    return {_DOCUMENT: json.dumps(values, ensure_ascii=False)}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    return int(value) if isinstance(value, bool) else value


def _as_table(columns: Mapping[str, sa.ColumnClause[Any]]) -> sa.TableValuedAlias:
    """The parameters, an array for each column, as rows."""
    from sqlalchemy.dialects import postgresql  # only where it is in use

    arrays = (
        sa.cast(sa.bindparam(f"{name}_values"), postgresql.ARRAY(_exact(column.type)))
        for name, column in columns.items()
    )
    types = (sa.column(name, _exact(column.type)) for name, column in columns.items())
    return sa.func.unnest(*arrays).table_valued(*types, name=_GIVEN).render_derived()


def _exact(kind: sa.types.TypeEngine[Any]) -> sa.types.TypeEngine[Any]:
    # A cast to varchar(n) would cut off what is too long, where storing it is refused.
    return sa.Text() if isinstance(kind, sa.String) else kind


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {f"{name}_values": [row[name] for row in rows] for name in rows[0]}
