"""Stored databases of earlier Keylime releases, for one test each."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

DATA = Path(__file__).parents[1] / "data" / "old-databases"
RELEASES = sorted(path.name for path in DATA.iterdir() if path.is_dir())
_TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    "INTEGER": sa.BigInteger(),
    "BLOB": sa.LargeBinary(),
    "BOOLEAN": sa.Boolean(),
}
_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")


def old_installation(release: str, directory: Path) -> Path:
    """Both files of a release in `directory`, which is returned."""
    directory.mkdir(mode=0o700, exist_ok=True)
    for source in (DATA / release).glob("*.sqlite"):
        shutil.copyfile(source, directory / source.name)
    return directory


def old_answers(release: str) -> dict[str, Any]:
    """What the release answered to reads, by kind and id."""
    answers: dict[str, Any] = json.loads((DATA / release / "reference-api.json").read_text())
    return answers


def copy_to_server(release: str, url: sa.URL) -> None:
    """Puts the tables of both files into one database of a server."""
    engine = sa.create_engine(url)
    try:
        for file in (DATA / release).glob("*.sqlite"):
            with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as source:
                names = [
                    row[0] for row in source.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                ]
                for name in names:
                    _copy_table(source, name, engine)
    finally:
        engine.dispose()


def _copy_table(source: sqlite3.Connection, name: str, engine: sa.Engine) -> None:
    described = source.execute(f"PRAGMA table_info({name})").fetchall()
    columns = [sa.Column(row[1], _TYPES.get(row[2], _TEXT)) for row in described]
    table = sa.Table(name, sa.MetaData(), *columns)
    rows = source.execute(f"SELECT * FROM {name}").fetchall()  # noqa: S608
    flags = {row[1] for row in described if row[2] == "BOOLEAN"}
    with engine.begin() as connection:
        table.create(connection)
        for row in rows:
            values = dict(zip((column.name for column in columns), row, strict=True))
            connection.execute(
                sa.insert(table),
                {key: bool(one) if key in flags and one is not None else one for key, one in values.items()},
            )
