import os
import stat
from pathlib import Path

import pytest

from keylime.errors import ConfigError
from keylime.pki import files


def test_a_written_file_has_exactly_the_mode_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    before = os.umask(0o077)
    try:
        files.write_atomically(path, b"one", 0o640)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.read_bytes() == b"one"


def test_a_replaced_file_keeps_mode_and_owner_and_a_new_one_is_its_directorys(tmp_path: Path) -> None:
    """What root renews in a service's directory must stay readable to the service."""
    path = tmp_path / "server-cert.crt"
    path.write_bytes(b"one")
    path.chmod(0o604)
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(path, 12345, 54321)
        os.chown(tmp_path, 12346, 54322)
    files.replace_keeping_access(path, b"two", 0o640)
    files.replace_keeping_access(tmp_path / "new", b"three", 0o640)
    kept, new = path.stat(), (tmp_path / "new").stat()
    assert path.read_bytes() == b"two"
    assert (stat.S_IMODE(kept.st_mode), stat.S_IMODE(new.st_mode)) == (0o604, 0o640)
    if is_root:
        assert (kept.st_uid, kept.st_gid) == (12345, 54321)
        assert (new.st_uid, new.st_gid) == (12346, 54322)


def test_writing_replaces_a_symbolic_link_and_leaves_its_target_alone(tmp_path: Path) -> None:
    target = tmp_path / "passwd"
    target.write_bytes(b"precious")
    link = tmp_path / "key.pem"
    link.symlink_to(target)
    files.write_atomically(link, b"new", 0o600)
    assert target.read_bytes() == b"precious"
    assert not link.is_symlink()
    assert link.read_bytes() == b"new"


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    with pytest.raises(ConfigError, match="name cannot be written"):
        files.write_atomically(tmp_path / "name", b"x", 0o600)
    assert [entry.name for entry in tmp_path.iterdir()] == ["name"]


def test_service_files_are_not_read_through_links_but_configured_ones_are(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    assert files.read_file(tmp_path / "link") == b"x"
    with pytest.raises(ConfigError, match="link cannot be read"):
        files.read_service_file(tmp_path / "link")


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):
        files.read_file(tmp_path / "pipe")


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o777])
def test_a_private_key_open_to_others_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(b"x")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 0600 {path}"):
        files.read_private_key_file(path)


def test_a_private_key_may_be_readable_by_its_group(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(b"x")
    path.chmod(0o640)
    assert files.read_private_key_file(path) == b"x"


def test_an_endless_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(files.MAX_FILE_SIZE + 1)
    with pytest.raises(ConfigError, match="larger than"):
        files.read_file(path)


def test_h2_a_service_directory_may_be_a_link_to_one_that_nobody_else_may_change(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "ca").symlink_to("elsewhere")
    files.require_directory(tmp_path / "ca")
    (tmp_path / "elsewhere").chmod(0o777)
    with pytest.raises(
        ConfigError, match=r"/elsewhere may be written by everybody \(mode 0777\); run: chmod"
    ):
        files.require_directory(tmp_path / "ca")


def test_h2_nothing_is_made_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "ca").symlink_to("elsewhere")
    for target in ("nothing", "a directory", "a file"):
        if target == "a directory":
            (tmp_path / "elsewhere").mkdir()
        if target == "a file":
            (tmp_path / "elsewhere").rmdir()
            (tmp_path / "elsewhere").write_bytes(b"")
        with pytest.raises(ConfigError, match="ca is a symbolic link, and nothing is made through it"):
            files.ensure_private_directory(tmp_path / "ca")
    with pytest.raises(ConfigError, match="ca is not a directory"):
        files.require_directory(tmp_path / "ca")


def test_a_new_service_directory_is_private(tmp_path: Path) -> None:
    files.ensure_private_directory(tmp_path / "a" / "ca")
    assert stat.S_IMODE((tmp_path / "a" / "ca").stat().st_mode) == 0o700
