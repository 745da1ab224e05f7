"""Lists cut into slices: the lines are those of `split_lines`, in whatever form, wherever they are cut."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence
from keylime.ima import list_text
from keylime.ima.list_text import SLICE, ListText
from keylime.ima.measurement_list import split_lines
from tests.captures import Stage, stages

TEXTS = st.lists(
    st.one_of(
        st.sampled_from(["\n", "\n\n", "\\", "\\n", '"', "\u00e9", "\u20ac", "\U0001f600", "\0", " "]),
        st.text("ab\n", max_size=30),
    ),
    max_size=60,
).map("".join)


def lines_of(text: ListText) -> list[bytes]:
    return [line for lines in text.slices() for line in lines]


def expected(text: str) -> list[bytes]:
    lines = split_lines(text.encode())
    return [] if lines == [b""] else lines


@pytest.fixture(autouse=True, params=[16, 128 << 10], ids=["small pieces", "usual pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_text, "_PIECE", request.param)


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: f"{stage.capture}-{stage.name}")
def test_a_captured_list_is_cut_as_it_is_read_at_once(stage: Stage) -> None:
    content = stage.ascii_list
    string = msgspec.Raw(json.dumps(content.decode()).encode())
    assert lines_of(ListText(content)) == lines_of(ListText.of_json(string)) == split_lines(content)
    assert ListText.of_json(string).content() == content


@given(TEXTS, st.booleans())
def test_no_cut_makes_a_difference(text: str, ascii_only: bool) -> None:
    string = msgspec.Raw(json.dumps(text, ensure_ascii=ascii_only).encode())
    everything = ListText.of_json(string)
    assert everything.content() == text.encode()
    assert lines_of(everything) == lines_of(everything) == expected(text)
    assert lines_of(ListText(text.encode())) == expected(text)


@given(TEXTS)
def test_other_ways_to_write_the_same_string_are_the_same_list(text: str) -> None:
    units = text.encode("utf-16-be")
    escaped = "".join(f"\\u{units[at]:02X}{units[at + 1]:02x}" for at in range(0, len(units), 2))
    assert lines_of(ListText.of_json(msgspec.Raw(f'"{escaped}"'.encode()))) == expected(text)


def test_slices_are_short_and_long_lines_let_others_have_their_turn() -> None:
    assert max(len(lines) for lines in ListText(b"a\n" * 5000).slices()) <= SLICE
    assert max(len(lines) for lines in ListText(b"\n" * 5000 + b"a").slices()) <= SLICE
    turns = list(ListText(b"a" * (1 << 20)).slices())
    assert len(turns) > (1 << 20) // list_text._PIECE
    assert turns[-1] == [b"a" * (1 << 20)]
    assert len(list(ListText(b"\n" * (1 << 20)).slices())) >= (1 << 20) // list_text._PIECE


@pytest.mark.parametrize("content", [b"\xff\\n" * 30, b"\x80" * 40 + b"\\n", b"a\\n\xc3" * 20])
def test_what_is_not_utf_8_is_malformed(content: bytes) -> None:
    with pytest.raises(MalformedEvidence, match="the IMA list is not"):
        lines_of(ListText(content, is_json=True))
