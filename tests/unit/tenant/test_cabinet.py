"""Cabinets: what is read, and that nothing else comes of a damaged or boundless one than a sentence."""

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime.errors import ConfigError
from keylime_tenant.ca.cabinet import CabinetError, read_cabinet
from keylime_tenant.ca.vendor_import import import_vendor, read_source
from tests.captures import DATA
from tests.effort import examples
from tests.fakes.cabinets import cabinet
from tests.fakes.vendor_certificates import Parts, ca_certificate
from tests.fuzz.cpu_time import within

MAKERS = DATA / "cabinets" / "makers.cab"
NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=0x2000), min_size=1, max_size=20)
FILES = st.lists(
    st.tuples(NAMES, st.one_of(st.binary(max_size=300), st.integers(1, 70_000).map(lambda n: b"ab" * n))),
    max_size=6,
)


def read(data: bytes, most_files: int = 100, most_bytes: int = 1 << 20) -> list[tuple[str, bytes]]:
    return list(read_cabinet(data, most_files=most_files, most_bytes=most_bytes))


def test_a_cabinet_of_another_program_is_read() -> None:
    files = read(MAKERS.read_bytes())
    assert [name for name, _ in files] == [
        "Maker\\RootCA\\root.cer",
        *(f"Maker\\IntermediateCA\\sub{number}.cer" for number in range(3)),
        "version.txt",
    ]
    assert files[-1][1] == b"sample\r\n" * 9000


@settings(max_examples=examples(40), deadline=None)
@given(FILES, st.booleans(), st.integers(0, 9), st.booleans(), st.binary(max_size=50))
def test_what_was_put_in_comes_out(
    files: list[tuple[str, bytes]], compressed: bool, reserve: int, checksums: bool, signature: bytes
) -> None:
    made = cabinet(files, compressed=compressed, reserve=reserve, checksums=checksums)
    assert read(made + signature) == files


@settings(max_examples=examples(150), deadline=None)
@given(st.data())
def test_damage_ends_in_a_sentence_or_in_the_content(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from((MAKERS.read_bytes(), cabinet([("a", b"b" * 99)])))))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    content = []
    with suppress(CabinetError):
        content = read(cut)
    assert sum(len(one) for _, one in content) <= 1 << 20


def test_a_changed_block_is_noticed_by_its_checksum() -> None:
    made = bytearray(cabinet([("a", b"0123456789" * 5)], compressed=False))
    made[-7] ^= 1
    with pytest.raises(CabinetError, match="checksum"):
        read(bytes(made))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (cabinet([("a", b"b")], method=0x1503), "compressed with LZX"),
        (cabinet([("a", b"b")], method=2), "compressed with Quantum"),
        (cabinet([("a", b"b")], flags=1), "part of several"),
        (cabinet([("a", b"b")], flags=2), "part of several"),
        (cabinet([("a", b"b" * 50)], claimed=40_000), "at most 32768"),
        (cabinet([("a", b"b" * 50)], claimed=49), "claims to have 49"),
        (cabinet([("a", b"b" * 50)], compressed=False, method=1), "not of MSZIP"),
        (cabinet([("n" * 300, b"b")]), "file name"),
        (cabinet([("a", b"b")])[:-1], "cut off"),
        (b"MSCF", "cut off"),
        (b"PK\3\4" + bytes(60), "no cabinet"),
    ],
)
def test_the_unusual_is_refused_and_named(made: bytes, words: str) -> None:
    with pytest.raises(CabinetError, match=words):
        read(made)


def test_what_comes_out_is_bounded() -> None:
    bomb = cabinet([("a", bytes(1 << 20)), ("b", b"1")])
    assert len(bomb) < 20_000
    with pytest.raises(CabinetError, match="more than 1048576 bytes"):
        read(bomb)
    with pytest.raises(CabinetError, match="2 files, at most 1"):
        read(cabinet([("a", b""), ("b", b"")]), most_files=1)


def test_makers_certificates_are_imported_from_a_cabinet(tmp_path: Path) -> None:
    store, said = tmp_path / "store", list[str]()
    import_vendor([str(MAKERS), "--store", str(store)], {}, said.append)
    assert len(list(store.iterdir())) == 4
    assert said[-2].endswith(
        "4 certificates added to " + str(store) + ", 0 were there already, 0 left out; "
        "1 other files hold none"
    )
    (tmp_path / "one.cab").write_bytes(cabinet([("dir\\\\ca.cer", ca_certificate(Parts()))]))
    assert len(read_source(tmp_path / "one.cab").certificates) == 1


def test_a_cabinet_that_cannot_be_read_has_a_way_around(tmp_path: Path) -> None:
    source = tmp_path / "lzx.cab"
    source.write_bytes(cabinet([("a", b"b")], method=3))
    with pytest.raises(ConfigError, match=r"lzx\.cab cannot be unpacked: .*LZX.*`cabextract -d DIRECTORY"):
        read_source(source)


def folders_of(count: int, blocks: int, block: bytes, *, shared: bool = True) -> bytes:
    """A cabinet of folders with a file of one byte each, behind blocks of their own or of all."""
    files_at = 36 + 8 * count
    table = b"".join(struct.pack("<IIHHHH", 1, 0, n, 0, 0, 0) + b"%d\0" % n for n in range(count))
    body = files_at + len(table)
    step = 0 if shared else blocks * len(block)
    folders = b"".join(struct.pack("<IHH", body + number * step, blocks, 0) for number in range(count))
    content = block * (blocks if shared else blocks * count)
    header = struct.pack(
        "<4s4xI4xI4xBBHHHHH", b"MSCF", body + len(content), files_at, 3, 1, count, count, 0, 0, 0
    )
    return header + folders + table + content


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (struct.pack("<IHH", 0, 0, 0), "empty block"),
        (struct.pack("<IHH", 0, 9000, 9000) + bytes(9000), "several folders"),
    ],
)
def test_folders_with_the_work_of_hours_are_refused(block: bytes, reason: str) -> None:
    """Each of them is small, and all of them are the same."""

    def refuse(data: bytes) -> None:
        with pytest.raises(CabinetError, match=reason):
            read(data, most_files=20_000, most_bytes=1 << 28)

    within(5, refuse, folders_of(15_000, 1000, block))


def test_many_folders_of_a_file_each_take_time_in_proportion() -> None:
    count = 20_000
    data = folders_of(count, 1, struct.pack("<IHH", 0, 1, 1) + b"x", shared=False)
    found: list[tuple[str, bytes]] = []
    within(5, lambda data: found.extend(read(data, most_files=count)), data)
    assert len(found) == count
