"""Values of foreign rows: what is there, or an objection that names the column; never anything else."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.takeover.releases import release_of
from keylime.takeover.report import Fate, Item, ItemKind, TakeoverReport, printable
from keylime.takeover.values import NotTakenOver, flag_of, json_of, number_of, text_of

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30), st.binary(max_size=30)
)


@pytest.mark.parametrize("value", ["a\0b", "\ud800", b"a\0", b"\xff"])
def test_a_text_that_not_every_database_holds_is_none(value: object) -> None:
    with pytest.raises(NotTakenOver, match="c is not"):
        text_of({"c": value}, "c")


@given(ANYTHING)
def test_any_value_is_read_or_objected_to(value: object) -> None:
    row = {"c": value}
    for read in (text_of, number_of, json_of):
        with contextlib.suppress(NotTakenOver):
            read(row, "c")
    assert flag_of(row, "c") in (True, False, None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), ("", None), (7, 7), ("7", 7), (" 7", 7), (7.0, 7)],
)
def test_numbers_come_in_several_shapes(value: object, expected: int | None) -> None:
    assert number_of({"c": value}, "c") == expected


@pytest.mark.parametrize("value", [True, "x", 7.5, -1, 2**31, "9" * 5000, b"7", "--5", "-", "5-", "\u0665"])
def test_what_is_no_number_is_named(value: object) -> None:
    with pytest.raises(NotTakenOver, match=r"^c is "):
        number_of({"c": value}, "c")


def test_missing_columns_are_empty_ones() -> None:
    assert (text_of({}, "c"), number_of({}, "c"), json_of({}, "c"), flag_of({}, "c")) == (None,) * 4


@pytest.mark.parametrize("value", [1, True, "1", "true", "t"])
def test_every_database_has_its_own_truth(value: object) -> None:
    assert flag_of({"c": value}, "c") is True


def test_releases_are_named_in_any_case() -> None:
    assert release_of("a59cc9366774") == "Keylime 7.14.3"
    assert "cut off" in release_of("a72aec03d720")
    assert "does not know" in release_of("x")


def test_a_report_is_lines_or_json_and_names_cannot_break_them() -> None:
    items = (
        Item.of(ItemKind.AGENT, "good"),
        Item.of(ItemKind.AGENT, "changed", ["so"]),
        Item(ItemKind.RUNTIME_POLICY, "bad\nname", Fate.NOT_TAKEN, ("why", "what to do")),
    )
    report = TakeoverReport("sqlite:////x", "Keylime 7.14.3", items)
    assert report.text().splitlines() == [
        "agent changed: taken with a change: so",
        "runtime policy 'bad\\nname': not taken: why; what to do",
        "sqlite:////x (Keylime 7.14.3) taken over: agents: 1 taken, 1 taken with a change; "
        "runtime policies: 1 not taken",
    ]
    assert '"dry_run": true' in report.dry().to_json()
    assert TakeoverReport("x", "y", ()).summary().endswith("nothing there")


@given(st.text())
def test_a_printable_name_is_in_one_line(name: str) -> None:
    assert len(printable(name).splitlines()) == 1
