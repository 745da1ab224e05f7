import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import ConfigError
from keylime.secure_mount import (
    Mount,
    SecureDirectory,
    empty_secure_directory,
    ensure_secure_directory,
    mounted_at,
    parse_mountinfo,
    refusal,
)

_SECURE = Path("/var/lib/keylime/secure")
_TMPFS = Mount(os.makedev(0, 62), _SECURE, frozenset({"rw", "nosuid"}), "tmpfs")
_LINES = rb"""22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/root rw
62 22 0:62 / /var/lib/keylime/secure rw,nosuid shared:33 master:1 - tmpfs tmpfs rw,size=1024k,mode=700
63 22 0:63 / /mnt/with\040blank\134\011\012x rw - fuse.sshfs user@host:/ - odd rw
"""


def _status(*, device: int = _TMPFS.device, mode: int = 0o40700, uid: int = 0) -> os.stat_result:
    return os.stat_result((mode, 1, device, 1, uid, 0, 0, 0, 0, 0))


def test_mountinfo_is_read_exactly() -> None:
    root, secure, odd = parse_mountinfo(_LINES)
    assert root == Mount(os.makedev(253, 0), Path("/"), frozenset({"rw", "relatime"}), "ext4")
    assert secure == _TMPFS
    assert (str(odd.mount_point), odd.fs_type) == ("/mnt/with blank\\\t\nx", "fuse.sshfs")


def test_the_kernels_own_list_is_understood() -> None:
    mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    assert mounted_at(mounts, Path("/proc")) is not None


def test_a_name_that_only_contains_the_path_is_another_mount() -> None:
    text = rb"62 22 0:62 / /tmp/\012/var/lib/keylime/secure rw - tmpfs tmpfs rw" + b"\n"
    assert mounted_at(parse_mountinfo(text), _SECURE) is None
    text = b"62 22 0:62 /var/lib/keylime/secure /home/x rw - tmpfs /var/lib/keylime/secure rw\n"
    assert mounted_at(parse_mountinfo(text), _SECURE) is None


def test_the_last_of_several_mounts_on_the_path_counts() -> None:
    over = b"64 62 8:1 / /var/lib/keylime/secure rw - ext4 /dev/sda1 rw\n"
    found = mounted_at(parse_mountinfo(_LINES + over), _SECURE)
    assert found is not None
    assert found.fs_type == "ext4"


@pytest.mark.parametrize(
    "line",
    [
        b"x",
        b"62 22 0:62 / /a rw",
        b"62 22 0:62 / /a rw - ",
        b"62 22 zero / /a rw - tmpfs",
        b"62 22 0:62 / a rw - tmpfs tmpfs rw",
        b"62 22 0:62 - tmpfs tmpfs rw",
        b"62 22 0:99999999999999999999 / /a rw - tmpfs tmpfs rw",
    ],
)
def test_a_line_of_another_shape_is_refused(line: bytes) -> None:
    with pytest.raises(ConfigError, match="unknown shape"):
        parse_mountinfo(line + b"\n")


@given(st.binary())
def test_any_bytes_are_mounts_or_a_config_error(content: bytes) -> None:
    try:
        mounts = parse_mountinfo(content)
    except ConfigError:
        return
    assert all(found.mount_point.is_absolute() for found in mounts)


def test_an_ordinary_tmpfs_is_accepted() -> None:
    assert refusal(_SECURE, _TMPFS, _status(), frozenset({0})) is None


@pytest.mark.parametrize(
    ("found", "status", "reason"),
    [
        (
            Mount(_TMPFS.device, _SECURE, frozenset({"rw"}), "ext4"),
            _status(),
            "already mounted on wrong file system type: ext4. Unmount to continue.",
        ),
        (Mount(_TMPFS.device, _SECURE, frozenset({"rw"}), "fuse.tmpfs"), _status(), "fuse.tmpfs"),
        (Mount(_TMPFS.device, _SECURE, frozenset({"ro"}), "tmpfs"), _status(), "read-only"),
        (_TMPFS, _status(device=1), "hidden by another mount"),
        (_TMPFS, _status(uid=1000), "belongs to user 1000"),
        (_TMPFS, _status(mode=0o40750), "chmod 0700"),
        (_TMPFS, _status(mode=0o41777), "mode 1777"),
    ],
)
def test_what_others_could_have_made_is_refused(found: Mount, status: os.stat_result, reason: str) -> None:
    assert reason in (refusal(_SECURE, found, status, frozenset({0, 998})) or "")


def test_test_mode_uses_a_plain_closed_directory(tmp_path: Path) -> None:
    secure = ensure_secure_directory(tmp_path, "1m", environ={"KEYLIME_TEST": "on"})
    assert secure == SecureDirectory(tmp_path / "tmpfs-dev", mounted_by_us=False)
    assert stat.S_IMODE(secure.path.stat().st_mode) == 0o700
    assert ensure_secure_directory(tmp_path, "1m", environ={"KEYLIME_TEST": "on"}) == secure


def test_test_mode_refuses_a_link_and_an_open_directory(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir(mode=0o700)
    (tmp_path / "tmpfs-dev").symlink_to(target)
    with pytest.raises(ConfigError, match="is a symbolic link"):
        ensure_secure_directory(tmp_path, "1m", environ={"KEYLIME_TEST": "on"})
    (tmp_path / "tmpfs-dev").unlink()
    (tmp_path / "tmpfs-dev").mkdir()
    (tmp_path / "tmpfs-dev").chmod(0o755)
    with pytest.raises(ConfigError, match="open to others"):
        ensure_secure_directory(tmp_path, "1m", environ={"KEYLIME_TEST": "on"})


def test_a_missing_working_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"working directory {tmp_path / 'none'}: No such file"):
        ensure_secure_directory(tmp_path / "none", "1m", environ={})


def test_without_root_and_without_a_mount_the_operator_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(ConfigError, match=r"var-lib-keylime-secure\.mount"):
        ensure_secure_directory(tmp_path, "1m", environ={})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gets as far as mounting")
@pytest.mark.parametrize("size", ["", "1m,mode=0777", "0", "-1", "1 m", "1m\n", "a lot"])
def test_a_size_cannot_carry_other_mount_options(tmp_path: Path, size: str) -> None:
    with pytest.raises(ConfigError, match="secure_size"):
        ensure_secure_directory(tmp_path, size, environ={})


def test_emptying_deletes_everything_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    secure = tmp_path / "secure"
    (secure / "unzipped" / "deep").mkdir(parents=True)
    (secure / "unzipped" / "link").symlink_to(outside)
    (secure / "link").symlink_to(outside)
    (secure / "derived_tci_key").touch(0o400)
    empty_secure_directory(SecureDirectory(secure, mounted_by_us=False))
    assert list(secure.iterdir()) == []
    assert (outside / "kept").exists()


def test_emptying_what_is_gone_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty_secure_directory(SecureDirectory(tmp_path / "none", mounted_by_us=False))
    assert "cannot empty" in caplog.text


def _in_mount_namespace(directory: Path, script: str) -> str:
    """What `script` prints, run as root where mounts are seen by nobody else."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:  # noqa: S607
        pytest.skip("mounting needs root and CAP_SYS_ADMIN")
    command = ["unshare", "-m", sys.executable, "-c", script, str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert result.returncode == 0, result.stderr
    return result.stdout


_PRELUDE = """
import os, subprocess, sys
from pathlib import Path
from keylime.errors import ConfigError
from keylime import secure_mount
from keylime.secure_mount import *
work = Path(sys.argv[1])
secure = work / "secure"
os.environ["KEYLIME_DIR"] = str(work)
os.chown(work, 65534, 65534)
def ensure(**options):
    try:
        return ensure_secure_directory(work, "64k", environ={}, **options)
    except ConfigError as error:
        return str(error)
def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)
"""


def test_root_mounts_a_small_closed_tmpfs_for_the_agents_user_and_takes_it_away_again(tmp_path: Path) -> None:
    script = """
made = ensure(owner=Owner(65534, 65534))
status = os.stat(secure)
print(made.mounted_by_us, oct(status.st_mode), status.st_uid, status.st_gid)
print(os.statvfs(secure).f_blocks * os.statvfs(secure).f_frsize)
(secure / "key").touch()
again = ensure(owner=Owner(65534, 65534))
print(again.mounted_by_us, secure_mount.mount() == str(secure), os.stat(secure).st_uid)
unmount_secure_directory(again)
print(os.path.ismount(secure), os.listdir(secure))
empty_secure_directory(again)
print(os.path.ismount(secure), os.listdir(secure))
unmount_secure_directory(made)
print(os.path.ismount(secure))
"""
    assert _in_mount_namespace(tmp_path, _PRELUDE + script).splitlines() == [
        "True 0o40700 65534 65534",
        "65536",
        "False True 65534",
        "True ['key']",
        "True []",
        "False",
    ]


def test_an_existing_tmpfs_of_root_is_handed_over_to_the_agents_user(tmp_path: Path) -> None:
    script = """
secure.mkdir()
mount("-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", str(secure))
print(ensure(owner=Owner(65534, 65534)).mounted_by_us, os.stat(secure).st_uid)
"""
    assert _in_mount_namespace(tmp_path, _PRELUDE + script) == "False 65534\n"


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (
            'secure.mkdir(); mount("-t", "ramfs", "ramfs", str(secure))',
            "wrong file system type: ramfs. Unmount",
        ),
        (
            'secure.mkdir(); mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(secure))',
            "open to others (mode 1777)",
        ),
        (
            'secure.mkdir(); mount("-t", "tmpfs", "-o", "mode=0700,uid=1234", "tmpfs", str(secure))',
            "belongs to user 1234",
        ),
        (
            'secure.mkdir(); mount("-t", "tmpfs", "-o", "mode=0700", "tmpfs", str(secure)); '
            'mount("-t", "tmpfs", "tmpfs", str(work)); secure.mkdir(mode=0o700)',
            "hidden by another mount",
        ),
        ('(work / "other").mkdir(); secure.symlink_to(work / "other")', "is a symbolic link"),
        ('secure.write_text("")', "cannot"),
    ],
)
def test_anything_else_in_its_place_is_fatal_and_stays(tmp_path: Path, prepare: str, expected: str) -> None:
    check = "before = os.path.ismount(secure)\nprint(ensure())\nassert os.path.ismount(secure) == before\n"
    assert expected in _in_mount_namespace(tmp_path, f"{_PRELUDE}{prepare}\n{check}")
