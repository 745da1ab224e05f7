"""Policies made of packages and images: real packages and signatures, over HTTP and from directories."""

import datetime
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from keylime.errors import ConfigError
from keylime_policy.create_runtime import RuntimeSources, create_runtime_policy
from keylime_policy.messages import Messages
from keylime_policy.packages.databases import _queried
from keylime_policy.source_options import PackageSource
from tests.fakes.repositories import (
    RPM,
    RPM_FILES,
    RPM_KEY,
    Signer,
    index_debs,
    index_rpms,
    make_deb,
    make_image,
    served,
)

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("gpg", "gpgv", "dpkg-deb"))), reason="gpg, gpgv or dpkg-deb is not installed"
)

NOW = datetime.datetime(2026, 2, 3, tzinfo=datetime.UTC)
MESSAGES = Messages("test")
FILES = {"/usr/bin/tool": b"tool", "/bin/sh": b"shell", "/etc/a b.conf": b"x=1"}


def sha256(content: bytes) -> list[str]:
    return [hashlib.sha256(content).hexdigest()]


DEB_FILES = {
    "/usr/bin/tool": sha256(b"tool"),
    "/bin/sh": sha256(b"shell"),
    "/usr/bin/sh": sha256(b"shell"),
    "/etc/a_b.conf": sha256(b"x=1"),
    "/usr/lib/other.so": sha256(b"other"),
}


def digests(option: str, where: object, *, algorithm: str | None = None, **more: Any) -> dict[str, list[str]]:
    source = PackageSource(option=option, where=str(where), workers=2, **more)
    sources = RuntimeSources(packages=(source,), algorithm=algorithm)
    document, _ = create_runtime_policy(sources, MESSAGES, NOW)
    found: dict[str, list[str]] = document["digests"]
    return found


@dataclass(frozen=True)
class Keys:
    ours: Signer
    other: Signer
    file: str
    other_file: str


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    home = tmp_path_factory.mktemp("keys")
    ours, other = Signer(home / "ours", "ours@localhost"), Signer(home / "other", "other@localhost")
    (home / "ours.asc").write_bytes(ours.armoured)
    (home / "other.gpg").write_bytes(other.binary)
    yield Keys(ours, other, str(home / "ours.asc"), str(home / "other.gpg"))
    ours.close()
    other.close()


@pytest.fixture
def debs(tmp_path: Path, keys: Keys) -> Path:
    root = tmp_path / "debian"
    (root / "pool").mkdir(parents=True)
    make_deb(root / "pool/one.deb", FILES)
    make_deb(root / "pool/two.deb", {"/usr/lib/other.so": b"other"}, compression="zstd")
    (root / "dists/stable/InRelease").parent.mkdir(parents=True)
    (root / "dists/stable/InRelease").write_bytes(keys.ours.inline(index_debs(root, "stable")))
    return root


SUITE: dict[str, Any] = {"suite": "stable", "architectures": ("amd64",)}


def test_a_debian_repository_is_read_here_and_over_http(debs: Path, keys: Keys) -> None:
    trusted = {**SUITE, "keys": (keys.file,)}
    assert digests("--local-deb-repo", debs, **trusted) == DEB_FILES
    with served(debs) as address:
        assert digests("--remote-deb-repo", address, **trusted) == DEB_FILES
        assert digests("--remote-deb-repo", f"{address}/", components=("main",), **trusted) == DEB_FILES
        with pytest.raises(ConfigError, match=r"lists no index of packages for contrib/binary-amd64"):
            digests("--remote-deb-repo", address, components=("contrib",), **trusted)
        with pytest.raises(ConfigError, match=r"has no dists/sid/InRelease and no .*--deb-suite"):
            digests("--remote-deb-repo", address, suite="sid", keys=(keys.file,))
    flat = index_debs(debs, "flat").replace(b"main/binary-amd64/", b"")
    shutil.copy(debs / "dists/flat/main/binary-amd64/Packages.xz", debs)
    (debs / "InRelease").write_bytes(keys.ours.inline(flat))
    assert digests("--local-deb-repo", debs, keys=(keys.file,)) == DEB_FILES
    release = debs / "dists/stable/InRelease"
    text = index_debs(debs, "stable", valid_until="Sat, 03 Jan 2026 00:00:00 UTC")
    release.with_name("Release").write_bytes(text)
    release.with_name("Release.gpg").write_bytes(keys.ours.detached(text))
    release.unlink()
    assert digests("--local-deb-repo", debs, **trusted) == DEB_FILES


def test_a_debian_repository_is_believed_by_its_signature(
    debs: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    release = debs / "dists/stable/InRelease"
    with pytest.raises(ConfigError, match="signed by a key that is not among those given"):
        digests("--local-deb-repo", debs, keys=(keys.other_file,), **SUITE)
    signed = release.read_bytes()
    release.write_bytes(signed.replace(b"Origin: test", b"Origin: evil"))
    with pytest.raises(ConfigError, match=r"InRelease: its signature does not hold"):
        digests("--local-deb-repo", debs, keys=(keys.other_file, keys.file), **SUITE)
    for trick in (b"Origin: before\n" + signed, signed + signed):
        release.write_bytes(trick)
        with pytest.raises(ConfigError, match="is not one signed text"):
            digests("--local-deb-repo", debs, keys=(keys.file,), **SUITE)
    release.write_bytes(signed.replace(b"Origin: test", b"Origin: evil"))
    assert digests("--local-deb-repo", debs, unsigned=True, **SUITE) == DEB_FILES
    assert "nobody has checked who signed it" in capsys.readouterr().err
    release.with_name("Release").write_bytes(index_debs(debs, "stable"))
    release.unlink()
    with pytest.raises(ConfigError, match=r"Release: is not signed; --unsigned-repository"):
        digests("--local-deb-repo", debs, keys=(keys.file,), **SUITE)
    with pytest.raises(ConfigError, match="holds no OpenPGP public key"):
        digests("--local-deb-repo", debs, keys=(__file__,), **SUITE)


def test_a_package_or_index_that_is_another_is_named(debs: Path, keys: Keys) -> None:
    trusted = {**SUITE, "keys": (keys.file,)}
    make_deb(debs / "pool/two.deb", {"/usr/lib/other.so": b"evil"})
    with pytest.raises(ConfigError, match=r"pool/two\.deb: is not what the index says"):
        digests("--local-deb-repo", debs, **trusted)
    (debs / "pool/two.deb").unlink()
    with served(debs) as address, pytest.raises(ConfigError, match=r"pool/two\.deb: is not there"):
        digests("--remote-deb-repo", address, **trusted)
    (debs / "dists/stable/main/binary-amd64/Packages.xz").write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"Packages\.xz: is not what the index says"):
        digests("--local-deb-repo", debs, **trusted)


def test_a_directory_of_packages_is_taken_as_it_is(debs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert digests("--local-deb-repo", debs / "pool") == DEB_FILES
    assert "taken as they are" in capsys.readouterr().err
    (debs / "pool/one.deb").write_bytes(b"!<arch>\n" + b"x" * 100)
    with pytest.raises(ConfigError, match=r"one\.deb: a header of the ar archive is damaged"):
        digests("--local-deb-repo", debs / "pool")
    with pytest.raises(ConfigError, match=r"has no Release file and no package"):
        digests("--local-deb-repo", debs / "dists")


@pytest.fixture
def rpms(tmp_path: Path) -> Path:
    root = tmp_path / "rpms"
    root.mkdir()
    shutil.copy(RPM, root)
    index_rpms(root)
    return root


RPM_DIGESTS = {name: [digest] for name, digest in RPM_FILES.items()}


def test_an_rpm_repository_is_read_here_and_over_http(
    rpms: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    assert digests("--local-rpm-repo", rpms) == RPM_DIGESTS
    assert "is not signed; nothing vouches" in capsys.readouterr().err
    content = index_rpms(rpms)
    data = rpms / "repodata"
    (data / "repomd.xml.asc").write_bytes(keys.ours.detached(content))
    with served(rpms) as address:
        assert digests("--remote-rpm-repo", address, keys=(keys.file,)) == RPM_DIGESTS
        with pytest.raises(ConfigError, match=r"repomd\.xml\.key is not there: give --repository-key"):
            digests("--remote-rpm-repo", address)
        (data / "repomd.xml.key").write_bytes(keys.ours.armoured)
        assert capsys.readouterr().err.count("warning") == 0
        assert digests("--remote-rpm-repo", address) == RPM_DIGESTS
        assert "by the key that lies beside it" in capsys.readouterr().err
        listed = index_rpms(rpms, digests={"/usr/bin/sample": "ab" * 32, "/usr/bin/old": "cd" * 20})
        (data / "repomd.xml.asc").write_bytes(keys.ours.detached(listed))
        (rpms / RPM.name).unlink()
        assert digests("--remote-rpm-repo", address) == {"/usr/bin/sample": ["ab" * 32]}
        (data / "repomd.xml.asc").write_bytes(keys.other.detached(listed))
        with pytest.raises(ConfigError, match=r"repomd\.xml: it is signed by a key that is not among"):
            digests("--remote-rpm-repo", address)


def test_of_signed_packages_the_headers_are_enough(rpms: Path) -> None:
    """What follows the headers is never read then; but they must be those of the package that is listed."""
    index_rpms(rpms)
    package = rpms / RPM.name
    content = package.read_bytes()
    package.write_bytes(content[:6421] + bytes(1 << 20))
    signed: dict[str, Any] = {"keys": (str(RPM_KEY),), "unsigned": True}
    with served(rpms) as address:
        assert digests("--remote-rpm-repo", address, **signed) == RPM_DIGESTS
        with pytest.raises(ConfigError, match="is not what the index says"):
            digests("--remote-rpm-repo", address, unsigned=True)
        package.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:6421] + b"x")
        with pytest.raises(ConfigError, match="is not what the index says"):
            digests("--remote-rpm-repo", address, **signed)
        package.write_bytes(content)
        index_rpms(rpms, version="1.1")
        package.write_bytes(content + b"x")
        with pytest.raises(ConfigError, match="is not what the index says"):
            digests("--remote-rpm-repo", address, **signed)


def test_what_is_wrong_with_an_rpm_repository_is_named(rpms: Path, keys: Keys) -> None:
    with pytest.raises(ConfigError, match=r"repomd\.xml: is not signed; --unsigned-repository"):
        digests("--local-rpm-repo", rpms, keys=(keys.file,))
    with pytest.raises(ConfigError, match="gave no digest of any file"):
        digests("--local-rpm-repo", rpms, algorithm="sha1")
    content = bytearray(RPM.read_bytes())
    content[200] ^= 1
    (rpms / RPM.name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{RPM.name}: is not what the index says"):
        digests("--local-rpm-repo", rpms)
    index_rpms(rpms)
    (rpms / RPM.name).unlink()
    with pytest.raises(ConfigError, match=rf"{RPM.name}: is not there"):
        digests("--local-rpm-repo", rpms)
    with pytest.raises(ConfigError, match=r"repodata/repomd\.xml is not there"):
        digests("--local-rpm-repo", rpms / "repodata")
    with pytest.raises(ConfigError, match="no such directory"):
        digests("--local-rpm-repo", "/nowhere")
    with pytest.raises(ConfigError, match="expected an address"):
        digests("--remote-rpm-repo", "file:///etc")


def dpkg_tree(root: Path) -> None:
    """A tree with merged /usr and an installed package: one file is as packed, one was changed."""
    info = root / "var/lib/dpkg/info"
    for directory in (info, root / "usr/bin", root / "etc"):
        directory.mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    for name, content in {"usr/bin/sh": b"shell", "usr/bin/changed": b"evil", "etc/a b": b"x"}.items():
        (root / name).write_bytes(content)
    (root / "usr/bin/link").symlink_to("/etc/passwd")
    listed = ("/.", "/bin", "/bin/sh", "/bin/changed", "/usr/bin/link", "/etc/a b", "/etc/gone")
    (info / "x.list").write_text("".join(f"{name}\n" for name in listed))
    sums = {"bin/sh": b"shell", "bin/changed": b"good"}
    (info / "x.md5sums").write_text(
        "".join(
            f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}  {name}\n"
            for name, content in sums.items()
        )
    )
    conffile = hashlib.md5(b"x", usedforsecurity=False).hexdigest()
    (root / "var/lib/dpkg/status").write_text(f"Package: x\nConffiles:\n /etc/a {conffile}\nVersion: 1\n")


def test_installed_debian_packages_are_hashed_where_they_are_as_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dpkg_tree(tmp_path)
    found = digests("--dpkg-database", tmp_path)
    assert found == {"/usr/bin/sh": sha256(b"shell"), "/etc/a_b": sha256(b"x")}
    assert "'/usr/bin/changed' is left out" in capsys.readouterr().err
    assert len(digests("--dpkg-database", tmp_path, algorithm="sha1")["/usr/bin/sh"][0]) == 40
    with pytest.raises(ConfigError, match="give the root of the tree"):
        digests("--dpkg-database", tmp_path / "usr")


def test_installed_rpms_are_read_from_their_database(tmp_path: Path) -> None:
    directory = tmp_path / "usr/lib/sysimage/rpm"
    directory.mkdir(parents=True)
    content = RPM.read_bytes()
    # Behind the second magic number: what the database has of a package, here with its payload behind it.
    start = content.index(b"\x8e\xad\xe8\x01", 100) + 8
    connection = sqlite3.connect(directory / "rpmdb.sqlite")
    connection.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)")
    connection.execute("INSERT INTO Packages VALUES (1, ?)", (content[start:],))
    connection.commit()
    assert digests("--rpm-database", tmp_path) == RPM_DIGESTS
    connection.execute("INSERT INTO Packages VALUES (2, ?)", (content[start:][:500],))
    connection.commit()
    connection.close()
    before = sorted(os.listdir(directory))
    with pytest.raises(ConfigError, match=r"rpmdb\.sqlite: package 2: a header of the RPM is cut off"):
        digests("--rpm-database", tmp_path)
    assert sorted(os.listdir(directory)) == before
    (directory / "rpmdb.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match="not a database"):
        digests("--rpm-database", tmp_path)
    with pytest.raises(ConfigError, match="there is no RPM database in"):
        digests("--rpm-database", tmp_path / "usr")


def test_older_rpm_databases_are_read_by_rpm() -> None:
    lines = (
        b"a\t8\t33261\t0\tabab\t/usr/bin/a\n"
        b"a\t8\t41471\t0\t\t/usr/bin/link\n"
        b"a\t8\t33188\t64\tcdcd\t/var/log/ghost\n"
        b"b\t(none)\t33188\t0\tefef\t/etc/tab\there\n"
    )
    first, second = _queried(lines)
    assert first.digests == {b"/usr/bin/a": "abab"}
    assert second.digests == {b"/etc/tab\there": "efef"}
    assert second.algorithm is None


def test_a_container_image_has_what_its_layers_leave(tmp_path: Path) -> None:
    image = make_image(
        tmp_path / "image",
        [
            {"usr/bin/a": b"a", "usr/bin/b": b"b", "opt/x/y": b"y", "opt/x/z": b"z", "srv/w": b"w"},
            {
                "./usr/bin/a": b"new",
                "usr/bin/.wh.b": b"",
                "opt/x/n": b"n",
                "opt/x/.wh..wh..opq": b"",
                ".wh.srv": b"",
            },
        ],
    )
    assert digests("--oci-image", image) == {"/usr/bin/a": sha256(b"new"), "/opt/x/n": sha256(b"n")}
    largest = max((image / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes() + b"x")
    with pytest.raises(ConfigError, match=f"{largest.name}: its content has the digest"):
        digests("--oci-image", image)
    with pytest.raises(ConfigError, match="has no file oci-layout"):
        digests("--oci-image", tmp_path)
