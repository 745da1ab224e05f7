import base64
import io
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import CredentialError
from keylime.payload.bundle import (
    ArchiveLimits,
    PayloadRefused,
    decrypt_payload,
    encrypt_payload,
    extract_archive,
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


@pytest.mark.parametrize("k", [K, K[:16]])
def test_a_payload_comes_out_as_it_went_in(k: bytes) -> None:
    assert decrypt_payload(k, encrypt_payload(k, b"secret")) == b"secret"


def test_the_ciphertext_is_a_16_byte_iv_the_gcm_text_and_the_tag() -> None:
    sealed = base64.b64decode(encrypt_payload(K, b"secret"))
    assert len(sealed) == 16 + 6 + 16
    assert AESGCM(K).decrypt(sealed[:16], sealed[16:], None) == b"secret"


@pytest.mark.parametrize("position", [0, 15, 16, 21, 22, 37])
def test_an_altered_byte_is_noticed(position: int) -> None:
    sealed = bytearray(base64.b64decode(encrypt_payload(K, b"secret")))
    sealed[position] ^= 1
    with pytest.raises(CredentialError, match="cannot be decrypted"):
        decrypt_payload(K, base64.b64encode(sealed).decode())


def test_another_key_and_a_shorter_tag_are_noticed() -> None:
    text = encrypt_payload(K, b"secret")
    with pytest.raises(CredentialError):
        decrypt_payload(bytes(32), text)
    with pytest.raises(CredentialError):
        decrypt_payload(K, base64.b64encode(base64.b64decode(text)[:-4]).decode())


@given(st.text(max_size=100))
def test_any_text_is_a_payload_or_a_credential_error(text: str) -> None:
    with pytest.raises(CredentialError):
        decrypt_payload(K, text)


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


def test_extraction_writes_private_files(tmp_path: Path) -> None:
    assert extract_archive(ARCHIVE, tmp_path) == tuple(FILES)
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")
    }
    assert modes == {"autorun.sh": 0o600, "keys": 0o700, "keys/id": 0o600}
    assert (tmp_path / "keys" / "id").read_bytes() == FILES["keys/id"]


def test_nothing_is_written_of_an_archive_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PayloadRefused):
        extract_archive(zipped(entry("good"), entry("../evil")), tmp_path)
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
