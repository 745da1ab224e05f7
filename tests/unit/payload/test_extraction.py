import stat
from pathlib import Path

import pytest

from keylime.payload.archive import (
    PayloadRefused,
    pack_archive,
)
from keylime.payload.extraction import extract_archive

FILES = {"autorun.sh": b"#!/bin/sh\necho hello\n", "keys/id": b"\x00" * 100}
ARCHIVE = pack_archive(FILES)


def test_extraction_writes_private_files(tmp_path: Path) -> None:
    assert extract_archive(ARCHIVE, tmp_path) == tuple(FILES)
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")
    }
    assert modes == {"autorun.sh": 0o600, "keys": 0o700, "keys/id": 0o600}
    assert (tmp_path / "keys" / "id").read_bytes() == FILES["keys/id"]


def test_nothing_is_written_of_an_archive_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PayloadRefused):
        extract_archive(pack_archive({"good": b"x", "../evil": b"x"}), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not (tmp_path.parent / "evil").exists()


def test_extraction_follows_no_link_and_replaces_nothing(tmp_path: Path) -> None:
    outside, directory = tmp_path / "outside", tmp_path / "unzipped"
    outside.mkdir()
    directory.mkdir()
    (directory / "keys").symlink_to(outside)
    with pytest.raises(PayloadRefused, match="cannot be written"):
        extract_archive(ARCHIVE, directory)
    assert list(outside.iterdir()) == []
    with pytest.raises(PayloadRefused, match="cannot be written"):
        extract_archive(pack_archive({"autorun.sh": b"second"}), directory)
    assert (directory / "autorun.sh").read_bytes() == FILES["autorun.sh"]


def test_the_directory_itself_may_not_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(PayloadRefused, match="cannot be written"):
        extract_archive(ARCHIVE, tmp_path / "link")
