import base64
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime_agent.evidence import BootLog, LogFile, boot_time
from keylime_agent.ima_list import ImaList, ListExcerpt
from tests.captures import VM_DEBIAN12

LINES = [f"10 {number + 1:040x} ima-ng sha256:{number:064x} /bin/{number}\n" for number in range(10)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ascii_runtime_measurements"
    path.write_text("".join(LINES[:5]))
    return path


def text(first: int, end: int) -> str:
    return "".join(LINES[first:end])


def test_lines_come_from_the_entry_asked_for(path: Path) -> None:
    ima = ImaList(LogFile(path))
    assert ima.read_from(0) == ListExcerpt(text(0, 5), 0)
    assert ima.read_from(3) == ListExcerpt(text(3, 5), 3)
    assert ima.read_from(5) == ListExcerpt("", 5)


def test_an_entry_beyond_the_end_gives_the_whole_list(path: Path) -> None:
    ima = ImaList(LogFile(path))
    assert ima.read_from(6) == ListExcerpt(text(0, 5), 0)
    assert ima.read_from(5) == ListExcerpt("", 5)
    assert ima.read_from(7) == ListExcerpt(text(0, 5), 0)


def test_new_lines_are_found_after_the_old_ones(path: Path) -> None:
    ima = ImaList(LogFile(path))
    ima.read_from(0)
    with path.open("a") as file:
        file.write(text(5, 8))
    assert ima.read_from(5) == ListExcerpt(text(5, 8), 5)
    assert ima.read_from(2) == ListExcerpt(text(2, 8), 2)


def test_a_line_that_is_still_being_written_waits(path: Path) -> None:
    ima = ImaList(LogFile(path))
    with path.open("a") as file:
        file.write(LINES[5] + LINES[6][:20])
    assert ima.read_from(0) == ListExcerpt(text(0, 6), 0)
    with path.open("a") as file:
        file.write(LINES[6][20:])
    assert ima.read_from(6) == ListExcerpt(LINES[6], 6)


def test_complete_lines_are_counted_without_reading_the_old_ones_again(path: Path) -> None:
    ima = ImaList(LogFile(path))
    assert ima.count() == 5
    with path.open("a") as file:
        file.write(LINES[5] + LINES[6][:20])
    assert ima.count() == 6
    assert ima.read_from(5) == ListExcerpt(text(5, 6), 5)
    assert ImaList(LogFile(path.with_name("none"))).count() is None


def test_a_list_that_was_replaced_is_read_anew(path: Path) -> None:
    ima = ImaList(LogFile(path))
    ima.read_from(5)
    path.write_text(BOOTED + text(7, 9))  # same file, shorter
    assert ima.read_from(5) == ListExcerpt(BOOTED + text(7, 9), 0)
    path.unlink()
    path.write_text(text(0, 2))  # another file
    assert ima.read_from(1) == ListExcerpt(text(1, 2), 1)


BOOTED = f"10 {'ab' * 20} ima-ng sha256:{'cd' * 32} boot_aggregate\n"
VIOLATION = f"10 {'0' * 40} ima-ng sha256:{'0' * 64} /var/log/x\n"


def test_entries_are_counted_from_the_boot_also_when_the_kernel_has_the_first_ones_no_more(
    path: Path,
) -> None:
    """Linux 7.2 lets root delete the beginning of its list."""
    ima = ImaList(LogFile(path))
    assert ima.read_from(0) == ListExcerpt(text(0, 5), 0)
    path.write_text(text(3, 7))
    assert ima.read_from(5) == ListExcerpt(text(5, 7), 5)
    assert ima.read_from(3) == ListExcerpt(text(3, 7), 3)
    path.write_text(text(6, 9))
    assert ima.read_from(7) == ListExcerpt(text(7, 9), 7)
    assert ima.read_from(9) == ListExcerpt("", 9)


def test_what_was_deleted_unseen_cannot_be_asked_for(path: Path) -> None:
    ima = ImaList(LogFile(path))
    ima.read_from(0)
    path.write_text(text(3, 7))
    assert ima.read_from(1) == ListExcerpt(text(3, 7), 0)
    assert ima.read_from(9) == ListExcerpt(text(3, 7), 0)
    assert ima.read_from(5) == ListExcerpt(text(5, 7), 5)


def test_a_list_of_which_all_was_deleted_goes_on_where_it_ended(path: Path) -> None:
    ima = ImaList(LogFile(path))
    ima.read_from(0)
    path.write_text("")
    assert ima.read_from(5) == ListExcerpt("", 5)
    path.write_text(text(5, 8))
    assert ima.read_from(5) == ListExcerpt(text(5, 8), 5)
    path.write_text(text(8, 9))
    assert ima.read_from(8) == ListExcerpt(LINES[8], 8)


def test_violations_which_all_look_alike_do_not_mislead(path: Path) -> None:
    ima = ImaList(LogFile(path))
    path.write_text(VIOLATION + text(0, 3) + VIOLATION * 2)
    assert ima.read_from(6) == ListExcerpt("", 6)
    path.write_text(LINES[2] + VIOLATION * 4)
    assert ima.read_from(6) == ListExcerpt(VIOLATION * 2, 6)


def test_a_list_that_begins_anew_is_counted_anew(path: Path) -> None:
    ima = ImaList(LogFile(path))
    path.write_text(BOOTED + text(0, 5))
    ima.read_from(6)
    path.write_text(BOOTED.replace("cd", "ce") + text(0, 2))
    assert ima.read_from(6) == ListExcerpt(BOOTED.replace("cd", "ce") + text(0, 2), 0)
    assert ima.read_from(2) == ListExcerpt(LINES[1], 2)


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10), st.integers(0, 10)), max_size=6))
@settings(max_examples=40)
def test_whatever_is_deleted_between_polls_no_line_gets_another_number(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[int, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("ima") / "list"
    ima = ImaList(LogFile(path))
    begin = end = 0
    for deleted, added, asked in history:
        seen = end
        begin, end = min(begin + deleted, seen), min(end + added, len(LINES))
        path.write_text(text(begin, end))
        found = ima.read_from(asked)
        assert found is not None
        if found.entry or asked == begin == 0:
            assert found == ListExcerpt(text(asked, end), asked)
        else:
            assert found.text == text(begin, end)


def test_a_list_opened_early_is_read_when_its_path_is_closed_to_us(path: Path) -> None:
    ima = ImaList(LogFile(path))
    assert ima.open()
    path.rename(path.with_name("elsewhere"))
    assert ima.read_from(0) == ListExcerpt(text(0, 5), 0)


def test_no_list_is_no_list_until_there_is_one(tmp_path: Path) -> None:
    ima = ImaList(LogFile(tmp_path / "missing"))
    assert not ima.open()
    assert ima.read_from(0) is None
    (tmp_path / "missing").write_text("")
    assert ima.read_from(0) == ListExcerpt("", 0)


@given(
    parts=st.lists(st.text(alphabet="ab\n", max_size=12), max_size=8),
    asked=st.lists(st.integers(0, 20), min_size=8, max_size=8),
)
def test_reading_in_steps_equals_reading_at_once(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], asked: list[int]
) -> None:
    path = tmp_path_factory.mktemp("ima") / "list"
    path.write_text("")
    stepwise, written = ImaList(LogFile(path)), ""
    for part, entry in zip(parts, asked, strict=False):
        with path.open("a") as file:
            file.write(part)
        written += part
        complete = written[: written.rfind("\n") + 1].splitlines(keepends=True)
        first = entry if entry <= len(complete) else 0
        assert stepwise.read_from(entry) == ListExcerpt("".join(complete[first:]), first)


def test_a_long_list_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("".join(LINES) * 5000)
    excerpt = ImaList(LogFile(path)).read_from(49_990)
    assert excerpt == ListExcerpt("".join(LINES), 49_990)


def test_the_boot_log_travels_unchanged(tmp_path: Path) -> None:
    path = VM_DEBIAN12 / "grub-secureboot" / "binary_bios_measurements"
    encoded = BootLog(path).read_base64()
    assert encoded is not None
    assert base64.b64decode(encoded) == path.read_bytes()
    assert BootLog(tmp_path / "missing").read_base64() is None


@pytest.mark.parametrize(
    ("stat", "expected"),
    [("cpu 1 2\nbtime 1700000000\nintr 5\n", 1_700_000_000), ("cpu 1\n", 0), ("btime x\n", 0)],
)
def test_the_boot_time_is_the_kernels(stat: str, expected: int) -> None:
    assert boot_time(stat) == expected
