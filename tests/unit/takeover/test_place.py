"""Where our tables are: beside an earlier Keylime's file, in their own database otherwise."""

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import make_url

from keylime.database.file import FOREIGN_TABLES
from keylime.takeover.place import DatabasePlace, own_file
from keylime_registrar.schema import metadata as registrar_metadata
from keylime_verifier.database.schema import metadata as verifier_metadata

OTHERS = FOREIGN_TABLES | {"allowlists", "mbpolicies", "attestations", "evidence_items", "sessions"}


def place_of(path: Path) -> DatabasePlace:
    return DatabasePlace.of(make_url(f"sqlite+pysqlite:///{path}"))


def make(path: Path, *tables: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        for table in tables:
            database.execute(f"CREATE TABLE {table} (x TEXT)")


def test_our_tables_and_theirs_can_stand_side_by_side() -> None:
    ours = set(registrar_metadata.tables) | set(verifier_metadata.tables)
    assert not ours & OTHERS, "on a server both are in one database"


def test_a_new_file_is_ours(tmp_path: Path) -> None:
    path = tmp_path / "cv_data.sqlite"
    place = place_of(path)
    assert (place.own.database, place.old, place.is_beside) == (str(path), None, False)


def test_ours_is_beside_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "cv_data.sqlite"
    make(path, "verifiermain")
    place = place_of(path)
    assert place.own.database == str(tmp_path / "cv_data.taken-over.sqlite")
    assert place.old is not None
    assert place.old.database == str(path)
    assert place.is_beside


def test_ours_is_found_when_the_old_one_is_gone_or_emptied(tmp_path: Path) -> None:
    path = tmp_path / "cv_data.sqlite"
    make(own_file(path), "keylime_verifier_schema")
    for _ in range(2):
        place = place_of(path)
        assert (place.own.database, place.old) == (str(own_file(path)), None)
        path.touch()


def test_a_file_of_ours_or_of_strangers_is_what_the_configuration_says(tmp_path: Path) -> None:
    for tables in (("keylime_verifier_schema", "verifiermain"), ("strangers",)):
        path = tmp_path / tables[0]
        make(path, *tables)
        make(own_file(path), "keylime_verifier_schema")
        assert place_of(path).own.database == str(path)
    garbage = tmp_path / "garbage"
    garbage.write_text("no database")
    assert place_of(garbage).own.database == str(garbage)


def test_a_server_has_both_in_one_database() -> None:
    url = make_url("postgresql+psycopg://h/n")
    assert DatabasePlace.of(url) == DatabasePlace(url, url)
    assert not DatabasePlace.of(url).is_beside
