"""The line of a member that an error names."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.documents.places import line_of, place_in_message
from keylime.errors import PolicyError
from keylime.ima.runtime_policy import EMPTY_POLICY, compile_runtime_policy, parse_runtime_policy

TEXT = """{
  "digests": {
    "/a": ["00"],
    "/it's \\"b\\"": [
      "11",
      "22"
    ]
  },
  "empty": [], "none": {},
  "ima": {"log_hash_alg":
      "md5"}
}
"""


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ((), 1),
        (("digests",), 2),
        (("digests", "/a"), 3),
        (("digests", "/a", 0), 3),
        (("digests", '/it\'s "b"', 1), 6),
        (("ima", "log_hash_alg"), 11),
        (("empty", 0), None),
        (("none", "x"), None),
        (("digests", "/c"), None),
        (("digests", "/a", 0, 0), None),
    ],
)
def test_a_place_has_the_line_in_which_its_value_begins(
    place: tuple[str | int, ...], line: int | None
) -> None:
    assert line_of(TEXT, place) == line


@pytest.mark.parametrize(
    ("member", "value", "place"),
    [
        ("digests", {'/it\'s "b"]': ["00" * 32, "x"]}, ["digests", '/it\'s "b"]', 1]),
        ("excludes", ["/a", "("], ["excludes", 1]),
        ("ima", {"ignored_keyrings": [], "log_hash_alg": "md5", "dm_policy": None}, ["ima", "log_hash_alg"]),
        ("ima-buf", {"x": []}, ["ima-buf", "x"]),
    ],
)
def test_errors_about_policies_begin_with_the_place(
    member: str, value: object, place: list[str | int]
) -> None:
    document = {**json.loads(EMPTY_POLICY), member: value}
    with pytest.raises(PolicyError) as caught:
        compile_runtime_policy(document)
    assert list(place_in_message(str(caught.value))) == place
    text = json.dumps(document, indent=1)
    assert line_of(text, place) is not None


def test_other_errors_have_no_place() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_runtime_policy("nothing")
    assert list(place_in_message(str(caught.value))) == []


@given(st.text(max_size=40), st.lists(st.text() | st.integers(0, 3), max_size=3))
def test_a_text_that_is_no_document_has_no_such_place(text: str, place: list[str | int]) -> None:
    found = line_of(text, place)
    assert found is None or 1 <= found <= text.count("\n") + 1
