import io
import stat
import struct
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.payload.archive import (
    ArchiveLimits,
    PayloadRefused,
    looks_like_archive,
    pack_archive,
    read_archive,
)

K = bytes(range(32))
FILES = {"autorun.sh": b"#!/bin/sh\necho hello\n", "keys/id": b"\x00" * 100}


def zipped(*entries: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for info, content in entries:
            archive.writestr(info, content)
    return buffer.getvalue()


def entry(
    name: str, content: bytes = b"x", *, mode: int = stat.S_IFREG | 0o644
) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info, content


def renamed(old: bytes, new: bytes) -> bytes:
    """An archive whose entry has a name that no zip tool writes."""
    assert len(old) == len(new)
    return zipped(entry(old.decode())).replace(old, new)


def test_a_packed_archive_is_stored_and_reads_back() -> None:
    data = pack_archive(FILES)
    assert looks_like_archive(data)
    assert read_archive(data) == tuple(FILES.items())
    assert pack_archive(FILES) == data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_an_empty_archive_is_one() -> None:
    assert looks_like_archive(pack_archive({}))
    assert read_archive(pack_archive({})) == ()


def test_a_script_is_no_archive() -> None:
    assert not looks_like_archive(b"#!/bin/sh\n")


def test_deflated_entries_and_directories_are_read() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("actions")
        archive.writestr("actions/local_action_x.sh", b"y" * 1000)
    assert read_archive(buffer.getvalue()) == (("actions/local_action_x.sh", b"y" * 1000),)


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/etc/cron.d/evil",
        "a//b",
        "./a",
        "..",
        "a\\..\\b",
        "new\nline",
        "bell\x07",
        "n" * 256,
        "/".join("deep" * 20),
    ],
)
def test_an_unsafe_name_refuses_the_whole_archive(name: str) -> None:
    with pytest.raises(PayloadRefused, match="unsafe name"):
        read_archive(zipped(entry("good"), entry(name)))


def test_a_name_with_nul_is_not_cut_but_refused() -> None:
    with pytest.raises(PayloadRefused, match="unsafe name"):
        read_archive(renamed(b"autorunXsh", b"autorun\x00sh"))


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR]
)
def test_only_files_and_directories_are_taken(kind: int) -> None:
    with pytest.raises(PayloadRefused, match="neither a file nor a directory"):
        read_archive(zipped(entry("link", b"/etc/passwd", mode=kind | 0o777)))


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b"), ("a/", "a")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_for_one_path_are_refused(names: tuple[str, str]) -> None:
    modes = [stat.S_IFDIR if name.endswith("/") else stat.S_IFREG for name in names]
    data = zipped(*(entry(name, mode=mode | 0o700) for name, mode in zip(names, modes, strict=True)))
    with pytest.raises(PayloadRefused, match="two entries"):
        read_archive(data)


def test_a_bomb_is_refused_by_what_it_claims() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2_000_000))
    assert len(buffer.getvalue()) < 3000
    with pytest.raises(PayloadRefused, match="more than 1000000 bytes"):
        read_archive(buffer.getvalue(), ArchiveLimits(total_bytes=1_000_000))


def test_a_bomb_that_lies_about_its_size_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2_000_000))
    data = buffer.getvalue().replace(struct.pack("<I", 2_000_000), struct.pack("<I", 10))
    with pytest.raises(PayloadRefused):
        read_archive(data, ArchiveLimits(total_bytes=1_000_000))


def test_too_many_entries_are_refused_whatever_the_archive_says() -> None:
    data = pack_archive({str(number): b"" for number in range(600)})
    with pytest.raises(PayloadRefused, match="more than 512 entries"):
        read_archive(data)
    modest = data.replace(struct.pack("<HH", 600, 600), struct.pack("<HH", 1, 1))
    assert modest != data
    with pytest.raises(PayloadRefused, match="entries"):
        read_archive(modest)
    with pytest.raises(PayloadRefused, match="entries"):
        read_archive(modest, ArchiveLimits(entries=60))


def test_encrypted_and_exotically_compressed_entries_are_refused() -> None:
    data = zipped(entry("secret"))
    central = data.index(b"PK\x01\x02")
    encrypted = data[: central + 8] + b"\x01\x00" + data[central + 10 :]
    with pytest.raises(PayloadRefused, match="is encrypted"):
        read_archive(encrypted)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression=zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", b"x")
    with pytest.raises(PayloadRefused, match="unsupported method"):
        read_archive(buffer.getvalue())


ARCHIVE = pack_archive(FILES)


@pytest.mark.parametrize("size", range(0, len(ARCHIVE), 9))
def test_a_truncated_archive_is_refused(size: int) -> None:
    with pytest.raises(PayloadRefused):
        read_archive(ARCHIVE[:size])


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: ARCHIVE + tail))
def test_any_bytes_are_an_archive_or_refused(data: bytes) -> None:
    try:
        files = read_archive(data)
    except PayloadRefused:
        return
    assert files in ((), tuple(FILES.items()))


@given(st.lists(st.tuples(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_an_altered_archive_is_read_within_its_limits_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(ARCHIVE)
    for position, value in changes:
        data[position] = value
    try:
        files = read_archive(bytes(data))
    except PayloadRefused:
        return
    assert all(".." not in path.split("/") and not path.startswith("/") for path, _ in files)
