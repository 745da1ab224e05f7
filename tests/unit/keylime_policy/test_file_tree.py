"""Hashing a directory tree."""

import hashlib
import os
from pathlib import Path

import pytest

from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime_policy.file_tree import (
    foreign_mounts,
    parse_mounts,
    ramdisk_digests,
    skipped_directories,
    tree_digests,
)
from keylime_policy.messages import Messages

MESSAGES = Messages("test")
SHA256 = HashAlgorithm.SHA256


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("usr/bin/true", "opt/with blank/a b", "var/log/x", "tmp/y", "usr/tmp/z", "home/me/own"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (root / "usr/bin/link").symlink_to("true")
    (root / "usr/var").symlink_to("../var")
    os.mkfifo(root / "usr/fifo")
    return root


def digests(root: Path, *skip: str, algorithm: HashAlgorithm = SHA256) -> dict[str, set[str]]:
    return tree_digests(root, algorithm, MESSAGES, skip=skip, owner=os.getuid())


def test_regular_files_are_hashed_under_the_names_that_ima_prints(tree: Path) -> None:
    assert digests(tree) == {
        name.replace(" ", "_"): {hashlib.sha256(name[1:].encode()).hexdigest()}
        for name in ("/usr/bin/true", "/opt/with blank/a b", "/usr/tmp/z", "/home/me/own")
    }


def test_files_of_other_owners_are_passed_over(tree: Path) -> None:
    assert tree_digests(tree, SHA256, MESSAGES, owner=os.getuid() + 1) == {}


@pytest.mark.parametrize("seen_from", ["inside", "outside"])
def test_directories_can_be_skipped_as_seen_from_inside_and_outside(tree: Path, seen_from: str) -> None:
    prefix = "" if seen_from == "inside" else str(tree)
    assert set(digests(tree, f"{prefix}/opt", f" {prefix}/home/me/", "")) == {"/usr/bin/true", "/usr/tmp/z"}


def test_every_algorithm_gives_its_own_length(tree: Path) -> None:
    for algorithm in (HashAlgorithm.SHA1, HashAlgorithm.SHA384, HashAlgorithm.SHA512):
        found = digests(tree, algorithm=algorithm)
        assert {len(digest) for values in found.values() for digest in values} == {2 * algorithm.size}


def test_a_name_that_is_not_utf8_is_left_out_aloud(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/usr/bad\xff")).write_text("x")
    assert len(digests(tree)) == 4
    assert "not UTF-8" in capsys.readouterr().err


def test_unreadable_files_are_named(tree: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root reads everything")
    (tree / "usr/bin/true").chmod(0)
    with pytest.raises(ConfigError, match=r"usr/bin/true: Permission denied; run as root"):
        digests(tree)


def test_a_missing_tree_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        digests(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="No such file"):
        ramdisk_digests(tmp_path / "nothing", SHA256, MESSAGES)


def test_the_standard_directories_are_those_of_the_tree() -> None:
    assert b"/srv/image/var" in skipped_directories(b"/srv/image", [])
    assert b"/var" in skipped_directories(b"/", [])
    assert b"/opt" in skipped_directories(b"/", ["/opt/"])


MOUNTS = rb"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:21 / /proc rw shared:1 - proc proc rw
24 22 254:1 / /srv/with\040blank rw - ext4 /dev/vdb rw
25 22 0:44 / /srv/share rw master:2 - nfs4 server:/ rw
broken line
"""


def test_mounts_of_another_type_are_left_out() -> None:
    mounts = parse_mounts(MOUNTS)
    assert mounts[b"/srv/with blank"] == b"ext4"
    assert foreign_mounts(b"/", mounts) == {b"/proc", b"/srv/share"}
    assert foreign_mounts(b"/srv/share", mounts) == frozenset()
    assert foreign_mounts(b"/srv", mounts) == {b"/srv/share"}
