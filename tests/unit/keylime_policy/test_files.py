"""Files that options name."""

import stat
from pathlib import Path

import pytest

from keylime.errors import ConfigError, PolicyError
from keylime_policy.files import read_input, read_text, unusable, write_new, write_output
from keylime_policy.sources import blaming


def test_a_file_that_may_not_be_read_comes_with_the_remedy() -> None:
    error = unusable("--ima-log", "/x", PermissionError(13, "Permission denied"))
    assert str(error) == "--ima-log /x: Permission denied; run as root, or let this user read it"


def test_errors_name_option_and_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--a .*/gone: No such file or directory$"):
        read_input("--a", tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"^--a .*: Is a directory$"):
        write_output("--a", str(tmp_path), "x")
    (tmp_path / "bytes").write_bytes(b"a\xff")
    with pytest.raises(ConfigError, match=r"^--a .*/bytes: not UTF-8 text: .* at byte 1$"):
        read_text("--a", tmp_path / "bytes")
    with pytest.raises(ConfigError, match=r"^--a file: wrong$"), blaming("--a", "file"):
        raise PolicyError("wrong")


def test_a_byte_order_mark_is_no_part_of_lists_and_refused_in_front_of_json(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbf/usr/bin/x$\r\n")
    assert read_text("--excludelist", path) == "/usr/bin/x$\r\n"
    path.write_bytes(b'\xef\xbb\xbf {"meta": {}}')
    with pytest.raises(ConfigError, match=r"^POLICY .*/file: begins with a byte order mark: save it"):
        read_text("POLICY", path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"/a$\n/b$\n/caf\xe9$\n", "invalid continuation byte in line 3, at byte 12"),
        ("/a$\n".encode("utf-16"), "it is UTF-16, .* at byte 0"),
        (b"\xfe\xff\0/", "it is UTF-16, .* at byte 0"),
    ],
)
def test_text_of_another_encoding_is_named_with_line_and_remedy(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"/file: not UTF-8 text: save it as UTF-8; {reason}$"):
        read_text("--excludelist", tmp_path / "file")


@pytest.mark.parametrize("path", [None, "-", "/dev/stdout"])
def test_stdout_is_the_default(path: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    write_output("-o", path, "text")
    assert capsys.readouterr().out == "text"


def test_new_files_have_the_permissions_asked_for_and_replace_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new"
    write_new("-o", str(path), b"x", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="exists already"):
        write_new("-o", str(path), b"y", mode=0o600)
    path.write_bytes(b"x")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="exists already"):
        write_new("-o", str(link), b"y", mode=0o600)
