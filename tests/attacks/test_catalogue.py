"""The attack catalogue and the tests are about the same: each row has a test, each test's id a row."""

from collections import Counter

import pytest

from tests.attacks.catalogue import ELSEWHERE, PAGE, TESTS, NamedTest, bearers, filled, ids_of_rows
from tests.citations import DECISIONS, ids_of_decisions

TEXT = PAGE.read_text("utf-8")
ROWS = ids_of_rows(TEXT)
BEARERS = bearers()
# What an appraisal decides is judged as whole rounds, through the entry point that the verifier uses.
WHOLE_ROUNDS = {f"attacks/test_appraisal_{subject}.py" for subject in ("quote", "ima", "boot", "os_log")}
DECIDED_AT_START = {"M14"}


@pytest.mark.parametrize("row_id", ROWS)
def test_each_row_has_a_test(row_id: str) -> None:
    assert BEARERS.get(row_id) or ELSEWHERE.get(row_id), f"no test bears {row_id} in its name"


@pytest.mark.parametrize("row_id", [row for row in ROWS if row[0] in "QIM" and row not in DECIDED_AT_START])
def test_what_an_appraisal_decides_has_a_test_of_whole_rounds(row_id: str) -> None:
    assert BEARERS[row_id] & WHOLE_ROUNDS


def test_no_test_bears_an_id_that_has_no_row() -> None:
    known = {*ROWS, *ids_of_decisions(DECISIONS.read_text("utf-8"))}
    assert {row_id: files for row_id, files in BEARERS.items() if row_id not in known} == {}
    assert ELSEWHERE.keys() <= set(ROWS)


def test_an_id_stands_for_one_row() -> None:
    assert [row_id for row_id, count in Counter(ROWS).items() if count > 1] == []


def test_the_table_has_every_row_that_the_page_begins() -> None:
    begun = [
        line
        for line in TEXT.splitlines()
        if line[2:4].strip() and line.startswith("| ") and line[3:4].isdigit()
    ]
    assert len(begun) == len(ROWS) > 180


@pytest.mark.parametrize("test", [test for tests in ELSEWHERE.values() for test in tests])
def test_what_is_tested_under_another_name_is_there(test: NamedTest) -> None:
    assert f"def {test.name}(" in (TESTS / test.file).read_text("utf-8")


def test_the_page_says_which_tests_there_are() -> None:
    assert filled(TEXT) == TEXT, "out of date: python -m tests.attacks.catalogue"


def test_a_row_takes_the_files_of_its_tests_and_keeps_the_rest() -> None:
    page = "| id | tests |\n| Q3 | an attack \\ of `a` | FAIL | `old.py` |\ntext | Q3 |\n"
    lines = filled(page).splitlines()
    assert [lines[0], lines[2]] == ["| id | tests |", "text | Q3 |"]
    assert lines[1].startswith("| Q3 | an attack \\ of `a` | FAIL | `attacks/test_appraisal_quote.py`")
    assert lines[1].endswith("` |")
    assert "old.py" not in lines[1]
