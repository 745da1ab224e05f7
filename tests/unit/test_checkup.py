import pytest

from keylime.checkup import Grade, bad, document, is_good, lines, ok, read_document, summary, unknown, warning


def test_each_result_is_one_line_with_what_to_type() -> None:
    assert str(ok("clock", "is right")) == "ok       clock: is right"
    assert str(bad("clock", "is wrong", "timedatectl")) == "BAD      clock: is wrong; timedatectl"
    assert list(lines([ok("a", "b")])) == ["ok       a: b", "all is well"]


def test_only_what_does_not_work_is_bad() -> None:
    doubtful = [ok("a", ""), warning("b", ""), unknown("c", "")]
    assert is_good(doubtful)
    assert summary(doubtful) == "everything works; 2 of 3 things are to be looked at"
    assert not is_good([*doubtful, bad("d", "")])
    assert summary([*doubtful, bad("d", "")]) == "1 of 4 things do not work"


def test_nothing_examined_is_not_good() -> None:
    assert not is_good([])
    assert summary([]) == "nothing was examined"


def test_programs_read_the_same() -> None:
    assert document([bad("a", "b", "c")]) == {
        "ok": False,
        "checks": [{"subject": "a", "grade": "bad", "text": "b", "remedy": "c"}],
    }
    assert read_document(document([bad("a", "b", "c")])) == (bad("a", "b", "c"),)
    assert {grade.lower() for grade in Grade} == {"ok", "warning", "bad", "unknown"}


@pytest.mark.parametrize(
    "value", [None, [], {}, {"checks": 1}, {"checks": [1]}, {"checks": [{"subject": "a", "grade": "good"}]}]
)
def test_what_is_no_document_is_said(value: object) -> None:
    with pytest.raises(ValueError, match="check"):
        read_document(value)
