import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keylime.checkup import Grade
from keylime.config.loader import load_settings
from keylime.pki.lifetimes import CertificateFile, Holder, Lifetime
from keylime_tenant.commands.doctor import peer_clock_result
from keylime_tenant.examination import (
    certificate_result,
    clock_result,
    database_result,
    directories,
    disk,
    sqlite_path,
    store_result,
    waiting_agents,
)
from tests.captures import CA_DIRECTORY

NOW = datetime(2026, 11, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("said", "grade"), [("yes", Grade.OK), ("no", Grade.WARNING), ("", Grade.UNKNOWN), ("?", Grade.UNKNOWN)]
)
def test_the_clock(said: str, grade: Grade) -> None:
    found = clock_result(said, NOW)
    assert found.grade is grade
    assert ("timedatectl set-ntp true" in found.remedy) is (grade is Grade.WARNING)


@pytest.mark.parametrize(
    ("ahead_s", "grade", "told"),
    [(29.0, Grade.OK, "as ours"), (31.0, Grade.BAD, "31 s ahead of"), (-4000.0, Grade.BAD, "4000 s behind")],
)
def test_the_clocks_of_services(ahead_s: float, grade: Grade, told: str) -> None:
    found = peer_clock_result("clock of verifier", ahead_s)
    assert found.grade is grade
    assert told in found.text


@pytest.mark.parametrize(
    ("days", "grade"), [(300, Grade.OK), (10, Grade.WARNING), (-1, Grade.BAD), (500, Grade.BAD)]
)
def test_certificates_and_their_ends(days: int, grade: Grade) -> None:
    ends = NOW + timedelta(days=days)
    life = Lifetime(ends - timedelta(days=365), ends)
    found = certificate_result(CertificateFile(Holder.CLIENT, Path("/x/client-cert.crt"), life), NOW)
    assert found.grade is grade
    assert found.subject == "certificate /x/client-cert.crt"
    assert f"{found.text}; {found.remedy}".count("client-cert.crt") <= 1
    if days == -1:
        assert found.text == "ended on 2026-11-29 00:00 UTC"
        assert "put a new one in its place" in found.remedy


def test_a_working_directory_must_be_there_and_ours(tmp_path: Path) -> None:
    (missing,) = directories({"KEYLIME_DIR": str(tmp_path / "none")})
    assert missing.grade is Grade.BAD
    loose = tmp_path / "loose"
    loose.mkdir()
    loose.chmod(0o777)
    found, _ = directories({"KEYLIME_DIR": str(loose)})
    assert found.grade is Grade.BAD
    assert "written by everybody" in found.text
    loose.chmod(0o700)
    found, room = directories({"KEYLIME_DIR": str(loose)})
    assert found.grade is Grade.OK
    assert room == disk(loose)


def test_a_database_is_read_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "cv_data.sqlite"
    assert database_result("database of verifier", path).grade is Grade.BAD
    assert not path.exists()
    path.write_bytes(b"no database at all, but long enough to have a header" * 10)
    assert "cannot be read" in database_result("database of verifier", path).text
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE x (y)")
    assert database_result("database of verifier", path).grade is Grade.OK
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE x")
        connection.execute("VACUUM")
    empty = database_result("database of verifier", path)
    assert (empty.grade, empty.remedy) == (Grade.BAD, "start verifier, which makes its tables")


def test_where_the_database_is(tmp_path: Path) -> None:
    def place(url: str) -> Path | None:
        environ = {"KEYLIME_DIR": str(tmp_path), "KEYLIME_VERIFIER_DATABASE_URL": url}
        return sqlite_path(load_settings("verifier", environ=environ), tmp_path / "usual")

    assert place("sqlite") == tmp_path / "usual"
    assert place("sqlite:////var/x.sqlite") == Path("/var/x.sqlite")
    assert place("postgresql://db.example/verifier") is None


def test_without_makers_no_tpm_is_trusted(tmp_path: Path) -> None:
    assert store_result(tmp_path / "none").grade is Grade.BAD
    (tmp_path / "store").mkdir()
    assert store_result(tmp_path / "store").text == "is empty, so that no TPM's maker is trusted"
    (tmp_path / "store" / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    assert "broken.pem" in store_result(tmp_path / "store").text
    assert store_result(CA_DIRECTORY).grade is Grade.OK


def test_who_waits_is_registered_and_not_attested() -> None:
    assert waiting_agents(["c", "a", "b"], ["a"]) == ("c", "b")
