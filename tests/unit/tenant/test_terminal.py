import pytest

from keylime_tenant.terminal import Column, Terminal, age, ago, lines_of, moment, record_lines


@pytest.mark.parametrize("value", [0, None, -5, "x", 1e300])
def test_a_moment_that_is_none_is_never(value: object) -> None:
    assert moment(value) == "never"
    assert ago(value, 1000.0) == "never"


def test_ages_have_two_units_and_are_never_negative() -> None:
    assert [age(0, now) for now in (-5, 59, 61, 3600, 90000)] == [
        "0 s",
        "59 s",
        "1 min 1 s",
        "1 h 0 min",
        "1 d 1 h",
    ]
    assert age(None, 0) == ""
    assert ago(100, 160.0) == "1 min 0 s ago"


COLUMNS = [
    Column("id", ["a-very-long-name"]),
    Column("state", ["good"], 1, ["good"]),
    Column("rest", ["12345"], 2),
    Column("none", [""], 1),
]


@pytest.mark.parametrize(
    ("width", "heading"), [(5, "ID"), (24, "ID                STATE"), (30, "ID                STATE  REST")]
)
def test_columns_go_as_a_whole_the_least_important_first(width: int, heading: str) -> None:
    lines = lines_of(COLUMNS, Terminal(width))
    assert lines[0] == heading
    assert lines[1].startswith("a-very-long-name")


def test_without_a_terminal_there_is_room_and_no_colour() -> None:
    assert lines_of(COLUMNS, Terminal())[1] == "a-very-long-name  good   12345"
    painted = lines_of(COLUMNS, Terminal(has_colours=True))[1]
    assert painted == "a-very-long-name  \x1b[32mgood\x1b[0m   12345"


def test_rows_of_nothing_are_a_heading() -> None:
    assert lines_of([Column("id", [])], Terminal(80)) == ["ID"]


def test_a_record_leaves_out_what_is_not_known() -> None:
    assert record_lines([("a", "1"), ("long", "2"), ("b", "")], Terminal()) == ["a     1", "long  2"]
